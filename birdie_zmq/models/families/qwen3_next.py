"""Qwen 3 Next and Qwen 3.5: gated delta rules, and gated attention in some layers, with or without experts.

Qwen 3 Next is arXiv:2412.06464 and arXiv:2505.06708 with many small experts. Qwen 3.5 (text) has the same layers with other
tensors; its experts are one tensor in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.causal_convolution import convolution_specs
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import NO_ATTENTION, DecoderLayer, FeedForward, FeedForwardLayer
from birdie_zmq.models.experts import RoutedFeedForward
from birdie_zmq.models.families.common import FULL, HEAD, LAYER, Sizes
from birdie_zmq.models.families.expert_specs import (
    expert_specs,
    read_counts,
    read_routed_layers,
    router_specs,
    shared_specs,
)
from birdie_zmq.models.gated_attention import GatedAttention
from birdie_zmq.models.gated_delta_net import GatedDeltaNet
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.routing import SoftmaxRouter
from birdie_zmq.models.weight_map import TensorSpec, column_parallel, linear_specs, norm_specs, row_parallel

_DELTA, _MODULE = "linear_attention", LAYER + "linear_attn."

Specs = dict[str, TensorSpec]


def qwen3_next(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type qwen3_next.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, activation = Sizes.read(config), check_activation(config.text("hidden_act"))
    experts = _read_experts(config, sizes.d_model)
    dense: tuple[FeedForwardLayer, Specs] = FeedForward(activation), sizes.feed_forward_specs()
    routed = read_routed_layers(config, sizes.n_layers)
    return _build(config, sizes, _fused_specs, tuple(experts if is_routed else dense for is_routed in routed))


def qwen3_5(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type qwen3_5_text.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, activation = Sizes.read(config), check_activation(config.text("hidden_act"))
    dense: tuple[FeedForwardLayer, Specs] = FeedForward(activation), sizes.feed_forward_specs()
    return _build(config, sizes, _separate_specs, (dense,) * sizes.n_layers)


def qwen3_5_moe(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type qwen3_5_moe_text; arguments and errors as for `qwen3_5`."""
    # No layer is dense, so the configuration names no width of dense layers.
    config = ConfigReader({**values, "intermediate_size": values["moe_intermediate_size"]})
    config.require("norm_topk_prob", (True,))
    sizes = Sizes.read(config)
    return _build(config, sizes, _separate_specs, (_read_experts(config, sizes.d_model),) * sizes.n_layers)


def _build(
    config: ConfigReader,
    sizes: Sizes,
    delta_specs: Callable[[GatedDeltaNet, int], Specs],
    feed_forwards: tuple[tuple[FeedForwardLayer, Specs], ...],
) -> Architecture:
    """Return the decoder, given the projections of its delta rules, and the feed-forward layer of each layer.

    Raises:
        ValueError: A layer type is unknown, or a size does not fit another.
    """
    config.require("attn_output_gate", (True,))
    types, norm = config.texts("layer_types", sizes.n_layers), Norm("rms_offset", config.number("rms_norm_eps"))
    unknown = sorted(set(types) - {FULL, _DELTA})
    if unknown:
        raise ValueError(f"layer_types has the unknown type {unknown[0]!r}; supported: {FULL}, {_DELTA}")
    specs = sizes.norm_specs(attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm")
    rope = read_rope(config, sizes.head_width, partial=True)
    attention = GatedAttention(sizes.n_heads, sizes.n_kv_heads, sizes.head_width, rope=rope, norm=norm)
    attention_specs = _attention_specs(config, sizes)
    delta = _read_delta(config)
    recurrence_specs = _recurrence_specs(delta, sizes.d_model) | delta_specs(delta, sizes.d_model)

    def layer(kind: str, feed_forward: FeedForwardLayer, own: Specs) -> DecoderLayer:
        if kind == FULL:
            return DecoderLayer(attention, feed_forward, norm, specs | own | attention_specs)
        return DecoderLayer(NO_ATTENTION, feed_forward, norm, specs | own | recurrence_specs, recurrence=delta)

    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(layer(kind, *own) for kind, own in zip(types, feed_forwards, strict=True)),
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )


