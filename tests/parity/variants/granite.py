"""Variants of Granite."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_SCALES = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.22,
    "logits_scaling": 0.5,
}

VARIANTS = {
    "granite": Variant("GraniteConfig", {**SIZES, **_SCALES, "tie_word_embeddings": True}),
    "granite_unscaled_biases": Variant(
        "GraniteConfig", {**SIZES, "attention_multiplier": 0.25, "attention_bias": True, "mlp_bias": True}
    ),
    "granite_old_keys": Variant(
        "GraniteConfig",
        {**SIZES, **_SCALES, "logits_scaling": 0.75, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
        rewrite={"rope_parameters": None, "rope_theta": 5e4, "rope_scaling": None},
    ),
}
