"""Variants of LFM 2."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_PATTERN = ["conv", "conv", "full_attention", "conv", "full_attention"]

VARIANTS = {
    "lfm2": Variant(
        "Lfm2Config",
        {**SIZES, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 32},
    ),
    "lfm2_biases_untied": Variant(
        "Lfm2Config",
        {
            **SIZES,
            "num_hidden_layers": 10,
            "layer_types": [*_PATTERN, *_PATTERN],
            "conv_bias": True,
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": False,
        },
    ),
}
