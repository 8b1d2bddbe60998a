"""Variants of RecurrentGemma."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_SIZES = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}

VARIANTS = {
    "recurrent_gemma": Variant("RecurrentGemmaConfig", {**_SIZES, "attention_window_size": 20}),
    "recurrent_gemma_wide_untied": Variant(
        "RecurrentGemmaConfig",
        {
            **_SIZES,
            "num_hidden_layers": 5,
            "block_types": ["attention", "recurrent"],
            "num_key_value_heads": 1,
            "hidden_size": 80,
            "lru_width": 80,
            "conv1d_width": 3,
            "attention_bias": True,
            "logits_soft_cap": 5.0,
            "tie_word_embeddings": False,
        },
    ),
}
