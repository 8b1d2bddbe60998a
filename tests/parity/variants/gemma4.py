"""Variants of Gemma 4, like its published sizes."""

from __future__ import annotations

from typing import Any

from tests.parity.variants.base import SIZES, Variant

_FACTORS = {"q_norm.weight": 0.25}  # scores are not divided by the root of the width of a head
_PATTERN = ["sliding_attention", "sliding_attention", "full_attention"]
_HEADS = {"head_dim": 16, "global_head_dim": 24, "sliding_window": 16, "final_logit_softcapping": 3.0}
_E2B = {
    **SIZES,
    **_HEADS,
    "num_hidden_layers": 10,
    "num_key_value_heads": 1,
    "layer_types": [*_PATTERN, *_PATTERN, *_PATTERN, "full_attention"],
    "num_kv_shared_layers": 6,
    "use_double_wide_mlp": True,
    "vocab_size_per_layer_input": SIZES["vocab_size"],
    "hidden_size_per_layer_input": 8,
}
_E4B = {
    **SIZES,
    **_HEADS,
    "num_hidden_layers": 13,  # the default pattern has a period of six layers, and a full layer at the end
    "num_kv_shared_layers": 6,
    "vocab_size_per_layer_input": SIZES["vocab_size"],
    "hidden_size_per_layer_input": 8,
}
_31B = {
    **SIZES,
    **_HEADS,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "use_bidirectional_attention": "vision",
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": 14,
    "position_embedding_size": 32,
}
_AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [4, 4],
    "output_proj_dims": 32,
}


def _whole(text: dict[str, Any], **parts: Any) -> Variant:
    """Return a model with vision whose texts contain the tokens that stand for images, videos and sounds."""
    tokens = {"image_token_id": 5, "video_token_id": 6, "audio_token_id": 300}
    return Variant("Gemma4Config", {"text_config": text, "vision_config": _VISION, **tokens, **parts}, factors=_FACTORS)


VARIANTS = {
    "gemma4_text": Variant("Gemma4TextConfig", _E2B, factors=_FACTORS),
    "gemma4_text_e4b": Variant("Gemma4TextConfig", _E4B, factors=_FACTORS),
    "gemma4_text_31b": Variant("Gemma4TextConfig", _31B, factors=_FACTORS),
    "gemma4_text_untied": Variant(
        "Gemma4TextConfig",
        {
            **_E4B,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "final_logit_softcapping": None,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {
                    "rope_type": "proportional",
                    "rope_theta": 1e3,
                    "partial_rotary_factor": 0.7,
                    "factor": 2.0,
                },
            },
        },
        factors=_FACTORS,
    ),
    "gemma4": _whole(_E2B, audio_config=_AUDIO),
    "gemma4_31b": _whole(_31B),
}
