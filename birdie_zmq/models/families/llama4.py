"""Llama 4 (text): experts whose inputs are scaled, beside one that every token uses, and some layers without positions.

Layers with positions attend within chunks of ``attention_chunk_size`` tokens, so that is the longest supported text.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.experts import RoutedFeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes
from birdie_zmq.models.families.expert_specs import read_counts, router_specs, shared_specs
from birdie_zmq.models.grouped import ExpertWeights, GroupedProducts
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.routing import ChosenSigmoidRouter, Routing
from birdie_zmq.models.weight_map import ShardSpec, TensorSpec, column_parallel, linear_specs, row_parallel

_CHUNKED = "chunked_attention"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScaledInputExperts(RoutedFeedForward):
    """Experts that get a token multiplied by its share; their outputs are added as they are."""

    def mix(self, x: jax.Array, routing: Routing, weights: ExpertWeights, platform: str) -> jax.Array:
        """Add the outputs of each token's experts: [b, t, d] -> float32 [b, t, d]."""
        chosen = routing.experts.shape[-1]
        shares = routing.shares.reshape(-1, chosen, 1).astype(x.dtype)
        grouped = GroupedProducts(weights, self.expert, platform)
        y = grouped(x.reshape(-1, 1, x.shape[-1]) * shares, routing.experts.reshape(-1, chosen))
        return y.astype(jnp.float32).sum(axis=1).reshape(x.shape)


def llama4(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type llama4_text.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("rms", config.number("rms_norm_eps"))
    biased = ("query", "key", "value", "output") if config.flag("attention_bias", False) else ()
    specs = sizes.attention_specs(biased)
    specs |= sizes.norm_specs(attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm")
    routed, routed_specs = _read_experts(config, sizes)
    dense, dense_specs = FeedForward(routed.activation), _dense_specs(config, sizes)
    rotated, unrotated = _read_attentions(config, sizes)
    routed_layers, with_positions = set(config.integers("moe_layers")), config.integers("no_rope_layers")
    if len(with_positions) < sizes.n_layers:
        raise ValueError(f"no_rope_layers must have an entry for each of {sizes.n_layers} layers")

    def layer(number: int) -> DecoderLayer:
        attention = rotated if with_positions[number] else unrotated
        if number in routed_layers:
            return DecoderLayer(attention, routed, norm, specs | routed_specs)
        return DecoderLayer(attention, dense, norm, specs | dense_specs)

    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(map(layer, range(sizes.n_layers))),
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )


def _read_attentions(config: ConfigReader, sizes: Sizes) -> tuple[Attention, Attention]:
    """Return the attention with positions, and that without.

    Raises:
        ValueError: A layer without positions attends in chunks, or some of those with positions do not.
    """
    types, with_positions = config.texts("layer_types", sizes.n_layers), config.integers("no_rope_layers")
    chunk = config.optional_integer("attention_chunk_size")
    if any((kind == _CHUNKED) != bool(chunk and has) for kind, has in zip(types, with_positions, strict=False)):
        raise ValueError(f"layer_types must be {_CHUNKED} exactly for the layers with positions")
    if chunk is not None and chunk < sizes.max_length:
        logger.warning(
            "Llama 4 is supported within a chunk of %d tokens, which is now max_length; the model's own "
            "max_position_embeddings is %d",
            chunk,
            sizes.max_length,
        )
    rope = replace(read_rope(config, sizes.head_width), interleaved=True, position_limit=chunk)
    heads, epsilon = (sizes.n_heads, sizes.n_kv_heads, sizes.head_width), config.number("rms_norm_eps")
    # transformers normalises after the rotation, which does not change a head's length.
    has_norm = config.flag("use_qk_norm", True)
    norm = Norm("rms", epsilon, weightless=("query_norm", "key_norm")) if has_norm else None
    growth = None
    if config.flag("attn_temperature_tuning", True):
        growth = (config.number("attn_scale"), config.integer("floor_scale"), 1)
    return Attention(*heads, rope=rope, norm=norm), Attention(*heads, query_growth=growth)


def _read_experts(config: ConfigReader, sizes: Sizes) -> tuple[RoutedFeedForward, dict[str, TensorSpec]]:
    """Return the layer of experts, and its tensors."""
    count, chosen = read_counts(config)
    d, f, module, divided = sizes.d_model, sizes.d_ff, "feed_forward.", ShardSpec(0, count)
    experts = {
        "experts_gate_up": TensorSpec(LAYER + module + "experts.gate_up_proj", (count, d, 2 * f), shard=divided),
        "experts_down": TensorSpec(LAYER + module + "experts.down_proj", (count, f, d), shard=divided),
    }
    specs = experts | router_specs(module + "router", d, count) | shared_specs(LAYER + module + "shared_expert.", d, f)
    activation = check_activation(config.text("hidden_act"))
    return ScaledInputExperts(ChosenSigmoidRouter(chosen), count, activation, experts), specs


def _dense_specs(config: ConfigReader, sizes: Sizes) -> dict[str, TensorSpec]:
    """Return the matrices of a layer without experts."""
    d, f, module = sizes.d_model, config.integer("intermediate_size_mlp"), LAYER + "feed_forward."
    return {
        **linear_specs(module + "gate_proj", d, f, column_parallel(f), key="gate"),
        **linear_specs(module + "up_proj", d, f, column_parallel(f), key="up"),
        **linear_specs(module + "down_proj", f, d, row_parallel(f), key="down"),
    }
