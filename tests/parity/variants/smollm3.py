"""Variants of SmolLM3."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

VARIANTS = {
    "smollm3": Variant("SmolLM3Config", {**SIZES, "num_hidden_layers": 6}),
    "smollm3_yarn_untied": Variant(
        "SmolLM3Config",
        {
            **SIZES,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "no_rope_layers": [1, 0, 0, 1],
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5e6,
                "factor": 2.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "smollm3_windows": Variant(
        "SmolLM3Config",
        {
            **SIZES,
            "num_hidden_layers": 5,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
        },
        rewrite={"rope_parameters": None, "rope_theta": 5e6, "rope_scaling": None, "layer_types": None},
    ),
}
