"""GPT-OSS: a sink for every head, windows in every second layer, and clamped experts with biases (arXiv:2508.10925)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer
from birdie_zmq.models.experts import RoutedFeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes, read_windows
from birdie_zmq.models.families.expert_specs import read_counts, router_specs
from birdie_zmq.models.grouped import Product
from birdie_zmq.models.layers import Norm
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.routing import ChosenSoftmaxRouter
from birdie_zmq.models.weight_map import ShardSpec, TensorSpec


@dataclass(frozen=True)
class ClampedExperts(RoutedFeedForward):
    """Experts with clamped gates; the columns of ``experts_gate_up`` are a gate and a value in turn.

    Attributes:
        slope: The factor of the gate inside of its sigmoid.
        limit: The bound of gates from above, and of values from both sides.
    """

    slope: float
    limit: float

    def expert(self, x: jax.Array, product: Product) -> jax.Array:
        """Compute one expert, [rows, d] -> [rows, d]."""
        gate_up = product(x, "experts_gate_up")
        gate = jnp.minimum(gate_up[..., ::2], self.limit)
        up = jnp.clip(gate_up[..., 1::2], -self.limit, self.limit)
        return product((up + 1) * gate * jax.nn.sigmoid(gate * self.slope), "experts_down")


def gpt_oss(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type gpt_oss.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    config.require("hidden_act", ("silu",))
    sizes, (count, chosen) = Sizes.read(config), read_counts(config)
    norm = Norm("rms_float32", config.number("rms_norm_eps"))
    experts = _expert_specs(sizes, count)
    slope, limit = config.number("swiglu_alpha", 1.702), config.number("swiglu_limit", 7.0)
    feed_forward = ClampedExperts(ChosenSoftmaxRouter(chosen), count, "silu", experts, slope, limit)
    biased = ("query", "key", "value", "output") if config.flag("attention_bias", True) else ()
    specs = sizes.attention_specs(biased) | experts | router_specs("mlp.router", sizes.d_model, count, bias=True)
    specs |= sizes.norm_specs(attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm")
    specs["sinks"] = TensorSpec(LAYER + "self_attn.sinks", (sizes.n_heads,), shard=ShardSpec(0, sizes.n_heads))
    rope = read_rope(config, sizes.head_width)

    def layer(window: int | None) -> DecoderLayer:
        attention = Attention(sizes.n_heads, sizes.n_kv_heads, sizes.head_width, rope=rope, window=window)
        return DecoderLayer(attention, feed_forward, norm, specs)

    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(map(layer, read_windows(config, sizes.n_layers))),
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )


def _expert_specs(sizes: Sizes, count: int) -> dict[str, TensorSpec]:
    """Return the tensors of the experts; each holds all experts of a layer."""
    require_positive(num_local_experts=count)
    d, f, module = sizes.d_model, sizes.d_ff, LAYER + "mlp.experts."
    shapes = {
        "experts_gate_up": ("gate_up_proj", (count, d, 2 * f)),
        "experts_gate_up_bias": ("gate_up_proj_bias", (count, 2 * f)),
        "experts_down": ("down_proj", (count, f, d)),
        "experts_down_bias": ("down_proj_bias", (count, d)),
    }
    return {key: TensorSpec(module + name, shape, shard=ShardSpec(0, count)) for key, (name, shape) in shapes.items()}
