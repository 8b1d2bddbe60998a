"""Mamba: selective state spaces, whose channels have decays of their own (Gu and Dao, 2023, arXiv:2312.00752)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.causal_convolution import causal_convolution, convolution_specs, convolution_state
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import LayerStep
from birdie_zmq.models.families.mamba_layers import MIXER, mamba_architecture
from birdie_zmq.models.layers import Weights, check_activation, linear
from birdie_zmq.models.recurrence import StateSpec
from birdie_zmq.models.selective_scan import Inputs, selective_scan
from birdie_zmq.models.weight_map import ShardSpec, TensorSpec, column_parallel, linear_specs, row_parallel


@dataclass(frozen=True)
class MambaMixer:
    """A mixer of Mamba, which is a `Recurrence`.

    Its weights are ``mixer_in`` [d, 2i], whose outputs are the inputs and a gate; ``convolution`` [i, 1, taps];
    ``selection`` [i, r + 2n], whose outputs are time steps of a low rank, keys and queries; ``time_step`` [r, i] with a bias;
    ``log_rate`` [i, n]; ``skip`` [i]; and ``mixer_out`` [i, d]. The state is computed in float32.

    Attributes:
        inner: The number of channels i.
        key_width: The numbers n that a channel keeps.
        rank: The rank r of time steps.
        taps: The number of tokens that the convolution spans.
        activation: The activation of the convolution.
    """

    inner: int
    key_width: int
    rank: int
    taps: int
    activation: str

    def __post_init__(self) -> None:
        require_positive(expand=self.inner, state_size=self.key_width, time_step_rank=self.rank, conv_kernel=self.taps)

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """The last inputs of the convolution, and the numbers of the channels."""
        by_channel = ShardSpec(0, self.inner)
        numbers = StateSpec((self.inner, self.key_width), "float32", by_channel)
        return convolution_state(self.inner, self.taps, by_channel), numbers

    def specs(self, width: int, *, bias: bool, convolution_bias: bool) -> dict[str, TensorSpec]:
        """Return its tensors, given the width d of the residual stream and which have a bias."""
        i, by_channel = self.inner, ShardSpec(0, self.inner)
        # A shard of the outputs of mixer_in holds inputs or gates, so devices exchange them.
        specs = linear_specs(MIXER + "in_proj", width, 2 * i, column_parallel(i), bias=bias, key="mixer_in")
        specs |= convolution_specs(MIXER + "conv1d", i, self.taps, by_channel, bias=convolution_bias, key="convolution")
        selected = self.rank + 2 * self.key_width
        specs |= linear_specs(MIXER + "x_proj", i, selected, row_parallel(i), key="selection")
        specs |= linear_specs(MIXER + "dt_proj", self.rank, i, column_parallel(i), bias=True, key="time_step")
        specs |= linear_specs(MIXER + "out_proj", i, width, row_parallel(i), bias=bias, key="mixer_out")
        specs["log_rate"] = TensorSpec(MIXER + "A_log", (i, self.key_width), shard=by_channel)
        return specs | {"skip": TensorSpec(MIXER + "D", (i,), shard=by_channel)}

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Compute the tokens of a step, as `Recurrence` describes it."""
        real = step.metadata.real
        convolved, numbers = step.states
        inputs, gate = jnp.split(linear(x, weights, "mixer_in"), 2, axis=-1)
        inputs, convolved = causal_convolution(inputs, convolved, weights, "convolution", self.activation, real)
        selected = linear(inputs, weights, "selection")
        low_rank, keys, queries = jnp.split(selected, (self.rank, self.rank + self.key_width), axis=-1)
        bias, rate, skip = (weights[key].astype(jnp.float32) for key in ("time_step_bias", "log_rate", "skip"))
        time_step = jax.nn.softplus((low_rank @ weights["time_step"]).astype(jnp.float32) + bias[None, None])
        if real is not None:
            time_step = jnp.where(real[..., None], time_step, 0.0)  # padding changes no state
        wide, keys, queries = (each.astype(jnp.float32) for each in (inputs, keys, queries))
        y, numbers = selective_scan(Inputs(wide, time_step, keys, queries), -jnp.exp(rate), numbers)
        y = (y + wide * skip[None, None]) * jax.nn.silu(gate.astype(jnp.float32))
        return linear(y.astype(x.dtype), weights, "mixer_out"), (convolved, numbers)


def mamba(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type mamba.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    width = config.integer("hidden_size")
    mixer = MambaMixer(
        inner=int(config.number("expand") * width),
        key_width=config.integer("state_size"),
        rank=config.integer("time_step_rank"),
        taps=config.integer("conv_kernel"),
        activation=check_activation(config.text("hidden_act")),
    )
    specs = mixer.specs(width, bias=config.flag("use_bias", False), convolution_bias=config.flag("use_conv_bias", True))
    return mamba_architecture(config, mixer, specs)