def _attention_specs(config: ConfigReader, sizes: Sizes) -> Specs:
    """Return the tensors of attention, whose queries come with gates."""
    has_bias = config.flag("attention_bias", False)
    specs = sizes.attention_specs(("query", "key", "value", "output") * has_bias)
    by_head, both = column_parallel(sizes.n_heads), 2 * sizes.n_heads * sizes.head_width
    specs |= linear_specs(LAYER + "self_attn.q_proj", sizes.d_model, both, by_head, bias=has_bias, key="query")
    specs |= norm_specs(LAYER + "self_attn.q_norm", sizes.head_width, key="query_norm")
    return specs | norm_specs(LAYER + "self_attn.k_norm", sizes.head_width, key="key_norm")


def _read_delta(config: ConfigReader) -> GatedDeltaNet:
    """Return the delta rule of all layers that have one.

    Raises:
        ValueError: A size is below 1, or the value heads are not a multiple of the key heads.
    """
    keys = ("num_value_heads", "num_key_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    sizes = [config.integer(f"linear_{key}") for key in keys]
    require_positive(**{f"linear_{key}": size for key, size in zip(keys, sizes, strict=True)})
    heads, key_heads, key_width, value_width, taps = sizes
    return GatedDeltaNet(
        heads=heads,
        key_heads=key_heads,
        key_width=key_width,
        value_width=value_width,
        taps=taps,
        activation=check_activation(config.text("hidden_act")),
        norm=Norm("rms", config.number("rms_norm_eps")),
    )


def _recurrence_specs(delta: GatedDeltaNet, d: int) -> Specs:
    """Return the tensors of a delta rule without its projections."""
    specs = {
        "decay_rate": TensorSpec(_MODULE + "A_log", (delta.heads,)),
        "decay_bias": TensorSpec(_MODULE + "dt_bias", (delta.heads,)),
    }
    specs |= convolution_specs(_MODULE + "conv1d", delta.channels, delta.taps, bias=False, key="convolution")
    specs |= norm_specs(_MODULE + "norm", delta.value_width, key="gated_norm")
    values = delta.heads * delta.value_width
    return specs | linear_specs(_MODULE + "out_proj", values, d, row_parallel(delta.heads), key="output")


def _fused_specs(delta: GatedDeltaNet, d: int) -> Specs:
    """Return the projections of Qwen 3 Next, which are ordered by key head."""
    by_head = column_parallel(delta.key_heads)
    outputs = delta.channels + delta.heads * delta.value_width
    specs = linear_specs(_MODULE + "in_proj_qkvz", d, outputs, by_head, key="delta_in")
    return specs | linear_specs(_MODULE + "in_proj_ba", d, 2 * delta.heads, by_head, key="delta_gates")


def _separate_specs(delta: GatedDeltaNet, d: int) -> Specs:
    """Return the projections of Qwen 3.5."""
    by_head, values = column_parallel(delta.heads), delta.heads * delta.value_width
    # A shard of this one holds parts of queries, keys or values, so devices exchange its outputs.
    specs = linear_specs(
        _MODULE + "in_proj_qkv", d, delta.channels, column_parallel(delta.key_heads), key="delta_mixed"
    )
    specs |= linear_specs(_MODULE + "in_proj_z", d, values, by_head, key="delta_output_gate")
    specs |= linear_specs(_MODULE + "in_proj_b", d, delta.heads, by_head, key="delta_rate")
    return specs | linear_specs(_MODULE + "in_proj_a", d, delta.heads, by_head, key="delta_decay")


def _read_experts(config: ConfigReader, d: int) -> tuple[RoutedFeedForward, Specs]:
    """Return the layer of experts, and its tensors."""
    (count, chosen), inner = read_counts(config), config.integer("moe_intermediate_size")
    experts = expert_specs(LAYER + "mlp.experts.", d, inner, count)
    router = SoftmaxRouter(chosen, config.flag("norm_topk_prob", True))
    specs = experts | router_specs("mlp.gate", d, count)
    specs |= shared_specs(LAYER + "mlp.shared_expert.", d, config.integer("shared_expert_intermediate_size"))
    specs |= linear_specs(LAYER + "mlp.shared_expert_gate", d, 1, key="shared_router")
    return RoutedFeedForward(router, count, check_activation(config.text("hidden_act")), experts), specs
