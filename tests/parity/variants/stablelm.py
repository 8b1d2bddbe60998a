"""Variants of StableLM."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

VARIANTS = {
    "stablelm": Variant("StableLmConfig", {**SIZES, "num_key_value_heads": 4}),
    "stablelm_biases_old_keys": Variant(
        "StableLmConfig",
        {
            **SIZES,
            "use_qkv_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
        rewrite={"rope_parameters": None, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    "stablelm_parallel_norms_of_heads": Variant(
        "StableLmConfig", {**SIZES, "qk_layernorm": True, "use_parallel_residual": True}
    ),
}
