"""Variants of BLOOM."""

from __future__ import annotations

from tests.parity.variants.base import VOCABULARY, Variant

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 4, "n_head": 4}

VARIANTS = {
    "bloom": Variant("BloomConfig", _SIZES),
    "bloom_old_keys": Variant(  # BLOOM-176B has 112 heads, not a power of two either
        "BloomConfig",
        {**_SIZES, "hidden_size": 72, "n_head": 6},
        rewrite={"hidden_size": None, "n_embed": 72, "n_head": None, "num_attention_heads": 6, "pretraining_tp": 4},
    ),
    "bloom_untied": Variant("BloomConfig", {**_SIZES, "tie_word_embeddings": False}),
}
