"""Variants of GPT-NeoX."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_SIZES = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}

VARIANTS = {
    "gpt_neox": Variant("GPTNeoXConfig", _SIZES),
    "gpt_neox_old_keys": Variant(
        "GPTNeoXConfig",
        {
            **_SIZES,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
        rewrite={"rope_parameters": None, "rotary_emb_base": 500, "rotary_pct": 0.5},
    ),
    "gpt_neox_sequential": Variant(
        "GPTNeoXConfig",
        {
            **_SIZES,
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        },
    ),
}
