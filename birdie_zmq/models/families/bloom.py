"""BLOOM and BLOOMZ: ALiBi in place of positions, a norm of the embedding (BigScience, 2022, arXiv:2211.05100)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.alibi import Alibi
from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD
from birdie_zmq.models.layers import Norm
from birdie_zmq.models.weight_map import (
    TensorSpec,
    column_parallel,
    embedding_spec,
    head_spec,
    linear_specs,
    norm_specs,
    row_parallel,
)

LAYER = "transformer.h.{}."
"""The prefix of a layer's tensors."""


def bloom(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type bloom.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    config.require("apply_residual_connection_post_layernorm", (False,))
    config.require("slow_but_exact", (False,))  # transformers then leaves out biases
    d, n_heads, n_layers = config.integer("hidden_size"), config.integer("n_head"), config.integer("n_layer")
    require_positive(hidden_size=d, n_head=n_heads, n_layer=n_layers)
    if d % n_heads:
        raise ValueError(f"hidden_size {d} is not a multiple of n_head {n_heads}")
    norm, vocab_size = Norm("layer", config.number("layer_norm_epsilon")), config.integer("vocab_size")
    layer = DecoderLayer(
        Attention(n_heads, n_heads, d // n_heads, alibi=Alibi(n_heads), fused="by_group"),
        FeedForward("gelu_pytorch_tanh"),
        norm,
        {
            **norm_specs(LAYER + "input_layernorm", d, bias=True, key="attention_norm"),
            **fused_specs(d, 4 * d, (n_heads, n_heads), bias=True),
            **norm_specs(LAYER + "post_attention_layernorm", d, bias=True, key="feed_forward_norm"),
        },
    )
    outer = {
        "embedding": embedding_spec("transformer.word_embeddings.weight", vocab_size, d),
        **norm_specs("transformer.word_embeddings_layernorm", d, bias=True, key="embedding_norm"),
        **norm_specs("transformer.ln_f", d, bias=True, key="final_norm"),
    }
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        vocab_size=vocab_size,
        max_length=None,
        layers=(layer,) * n_layers,
        outer=outer if tied else outer | {"head": head_spec(HEAD, vocab_size, d)},
        norm=norm,
        base="transformer.",
        tied_head=HEAD if tied else None,
    )


def fused_specs(d: int, f: int, heads: tuple[int, int], *, bias: bool) -> dict[str, TensorSpec]:
    """Return the matrices of a layer with one matrix for queries, keys and values, and their biases.

    Args:
        d: Width of the residual stream.
        f: Width of the feed-forward layer.
        heads: Number of query heads, and number of key/value heads.
        bias: Whether the matrices have biases.
    """
    fused = (heads[0] + 2 * heads[1]) * (d // heads[0])
    attention, feed_forward = LAYER + "self_attention.", LAYER + "mlp."
    return {
        **linear_specs(
            attention + "query_key_value", d, fused, column_parallel(heads[1]), bias=bias, key="query_key_value"
        ),
        **linear_specs(attention + "dense", d, d, row_parallel(heads[0]), bias=bias, key="output"),
        **linear_specs(feed_forward + "dense_h_to_4h", d, f, column_parallel(f), bias=bias, key="up"),
        **linear_specs(feed_forward + "dense_4h_to_h", f, d, row_parallel(f), bias=bias, key="down"),
    }
