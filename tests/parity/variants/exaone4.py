"""Variants of EXAONE 4."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_LLAMA3 = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_ORIGINAL = {"original_max_position_embeddings": 32}

VARIANTS = {
    "exaone4": Variant("Exaone4Config", {**SIZES, "num_hidden_layers": 6, "head_dim": 24, "sliding_window": 16}),
    "exaone4_32b_old_keys": Variant(
        "Exaone4Config",
        {
            **SIZES,
            "num_hidden_layers": 6,
            "head_dim": 24,
            "sliding_window": 16,
            "rope_parameters": {**_LLAMA3, **_ORIGINAL, "rope_theta": 1e6},
        },
        rewrite={
            "rope_parameters": None,
            "rope_theta": 1_000_000,
            "rope_scaling": {**_LLAMA3, **_ORIGINAL},
            "sliding_window_pattern": "LLLG",
        },
    ),
    "exaone4_full_attention_tied": Variant(
        "Exaone4Config",
        {
            **SIZES,
            "sliding_window": None,
            "layer_types": ["full_attention"] * 4,
            "tie_word_embeddings": True,
            "rope_parameters": {**_LLAMA3, **_ORIGINAL, "rope_theta": 1e6},
        },
        rewrite={"sliding_window_pattern": None},
    ),
}
