"""Variants of OLMo 2 and OLMo 3."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_WINDOWED = {**SIZES, "num_hidden_layers": 6, "sliding_window": 16}

VARIANTS = {
    "olmo2": Variant("Olmo2Config", {**SIZES, "num_key_value_heads": 4}),
    "olmo2_grouped_biases": Variant("Olmo2Config", {**SIZES, "attention_bias": True, "head_dim": 24}),
    "olmo2_tied_old_keys": Variant(
        "Olmo2Config",
        {
            **SIZES,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
        rewrite={"rope_parameters": None, "rope_theta": 500_000, "rope_scaling": None},
    ),
    "olmo3": Variant("Olmo3Config", _WINDOWED),
    "olmo3_yarn_old_keys": Variant(
        "Olmo3Config",
        {
            **_WINDOWED,
            "num_key_value_heads": 4,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "original_max_position_embeddings": 16,
                    "attention_factor": 1.2079441541679836,
                    "beta_fast": 32,
                    "beta_slow": 1,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
        rewrite={
            "rope_parameters": None,
            "rope_theta": 500_000,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32,
                "beta_slow": 1,
            },
        },
    ),
}
