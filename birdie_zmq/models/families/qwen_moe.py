"""Qwen 1.5 and 2 with experts, and Qwen 3 with experts (arXiv:2407.10671, arXiv:2505.09388).

Some layers may be dense. Qwen 2 has biases, and an expert with a gate of its own that every token uses; Qwen 3 normalises
the heads of queries and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.experts import RoutedFeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes, read_windows
from birdie_zmq.models.families.expert_specs import (
    expert_specs,
    read_counts,
    read_routed_layers,
    router_specs,
    shared_specs,
)
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.routing import SoftmaxRouter
from birdie_zmq.models.weight_map import TensorSpec, linear_specs, norm_specs


def qwen_moe(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type qwen2_moe or qwen3_moe.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, (count, chosen) = Sizes.read(config), read_counts(config)
    is_qwen3, norm = config.text("model_type") == "qwen3_moe", Norm("rms", config.number("rms_norm_eps"))
    activation = check_activation(config.text("hidden_act"))
    inner = config.integer("moe_intermediate_size")
    router = SoftmaxRouter(chosen, config.flag("norm_topk_prob", False))
    experts = expert_specs(LAYER + "mlp.experts.", sizes.d_model, inner, count)
    routed, dense = RoutedFeedForward(router, count, activation, experts), FeedForward(activation)
    routed_specs = experts | router_specs("mlp.gate", sizes.d_model, count)
    if not is_qwen3:
        shared = config.integer("shared_expert_intermediate_size")
        routed_specs |= shared_specs(LAYER + "mlp.shared_expert.", sizes.d_model, shared)
        routed_specs |= linear_specs(LAYER + "mlp.shared_expert_gate", sizes.d_model, 1, key="shared_router")
    rope, attention_specs = read_rope(config, sizes.head_width), _attention_specs(config, sizes, is_qwen3=is_qwen3)

    def layer(window: int | None, is_routed: bool) -> DecoderLayer:
        attention = Attention(sizes.n_heads, sizes.n_kv_heads, sizes.head_width, rope=rope, window=window, norm=norm)
        own = routed_specs if is_routed else sizes.feed_forward_specs()
        return DecoderLayer(attention, routed if is_routed else dense, norm, attention_specs | own)

    if is_qwen3:
        windows: tuple[int | None, ...] = (config.optional_integer("sliding_window"),) * sizes.n_layers
    else:
        windows = read_windows(config, sizes.n_layers)
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(map(layer, windows, read_routed_layers(config, sizes.n_layers))),
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )


def _attention_specs(config: ConfigReader, sizes: Sizes, *, is_qwen3: bool) -> dict[str, TensorSpec]:
    """Return the tensors of a layer without its feed-forward layer."""
    if is_qwen3:
        biased = ("query", "key", "value", "output") * config.flag("attention_bias", False)
        specs = sizes.attention_specs(biased)
        specs |= norm_specs(LAYER + "self_attn.q_norm", sizes.head_width, key="query_norm")
        specs |= norm_specs(LAYER + "self_attn.k_norm", sizes.head_width, key="key_norm")
    else:
        specs = sizes.attention_specs(("query", "key", "value") * config.flag("qkv_bias", True))
    return specs | sizes.norm_specs(attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm")
