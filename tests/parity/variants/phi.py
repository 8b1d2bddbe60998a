"""Variants of Phi-1, Phi-1.5 and Phi-2."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_SIZES = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}

VARIANTS = {
    "phi": Variant("PhiConfig", _SIZES),
    "phi_old_keys": Variant(
        "PhiConfig",
        {
            **_SIZES,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.4},
        },
        rewrite={
            "rope_parameters": None,
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.4,
            "rope_scaling": None,
            "num_key_value_heads": None,
        },
    ),
    "phi_norms_of_heads_tied": Variant("PhiConfig", {**SIZES, "qk_layernorm": True, "tie_word_embeddings": True}),
}
