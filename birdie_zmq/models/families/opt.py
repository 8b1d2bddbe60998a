"""OPT and Galactica: learned positions, layer norms, biases in every layer (Zhang et al., 2022, arXiv:2205.01068).

Members differ: OPT-350m has norms after the sums of the residual stream, no norm after the last layer, and an embedding
narrower than the residual stream. Galactica's large models have neither biases nor weights of norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.weight_map import (
    TensorSpec,
    column_parallel,
    embedding_spec,
    head_spec,
    linear_specs,
    norm_specs,
    row_parallel,
)

_BASE = "model.decoder."
_LAYER = _BASE + "layers.{}."
_OFFSET = 2
"""The row of the positions that belongs to the first token."""

_EPSILON = 1e-5
"""That of PyTorch's layer norm; configurations have none."""


def opt(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type opt.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or does not fit the others.
    """
    config = ConfigReader(values)
    d, n_heads, n_layers = (config.integer(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    vocab_size, positions = config.integer("vocab_size"), config.integer("max_position_embeddings")
    require_positive(hidden_size=d, num_attention_heads=n_heads, num_hidden_layers=n_layers)
    if d % n_heads:
        raise ValueError(f"hidden_size {d} is not a multiple of num_attention_heads {n_heads}")
    norm_before, has_weights = (
        config.flag(key, True) for key in ("do_layer_norm_before", "layer_norm_elementwise_affine")
    )
    norms = {"attention_norm": _LAYER + "self_attn_layer_norm", "feed_forward_norm": _LAYER + "final_layer_norm"}
    if norm_before and not config.flag("_remove_final_layer_norm", False):
        norms["final_norm"] = _BASE + "final_layer_norm"
    norm = Norm("layer", _EPSILON, weightless=() if has_weights else tuple(norms))
    weights = {key: norm_specs(name, d, bias=True, key=key) if has_weights else {} for key, name in norms.items()}
    layer = DecoderLayer(
        Attention(n_heads, n_heads, d // n_heads),
        FeedForward(check_activation(config.text("activation_function"))),
        norm,
        _layer_specs(config, d, n_heads) | weights["attention_norm"] | weights["feed_forward_norm"],
        norm_after_sum=not norm_before,
    )
    width = config.integer("word_embed_proj_dim", d)
    outer = {
        "embedding": embedding_spec(_BASE + "embed_tokens.weight", vocab_size, width),
        "positions": TensorSpec(_BASE + "embed_positions.weight", (positions + _OFFSET, d)),
        **weights.get("final_norm", {}),
    }
    if width != d:
        outer |= linear_specs(_BASE + "project_in", width, d, key="project_in")
        outer |= linear_specs(_BASE + "project_out", d, width, key="project_out")
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        vocab_size=vocab_size,
        max_length=positions,
        layers=(layer,) * n_layers,
        outer=outer if tied else outer | {"head": head_spec(HEAD, vocab_size, width)},
        norm=norm,
        tied_head=HEAD if tied else None,
        position_offset=_OFFSET,
    )


def _layer_specs(config: ConfigReader, d: int, n_heads: int) -> dict[str, TensorSpec]:
    """Return the matrices of a layer, and their biases."""
    f, bias = config.integer("ffn_dim"), config.flag("enable_bias", True)
    by_head, attention = column_parallel(n_heads), _LAYER + "self_attn."
    return {
        **linear_specs(attention + "q_proj", d, d, by_head, bias=bias, key="query"),
        **linear_specs(attention + "k_proj", d, d, by_head, bias=bias, key="key"),
        **linear_specs(attention + "v_proj", d, d, by_head, bias=bias, key="value"),
        **linear_specs(attention + "out_proj", d, d, row_parallel(n_heads), bias=bias, key="output"),
        **linear_specs(_LAYER + "fc1", d, f, column_parallel(f), bias=bias, key="up"),
        **linear_specs(_LAYER + "fc2", f, d, row_parallel(f), bias=bias, key="down"),
    }
