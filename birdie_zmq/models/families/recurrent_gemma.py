"""RecurrentGemma: Griffin's recurrent blocks, and local attention in some layers (arXiv:2404.07839, arXiv:2402.19427)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.causal_convolution import convolution_specs
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import NO_ATTENTION, Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes
from birdie_zmq.models.griffin import GriffinBlock
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import ShardSpec, TensorSpec, column_parallel, linear_specs, row_parallel

_RECURRENT, _ATTENTION = "recurrent", "attention"
_MODULE, _FEED_FORWARD = LAYER + "temporal_block.", LAYER + "mlp_block."


def recurrent_gemma(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type recurrent_gemma.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    # The configuration names twice the width of the feed-forward layers, and no length.
    inner = ConfigReader(values).integer("intermediate_size") // 2
    config = ConfigReader({"max_position_embeddings": 1, **values, "intermediate_size": inner})
    config.require("embeddings_scale_by_sqrt_dim", (True,))
    sizes, norm = Sizes.read(config), Norm("rms_offset", config.number("rms_norm_eps"))
    activation = check_activation(config.text("hidden_activation"))
    attention = Attention(
        sizes.n_heads,
        sizes.n_kv_heads,
        sizes.head_width,
        rope=read_rope(config, sizes.head_width, partial=True),
        window=config.integer("attention_window_size"),
    )
    block = GriffinBlock(
        config.integer("lru_width", sizes.d_model), sizes.n_heads, config.integer("conv1d_width"), activation
    )
    require_positive(lru_width=block.channels, conv1d_width=block.taps)
    specs = sizes.norm_specs(attention_norm="temporal_pre_norm", feed_forward_norm="channel_pre_norm")
    specs |= _feed_forward_specs(sizes)
    attention_specs, recurrence_specs = _attention_specs(config, sizes), _recurrence_specs(block, sizes.d_model)
    feed_forward = FeedForward(activation)
    layers = {
        _ATTENTION: DecoderLayer(attention, feed_forward, norm, specs | attention_specs),
        _RECURRENT: DecoderLayer(NO_ATTENTION, feed_forward, norm, specs | recurrence_specs, recurrence=block),
    }
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=config.integer("max_position_embeddings") if "max_position_embeddings" in values else None,
        layers=tuple(layers[kind] for kind in _read_types(config, sizes.n_layers)),
        outer=sizes.outer_specs(tied=tied, norm="model.final_norm"),
        norm=norm,
        tied_head=HEAD if tied else None,
        embedding_scale=float(ml_dtypes.bfloat16(sizes.d_model**0.5)),  # rounded so whatever the dtype of the weights
        logit_cap=config.number("logits_soft_cap"),
    )


def _read_types(config: ConfigReader, n_layers: int) -> tuple[str, ...]:
    """Return the kind of each layer: those of ``block_types``, repeated.

    Raises:
        ValueError: There are none, or one is unknown.
    """
    period = config.all_texts("block_types")
    unknown = sorted(set(period) - {_RECURRENT, _ATTENTION})
    if unknown or not period:
        raise ValueError(f"block_types must be a list of {_RECURRENT} and {_ATTENTION}, not {list(period)}")
    return (period * n_layers)[:n_layers]


def _feed_forward_specs(sizes: Sizes) -> dict[str, TensorSpec]:
    d, f = sizes.d_model, sizes.d_ff
    specs = linear_specs(_FEED_FORWARD + "gate_proj", d, f, column_parallel(f), bias=True, key="gate")
    specs |= linear_specs(_FEED_FORWARD + "up_proj", d, f, column_parallel(f), bias=True, key="up")
    return specs | linear_specs(_FEED_FORWARD + "down_proj", f, d, row_parallel(f), bias=True, key="down")


def _attention_specs(config: ConfigReader, sizes: Sizes) -> dict[str, TensorSpec]:
    """Return the tensors of attention, whose output always has a bias."""
    d, bias = sizes.d_model, config.flag("attention_bias", False)
    queries, keys = sizes.n_heads * sizes.head_width, sizes.n_kv_heads * sizes.head_width
    by_head, by_kv_head = column_parallel(sizes.n_heads), column_parallel(sizes.n_kv_heads)
    specs = linear_specs(_MODULE + "q_proj", d, queries, by_head, bias=bias, key="query")
    specs |= linear_specs(_MODULE + "k_proj", d, keys, by_kv_head, bias=bias, key="key")
    specs |= linear_specs(_MODULE + "v_proj", d, keys, by_kv_head, bias=bias, key="value")
    return specs | linear_specs(_MODULE + "o_proj", queries, d, row_parallel(sizes.n_heads), bias=True, key="output")


def _recurrence_specs(block: GriffinBlock, d: int) -> dict[str, TensorSpec]:
    c, n, gates = block.channels, block.blocks, _MODULE + "rg_lru."
    by_block = ShardSpec(0, n)
    specs = linear_specs(_MODULE + "linear_x", d, c, column_parallel(n), bias=True, key="recurrent_in")
    specs |= linear_specs(_MODULE + "linear_y", d, c, column_parallel(n), bias=True, key="branch")
    specs |= linear_specs(_MODULE + "linear_out", c, d, row_parallel(n), bias=True, key="output")
    specs |= convolution_specs(_MODULE + "conv_1d", c, block.taps, by_block, bias=True, key="convolution")
    specs["recurrent_param"] = TensorSpec(gates + "recurrent_param", (c,), shard=by_block)
    for name in ("input_gate", "recurrent_gate"):
        specs[name] = TensorSpec(f"{gates}{name}_weight", (n, c // n, c // n), shard=by_block)
        specs[f"{name}_bias"] = TensorSpec(f"{gates}{name}_bias", (n, c // n), shard=by_block)
    return specs
