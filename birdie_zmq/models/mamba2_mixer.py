"""The mixer of Mamba 2: a convolution and a recurrence between two matrices (Dao and Gu, 2024, arXiv:2405.21060).

Shape letters: b rows, t position in a row, d width of the residual stream, i inner width, h heads, p width of a head
(i = h * p), g groups of heads, n width of a key, c channels of the convolution (c = i + 2 * g * n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from birdie_zmq.models.causal_convolution import causal_convolution, convolution_specs, convolution_state
from birdie_zmq.models.config_fields import require_positive
from birdie_zmq.models.decoder_layer import LayerStep
from birdie_zmq.models.layers import Norm, Weights, linear, scale
from birdie_zmq.models.recurrence import StateSpec
from birdie_zmq.models.state_space_duality import Inputs, chunked_scan
from birdie_zmq.models.weight_map import ShardSpec, TensorSpec, column_parallel, linear_specs, row_parallel


class MixerScales(NamedTuple):
    """The factors of Falcon H1: of the input, of the parts of ``mixer_in`` in their order, and of the output."""

    input: float = 1.0
    parts: tuple[float, ...] = (1.0,) * 5
    output: float = 1.0


NO_SCALES = MixerScales()


@dataclass(frozen=True)
class Mamba2Mixer:
    """A mixer of Mamba 2, which is a `Recurrence`.

    Its weights are ``mixer_in`` [d, 2i + 2gn + h], whose outputs are a gate, the inputs of the heads, keys, queries and time
    steps; ``convolution`` [c, 1, taps]; ``time_step_bias``, ``log_rate`` and ``skip`` [h]; ``gated_norm`` [i] if it has a
    norm; and ``mixer_out`` [i, d]. The state is computed in float32.

    Attributes:
        heads: The number of heads h.
        head_width: The width p of a head.
        groups: The number of groups g. The heads of a group share keys and queries, and the norm is computed by group.
        key_width: The width n of a key.
        taps: The number of tokens that the convolution spans.
        activation: The activation of the convolution.
        norm: The norm of the outputs; None if they are multiplied by the gate alone.
        gate: Whether the gate is applied before or after the norm.
        time_step_limit: The least and the greatest time step.
        scales: The factors of Falcon H1.
    """

    heads: int
    head_width: int
    groups: int
    key_width: int
    taps: int
    activation: str
    norm: Norm | None
    gate: Literal["before_norm", "after_norm"] = "before_norm"
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    scales: MixerScales = NO_SCALES

    def __post_init__(self) -> None:
        require_positive(
            heads=self.heads,
            head_width=self.head_width,
            groups=self.groups,
            key_width=self.key_width,
            convolution=self.taps,
        )
        if self.heads % self.groups:
            raise ValueError(f"{self.heads} heads of the mixer are not a multiple of its {self.groups} groups")

    @property
    def inner(self) -> int:
        """The inner width i."""
        return self.heads * self.head_width

    @property
    def parts(self) -> tuple[int, int, int, int, int]:
        """The widths of the parts of ``mixer_in``."""
        keys = self.groups * self.key_width
        return self.inner, self.inner, keys, keys, self.heads

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """The last inputs of the convolution, and the matrices of the heads."""
        matrices = StateSpec((self.heads, self.head_width, self.key_width), "float32", ShardSpec(0, self.heads))
        return convolution_state(sum(self.parts[1:4]), self.taps), matrices

    def specs(
        self, prefix: str, width: int, *, bias: bool, output_bias: bool, convolution_bias: bool
    ) -> dict[str, TensorSpec]:
        """Return its tensors.

        Args:
            prefix: Precedes the names in the file.
            width: The width d of the residual stream.
            bias: Whether ``mixer_in`` has a bias.
            output_bias: Whether ``mixer_out`` has one.
            convolution_bias: Whether the convolution has one.
        """
        total, by_head = sum(self.parts), row_parallel(self.heads)
        # A shard of the outputs holds parts of either kind, so devices exchange them.
        shard = column_parallel(math.gcd(total, self.heads))
        specs = linear_specs(prefix + "in_proj", width, total, shard, bias=bias, key="mixer_in")
        specs |= linear_specs(prefix + "out_proj", self.inner, width, by_head, bias=output_bias, key="mixer_out")
        channels = sum(self.parts[1:4])
        specs |= convolution_specs(prefix + "conv1d", channels, self.taps, bias=convolution_bias, key="convolution")
        names = {"time_step_bias": "dt_bias", "log_rate": "A_log", "skip": "D"}
        specs |= {key: TensorSpec(prefix + name, (self.heads,)) for key, name in names.items()}
        return specs if self.norm is None else specs | {"gated_norm": TensorSpec(prefix + "norm.weight", (self.inner,))}

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Compute the tokens of a step, as `Recurrence` describes it."""
        rows, length, _ = x.shape
        real = step.metadata.real
        convolved, matrices = step.states
        gate, inputs, steps = self._project(x, weights)
        inputs, convolved = causal_convolution(inputs, convolved, weights, "convolution", self.activation, real)
        inputs = inputs.astype(jnp.float32)
        _, width, keys_width, *_ = self.parts
        heads, keys, queries = jnp.split(inputs, (width, width + keys_width), axis=-1)
        heads = heads.reshape(rows, length, self.heads, self.head_width)
        keys, queries = (each.reshape(rows, length, self.groups, self.key_width) for each in (keys, queries))
        bias, rate, skip = (weights[key].astype(jnp.float32) for key in ("time_step_bias", "log_rate", "skip"))
        time_step = jnp.clip(jax.nn.softplus(steps.astype(jnp.float32) + bias[None, None]), *self.time_step_limit)
        if real is not None:
            time_step = jnp.where(real[..., None], time_step, 0.0)  # padding changes no state
        log_decay = time_step * -jnp.exp(rate)[None, None]
        y, matrices = chunked_scan(Inputs(heads, time_step, log_decay, keys, queries), matrices)
        y = (y + heads * skip[None, None, :, None]).reshape(rows, length, self.inner)
        y = linear(self._gated(y, gate, weights).astype(x.dtype), weights, "mixer_out")
        return scale(y, self.scales.output), (convolved, matrices)

    def _project(self, x: jax.Array, weights: Weights) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the gate [b, t, i], the inputs of the convolution [b, t, c] and the time steps [b, t, h]."""
        projected = linear(scale(x, self.scales.input), weights, "mixer_in")
        if any(factor != 1.0 for factor in self.scales.parts):
            factors = [jnp.full(width, factor) for width, factor in zip(self.parts, self.scales.parts, strict=True)]
            projected = (projected.astype(jnp.float32) * jnp.concatenate(factors)[None, None]).astype(x.dtype)
        gate, inputs, steps = jnp.split(projected, (self.inner, sum(self.parts[:4])), axis=-1)
        return gate, inputs, steps

    def _gated(self, y: jax.Array, gate: jax.Array, weights: Weights) -> jax.Array:
        """Apply the gate and the norm to outputs float32 [b, t, i]."""
        opened = jax.nn.silu(gate.astype(jnp.float32))
        if self.norm is None:
            return y * opened
        if self.gate == "before_norm":
            y = y * opened
        grouped = y.reshape(*y.shape[:2], self.groups, -1)
        y = self.norm.normalise(grouped).reshape(y.shape) * weights["gated_norm"].astype(jnp.float32)[None, None]
        return y * opened if self.gate == "after_norm" else y
