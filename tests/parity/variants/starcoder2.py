"""Variants of StarCoder 2."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

VARIANTS = {
    "starcoder2": Variant("Starcoder2Config", {**SIZES, "sliding_window": 20}),
    "starcoder2_untied_without_biases": Variant(
        "Starcoder2Config", {**SIZES, "use_bias": False, "tie_word_embeddings": False}
    ),
}
