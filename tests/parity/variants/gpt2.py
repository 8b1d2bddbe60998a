"""Variants of GPT-2."""

from __future__ import annotations

from tests.parity.variants.base import MAX_LENGTH, VOCABULARY, Variant

_SIZES = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": MAX_LENGTH}

VARIANTS = {
    "gpt2": Variant("GPT2Config", _SIZES),
    "gpt2_untied_scaled": Variant(
        "GPT2Config",
        {**_SIZES, "tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True, "n_inner": 96},
    ),
}
