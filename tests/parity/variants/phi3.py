"""Variants of Phi-3, Phi-3.5 and Phi-4."""

from __future__ import annotations

from typing import Any

from tests.parity.variants.base import MAX_LENGTH, SIZES, Variant


def _longrope(width: int) -> dict[str, Any]:
    return {
        "short_factor": [1.0 + 0.5 * index for index in range(width // 2)],
        "long_factor": [2.0 + 1.5 * index for index in range(width // 2)],
    }


_LONG = {"max_position_embeddings": 4 * MAX_LENGTH, "original_max_position_embeddings": MAX_LENGTH}
"""The model's own length sets the factor of longrope's attention."""

_WITHIN_ORIGINAL = {"n_positions": MAX_LENGTH}
"""hf takes its max_length from this key, and so has only texts for which the short factors hold."""

VARIANTS = {
    "phi3": Variant("Phi3Config", {**SIZES, "num_key_value_heads": 4, "sliding_window": 20}),
    "phi3_medium": Variant("Phi3Config", {**SIZES, "num_attention_heads": 8, "num_key_value_heads": 2}),
    "phi3_longrope": Variant(
        "Phi3Config",
        {**SIZES, **_LONG, "rope_parameters": {"rope_type": "longrope", "rope_theta": 10_000.0, **_longrope(16)}},
        rewrite={
            **_WITHIN_ORIGINAL,
            "rope_parameters": None,
            "rope_theta": 10_000.0,
            "rope_scaling": {"type": "longrope", **_longrope(16)},
        },
    ),
    "phi3_partial_longrope": Variant(
        "Phi3Config",
        {
            **SIZES,
            **_LONG,
            "tie_word_embeddings": True,
            "sliding_window": 2 * MAX_LENGTH,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.75,
                **_longrope(12),
            },
        },
        rewrite={
            **_WITHIN_ORIGINAL,
            "rope_parameters": None,
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {"type": "longrope", **_longrope(12)},
        },
    ),
}
