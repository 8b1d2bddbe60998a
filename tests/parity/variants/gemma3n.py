"""Variants of Gemma 3n."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, VOCABULARY, Variant

_FACTORS = {"q_norm.weight": 0.25}  # scores are not divided by the root of the width of a head
_FIRST_VISION_TOKEN, _FIRST_AUDIO_TOKEN = VOCABULARY - 500, VOCABULARY - 200
_TEXT = {
    **SIZES,
    "num_hidden_layers": 8,  # the default pattern has a period of five layers
    "head_dim": 24,
    "sliding_window": 16,
    "final_logit_softcapping": 3.0,
    "vocab_size_per_layer_input": _FIRST_VISION_TOKEN,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.95] * 3 + [0.0] * 5,
    "laurel_rank": 8,
}

VARIANTS = {
    "gemma3n_text": Variant("Gemma3nTextConfig", _TEXT, factors=_FACTORS),
    "gemma3n_text_other": Variant(
        "Gemma3nTextConfig",
        {
            **_TEXT,
            "num_hidden_layers": 7,
            "intermediate_size": [96, 96, 64, 96, 96, 96, 32],
            "activation_sparsity_pattern": [0.5] + [0.0] * 6,
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 2,
            "altup_active_idx": 1,
            "altup_correct_scale": False,
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
        rewrite={"rope_parameters": None, "rope_theta": 1e5, "rope_local_base_freq": 1e3, "rope_scaling": None},
        factors=_FACTORS,
    ),
    "gemma3n": Variant(
        "Gemma3nConfig",
        {
            "text_config": _TEXT,
            "vision_config": {
                "architecture": "test_resnet",  # a small one of timm's
                "hidden_size": 32,
                "vocab_offset": _FIRST_VISION_TOKEN,
                "vocab_size": _FIRST_AUDIO_TOKEN - _FIRST_VISION_TOKEN,
                "rms_norm_eps": 1e-3,
            },
            "audio_config": {
                "hidden_size": 24,
                "vocab_offset": _FIRST_AUDIO_TOKEN,
                "vocab_size": VOCABULARY - _FIRST_AUDIO_TOKEN,
                "conf_num_attention_heads": 2,
                "conf_num_hidden_layers": 1,
                "sscp_conv_channel_size": [4, 4],
            },
        },
        factors=_FACTORS,
    ),
}
