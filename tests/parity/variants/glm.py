"""Variants of GLM-4 and GLM-4-0414."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_SIZES = {**SIZES, "head_dim": 24}

VARIANTS = {
    "glm": Variant("GlmConfig", _SIZES),
    "glm_old_keys": Variant(
        "GlmConfig",
        {**_SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
        rewrite={"rope_parameters": None, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    "glm4": Variant("Glm4Config", _SIZES),
    "glm4_without_biases_yarn": Variant(
        "Glm4Config",
        {
            **_SIZES,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
}
