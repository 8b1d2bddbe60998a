"""Variants of Falcon.

Those with ALiBi are compared with ``sdpa``, transformers' default: its ``eager`` attention adds the bias twice. bfloat16
holds positions up to 256 exactly, so they are longer.
"""

from __future__ import annotations

from typing import Any

from tests.parity.variants.base import MAX_LENGTH, VOCABULARY, Variant


def _falcon(*, attention: str = "eager", rewrite: dict[str, Any] | None = None, **values: Any) -> Variant:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
    }
    return Variant("FalconConfig", {**sizes, **values}, rewrite=rewrite or {}, attention=attention)


def _alibi(**values: Any) -> Variant:
    return _falcon(attention="sdpa", alibi=True, max_position_embeddings=4 * MAX_LENGTH, **values)


VARIANTS = {
    "falcon": _falcon(),
    "falcon_grouped": _falcon(new_decoder_architecture=True, num_kv_heads=2),  # Falcon-40B
    "falcon_grouped_one_norm": _falcon(  # Falcon2-11B
        new_decoder_architecture=True,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
        ffn_hidden_size=96,
        tie_word_embeddings=False,
        rewrite={"rope_parameters": None, "rope_theta": 500_042.0, "rope_scaling": None},
        rope_parameters={"rope_type": "default", "rope_theta": 500_042.0},
    ),
    "falcon_alibi": _alibi(bias=True, multi_query=False, parallel_attn=False),  # Falcon-RW
    "falcon_alibi_parallel": _alibi(hidden_size=72, num_attention_heads=6),
    "falcon_rope_linear": _falcon(
        bias=True, rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    ),
}
