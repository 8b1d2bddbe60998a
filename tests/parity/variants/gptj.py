"""Variants of GPT-J."""

from __future__ import annotations

from tests.parity.variants.base import MAX_LENGTH, VOCABULARY, Variant

_SIZES = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": MAX_LENGTH,
    "rotary_dim": 8,
}

VARIANTS = {
    "gptj": Variant("GPTJConfig", _SIZES),
    "gptj_tied": Variant("GPTJConfig", {**_SIZES, "tie_word_embeddings": True, "n_inner": 96, "rotary_dim": 16}),
}
