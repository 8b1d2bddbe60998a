"""Variants of OPT and Galactica."""

from __future__ import annotations

from typing import Any

from tests.parity.variants.base import MAX_LENGTH, VOCABULARY, Variant


def _opt(**values: Any) -> Variant:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "ffn_dim": 96,
        "max_position_embeddings": MAX_LENGTH,
    }
    return Variant("OPTConfig", {**sizes, **values})


VARIANTS = {
    "opt": _opt(),
    "opt_norms_after": _opt(do_layer_norm_before=False, word_embed_proj_dim=48),  # OPT-350m
    "opt_untied": _opt(tie_word_embeddings=False, _remove_final_layer_norm=True),
    "opt_galactica": _opt(enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"),
}
