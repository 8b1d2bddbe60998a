"""Mixtral and OLMoE: all layers have experts (arXiv:2401.04088, arXiv:2409.02060).

Mixtral is Mistral with experts, whose shares add up to 1. OLMoE normalises all heads of queries and keys at once, and uses
the probabilities of the router as shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer
from birdie_zmq.models.experts import RoutedFeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes
from birdie_zmq.models.families.expert_specs import expert_specs, read_counts, router_specs
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.routing import SoftmaxRouter
from birdie_zmq.models.weight_map import norm_specs


def mixtral(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type mixtral.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, (count, chosen) = Sizes.read(config), read_counts(config)
    block = LAYER + "block_sparse_moe."
    experts = expert_specs(block + "experts.", sizes.d_model, sizes.d_ff, count, ("w1", "w3", "w2"))
    router = SoftmaxRouter(chosen, normalised=True)
    feed_forward = RoutedFeedForward(router, count, check_activation(config.text("hidden_act")), experts)
    specs = sizes.attention_specs() | router_specs("block_sparse_moe.gate", sizes.d_model, count)
    return _all_layers_equal(config, sizes, feed_forward, specs, config.optional_integer("sliding_window"))


def olmoe(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type olmoe.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    config.require("clip_qkv", (None,))
    sizes, (count, chosen) = Sizes.read(config), read_counts(config)
    experts = expert_specs(LAYER + "mlp.experts.", sizes.d_model, sizes.d_ff, count)
    router = SoftmaxRouter(chosen, config.flag("norm_topk_prob", False))
    feed_forward = RoutedFeedForward(router, count, check_activation(config.text("hidden_act")), experts)
    biased = ("query", "key", "value", "output") if config.flag("attention_bias", False) else ()
    specs = sizes.attention_specs(biased) | router_specs("mlp.gate", sizes.d_model, count)
    specs |= norm_specs(LAYER + "self_attn.q_norm", sizes.n_heads * sizes.head_width, key="query_norm")
    specs |= norm_specs(LAYER + "self_attn.k_norm", sizes.n_kv_heads * sizes.head_width, key="key_norm")
    return _all_layers_equal(config, sizes, feed_forward, specs, None)


def _all_layers_equal(
    config: ConfigReader, sizes: Sizes, feed_forward: RoutedFeedForward, specs: Mapping[str, Any], window: int | None
) -> Architecture:
    """Return a decoder of equal layers, given the tensors of a layer without those of its norms and experts."""
    norm, tied = Norm("rms", config.number("rms_norm_eps")), config.flag("tie_word_embeddings", False)
    norms = sizes.norm_specs(attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm")
    rope = read_rope(config, sizes.head_width)
    attention = Attention(sizes.n_heads, sizes.n_kv_heads, sizes.head_width, rope=rope, window=window, norm=norm)
    layer = DecoderLayer(attention, feed_forward, norm, {**specs, **norms, **feed_forward.specs})
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=(layer,) * sizes.n_layers,
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )
