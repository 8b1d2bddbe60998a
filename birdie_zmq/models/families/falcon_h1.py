"""Falcon H1: attention beside a mixer of Mamba 2 in each layer (Falcon-LLM team, 2025, arXiv:2507.22448)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.attention import KeysValues
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward, LayerStep
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes
from birdie_zmq.models.layers import ACTIVATIONS, Norm, Weights, check_activation, linear, scale
from birdie_zmq.models.mamba2_mixer import Mamba2Mixer, MixerScales
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import TensorSpec, column_parallel, linear_specs, row_parallel


@dataclass(frozen=True)
class ScaledAttention(Attention):
    """Attention whose input and output are multiplied by numbers."""

    input_scale: float = 1.0
    output_scale: float = 1.0

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, KeysValues | None]:
        """Attend from x [b, t, d], as `Attention` does."""
        y, own = super().__call__(scale(x, self.input_scale), weights, step)
        return scale(y, self.output_scale), own


@dataclass(frozen=True)
class ScaledFeedForward(FeedForward):
    """A gated feed-forward layer; the input of the activation and the output are multiplied by numbers."""

    gate_scale: float = 1.0
    output_scale: float = 1.0

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> jax.Array:
        """Apply the layer, [b, t, d] -> [b, t, d]."""
        del step
        gate = ACTIVATIONS[self.activation](scale(linear(x, weights, "gate"), self.gate_scale))
        return scale(linear(linear(x, weights, "up") * gate, weights, "down"), self.output_scale)


def falcon_h1(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type falcon_h1.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("rms", config.number("rms_norm_eps"))
    mixer, mixer_specs = _read_mixer(config, sizes)
    gate_scale, down_scale = config.numbers("mlp_multipliers", 2)
    attention = ScaledAttention(
        sizes.n_heads,
        sizes.n_kv_heads,
        sizes.head_width,
        # Scores are linear in the keys.
        scale=sizes.head_width**-0.5 * config.number("key_multiplier", 1.0),
        rope=read_rope(config, sizes.head_width),
        input_scale=config.number("attention_in_multiplier", 1.0),
        output_scale=config.number("attention_out_multiplier", 1.0),
    )
    biased = {"query", "key", "value", "output"} if config.flag("attention_bias", False) else set()
    specs = sizes.attention_specs(biased) | _feed_forward_specs(config, sizes) | mixer_specs
    specs |= sizes.norm_specs(attention_norm="input_layernorm", feed_forward_norm="pre_ff_layernorm")
    activation = check_activation(config.text("hidden_act"))
    layer = DecoderLayer(
        attention, ScaledFeedForward(activation, gate_scale, down_scale), norm, specs, recurrence=mixer
    )
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=(layer,) * sizes.n_layers,
        outer=sizes.outer_specs(tied=tied, norm="model.final_layernorm"),
        norm=norm,
        tied_head=HEAD if tied else None,
        embedding_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=config.number("lm_head_multiplier", 1.0),
    )


def _read_mixer(config: ConfigReader, sizes: Sizes) -> tuple[Mamba2Mixer, dict[str, TensorSpec]]:
    """Return the mixer, and its tensors.

    Raises:
        ValueError: A size is of the wrong type, or its heads do not have the inner width together.
    """
    low, high = config.numbers("time_step_limit", 2)
    inner = config.optional_integer("mamba_d_ssm")
    if inner is None:
        inner = config.integer("mamba_expand") * sizes.d_model
    mixer = Mamba2Mixer(
        heads=config.integer("mamba_n_heads"),
        head_width=config.integer("mamba_d_head"),
        groups=config.integer("mamba_n_groups"),
        key_width=config.integer("mamba_d_state"),
        taps=config.integer("mamba_d_conv"),
        activation=check_activation(config.text("hidden_act")),
        norm=Norm("rms", config.number("rms_norm_eps")) if config.flag("mamba_rms_norm", False) else None,
        gate="after_norm" if config.flag("mamba_norm_before_gate", True) else "before_norm",
        time_step_limit=(low, high),
        scales=MixerScales(
            config.number("ssm_in_multiplier", 1.0),
            config.numbers("ssm_multipliers", 5),
            config.number("ssm_out_multiplier", 1.0),
        ),
    )
    if mixer.inner != inner:
        raise ValueError(
            f"mamba_n_heads {mixer.heads} times mamba_d_head {mixer.head_width} is not the inner width {inner} of the mixer"
        )
    specs = mixer.specs(
        LAYER + "mamba.",
        sizes.d_model,
        bias=config.flag("mamba_proj_bias", False),
        output_bias=config.flag("projectors_bias", False),
        convolution_bias=config.flag("mamba_conv_bias", True),
    )
    return mixer, specs


def _feed_forward_specs(config: ConfigReader, sizes: Sizes) -> dict[str, TensorSpec]:
    """Return the tensors of the feed-forward layer."""
    d, f, module, bias = sizes.d_model, sizes.d_ff, LAYER + "feed_forward.", config.flag("mlp_bias", False)
    specs = linear_specs(module + "gate_proj", d, f, column_parallel(f), bias=bias, key="gate")
    specs |= linear_specs(module + "up_proj", d, f, column_parallel(f), bias=bias, key="up")
    return specs | linear_specs(module + "down_proj", f, d, row_parallel(f), bias=bias, key="down")
