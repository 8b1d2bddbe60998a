"""LFM 2: gated short convolutions, and grouped-query attention in some layers (Liquid AI, 2025, arXiv:2511.23404)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import FULL, HEAD, LAYER, Sizes
from birdie_zmq.models.layers import Norm
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.short_convolution import ShortConvolution
from birdie_zmq.models.weight_map import TensorSpec, column_parallel, linear_specs, norm_specs, row_parallel

_CONVOLUTION = "conv"


def lfm2(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type lfm2.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("rms", config.number("norm_eps"))
    types = config.texts("layer_types", sizes.n_layers)
    unknown = sorted(set(types) - {FULL, _CONVOLUTION})
    if unknown:
        raise ValueError(f"layer_types has the unknown type {unknown[0]!r}; supported: {FULL}, {_CONVOLUTION}")
    d, f, module = sizes.d_model, _feed_forward_width(config, sizes.d_ff), LAYER + "feed_forward."
    specs = {
        **linear_specs(module + "w1", d, f, column_parallel(f), key="gate"),
        **linear_specs(module + "w3", d, f, column_parallel(f), key="up"),
        **linear_specs(module + "w2", f, d, row_parallel(f), key="down"),
        **sizes.norm_specs(attention_norm="operator_norm", feed_forward_norm="ffn_norm"),
    }
    feed_forward = FeedForward("silu")
    attention = Attention(
        sizes.n_heads, sizes.n_kv_heads, sizes.head_width, rope=read_rope(config, sizes.head_width), norm=norm
    )
    attention_specs = sizes.attention_specs(output="out_proj")
    attention_specs |= norm_specs(LAYER + "self_attn.q_layernorm", sizes.head_width, key="query_norm")
    attention_specs |= norm_specs(LAYER + "self_attn.k_layernorm", sizes.head_width, key="key_norm")
    convolution, convolution_specs = _read_convolution(config, d)
    layers = {
        FULL: DecoderLayer(attention, feed_forward, norm, specs | attention_specs),
        _CONVOLUTION: DecoderLayer(convolution, feed_forward, norm, specs | convolution_specs),
    }
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(layers[kind] for kind in types),
        outer=sizes.outer_specs(tied=tied, norm="model.embedding_norm"),
        norm=norm,
        tied_head=HEAD if tied else None,
    )


def _read_convolution(config: ConfigReader, d: int) -> tuple[ShortConvolution, dict[str, TensorSpec]]:
    """Return the convolution, and its tensors.

    Raises:
        ValueError: The width is odd, so a cache cannot hold its halves.
    """
    taps, bias, module = config.integer("conv_L_cache"), config.flag("conv_bias", False), LAYER + "conv."
    require_positive(conv_L_cache=taps)
    if d % 2:
        raise ValueError(f"hidden_size must be even for short convolutions, not {d}")
    specs = linear_specs(module + "in_proj", d, 3 * d, bias=bias, key="convolution_in")
    specs |= linear_specs(module + "out_proj", d, d, bias=bias, key="output")
    specs["convolution"] = TensorSpec(module + "conv.weight", (d, 1, taps))
    if bias:
        specs["convolution_bias"] = TensorSpec(module + "conv.bias", (d,))
    return ShortConvolution(1, 1, d // 2, taps=taps), specs


def _feed_forward_width(config: ConfigReader, width: int) -> int:
    """Return the width of the feed-forward layers, which the configuration may name before an adjustment."""
    if not config.flag("block_auto_adjust_ff_dim", True):
        return width
    adjusted, factor = int(2 * width / 3), config.optional_number("block_ffn_dim_multiplier")
    if factor is None:
        return adjusted
    unit = config.integer("block_multiple_of")
    require_positive(block_multiple_of=unit)
    return unit * ((int(factor * adjusted) + unit - 1) // unit)
