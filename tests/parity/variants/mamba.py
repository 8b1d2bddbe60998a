"""Variants of Mamba."""

from __future__ import annotations

from tests.parity.variants.base import VOCABULARY, Variant

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 4, "state_size": 8}

VARIANTS = {
    "mamba": Variant("MambaConfig", _SIZES),
    "mamba_biases_untied": Variant(
        "MambaConfig",
        {
            **_SIZES,
            "expand": 3,
            "conv_kernel": 3,
            "time_step_rank": 7,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": False,
        },
    ),
}
