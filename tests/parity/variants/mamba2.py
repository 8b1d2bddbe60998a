"""Variants of Mamba 2."""

from __future__ import annotations

from tests.parity.variants.base import VOCABULARY, Variant

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_heads": 8,
    "head_dim": 16,
    "n_groups": 2,
    "state_size": 24,
}

VARIANTS = {
    "mamba2": Variant("Mamba2Config", _SIZES),
    "mamba2_biases_one_group_tied": Variant(
        "Mamba2Config",
        {
            **_SIZES,
            "hidden_size": 48,
            "num_heads": 4,
            "head_dim": 24,
            "n_groups": 1,
            "conv_kernel": 3,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": True,
            "chunk_size": 16,
        },
    ),
}
