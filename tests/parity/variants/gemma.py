"""Variants of Gemma 1, Gemma 2 and Gemma 3."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

VARIANTS = {
    "gemma": Variant("GemmaConfig", {**SIZES, "num_key_value_heads": 4, "head_dim": 24}),
    "gemma_2b_old_keys": Variant(
        "GemmaConfig",
        {**SIZES, "num_key_value_heads": 1, "head_dim": 256},
        rewrite={
            "rope_parameters": None,
            "rope_theta": 10_000.0,
            "hidden_act": "gelu",
            "hidden_activation": None,
        },
    ),
    "gemma_hidden_activation_biases": Variant(
        "GemmaConfig",
        {**SIZES, "head_dim": 32, "attention_bias": True, "tie_word_embeddings": False},
        rewrite={"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    ),
    "gemma2": Variant("Gemma2Config", {**SIZES, "head_dim": 24, "sliding_window": 16, "query_pre_attn_scalar": 20}),
    "gemma2_uncapped": Variant(
        "Gemma2Config",
        {
            **SIZES,
            "head_dim": 16,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
        },
    ),
    "gemma3": Variant(
        "Gemma3TextConfig",
        {**SIZES, "num_hidden_layers": 7, "head_dim": 24, "sliding_window": 16, "query_pre_attn_scalar": 20},
    ),
    "gemma3_old_keys": Variant(
        "Gemma3TextConfig",
        {
            **SIZES,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        rewrite={
            "rope_parameters": None,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10_000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "layer_types": None,
            "sliding_window_pattern": 2,
        },
    ),
    "gemma3_with_vision": Variant(
        "Gemma3Config",
        {
            "text_config": {**SIZES, "num_hidden_layers": 7, "head_dim": 24, "sliding_window": 16},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "boi_token_index": 1021,
            "eoi_token_index": 1022,
            "image_token_index": 1023,
        },
    ),
}
