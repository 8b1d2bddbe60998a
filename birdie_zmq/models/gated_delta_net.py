"""Gated DeltaNet: the gated delta rule over convolved queries, keys and values (Yang et al., 2024, arXiv:2412.06464).

Its weights are ``delta_in`` [d, k * (2h + 2gw)], whose outputs are for each key head its query and key, and the values and
the output gates of its g value heads, and ``delta_gates`` [d, k * 2g], the rates and then the decays of these; or in their
place ``delta_mixed`` [d, 2kh + nw], all queries, keys and values, ``delta_output_gate`` [d, nw], ``delta_rate`` and
``delta_decay`` [d, n]. Further ``convolution`` [2kh + nw, 1, taps], ``decay_rate`` [n], the logarithm of each head's
factor of the decay, ``decay_bias`` [n], ``gated_norm`` [w] and ``output`` [nw, d].

Shape letters: b batch, t position, d width of the residual stream, n value heads, k key heads, g value heads per key head
(n = k * g), h width of a key, w width of a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from birdie_zmq.models.causal_convolution import causal_convolution, convolution_state
from birdie_zmq.models.decoder_layer import LayerStep
from birdie_zmq.models.delta_rule import DeltaInputs, gated_delta_rule
from birdie_zmq.models.layers import Norm, Weights, linear
from birdie_zmq.models.recurrence import StateSpec
from birdie_zmq.models.weight_map import ShardSpec

_LENGTH_EPSILON = 1e-6
"""Added to the squared length of queries and keys before they are divided by it, as in the authors' kernels."""


class _Projected(NamedTuple):
    """The projections of tokens: ``mixed`` [b, t, 2kh + nw], ``output_gate`` [b, t, nw], ``rate`` and ``decay`` [b, t, n]."""

    mixed: jax.Array
    output_gate: jax.Array
    rate: jax.Array
    decay: jax.Array


@dataclass(frozen=True)
class GatedDeltaNet:
    """The gated delta rule with a convolution before it, and a norm and a gate of the outputs.

    Attributes:
        heads: The number of value heads n.
        key_heads: The number of key heads k.
        key_width: The width h.
        value_width: The width w.
        taps: The number of tokens of the convolution.
        activation: The activation after the convolution.
        norm: The norm of the outputs.
    """

    heads: int
    key_heads: int
    key_width: int
    value_width: int
    taps: int
    activation: str
    norm: Norm

    def __post_init__(self) -> None:
        if self.heads % self.key_heads:
            raise ValueError(f"{self.heads} value heads are not a multiple of {self.key_heads} key heads")

    @property
    def channels(self) -> int:
        """The number of channels of the convolution."""
        return 2 * self.key_heads * self.key_width + self.heads * self.value_width

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """The last inputs of the convolution, and the float32 matrix of each value head."""
        matrices = (self.heads, self.key_width, self.value_width)
        return convolution_state(self.channels, self.taps), StateSpec(matrices, "float32", ShardSpec(0, self.heads))

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Compute x [b, t, d]; return [b, t, d], and the state after the real tokens."""
        before, matrices = step.states
        real, projected = step.metadata.real, self._project(x, weights)
        mixed, before = causal_convolution(projected.mixed, before, weights, "convolution", self.activation, real)
        y, matrices = gated_delta_rule(self._inputs(mixed, projected, weights, real), matrices)
        y = self.norm(y.swapaxes(1, 2).astype(x.dtype), weights, "gated_norm").astype(jnp.float32)
        gate = jax.nn.silu(projected.output_gate.astype(jnp.float32))
        y = (y.reshape(gate.shape) * gate).astype(x.dtype)
        return linear(y, weights, "output"), (before, matrices)

    def _project(self, x: jax.Array, weights: Weights) -> _Projected:
        if "delta_in" not in weights:
            names = ("delta_mixed", "delta_output_gate", "delta_rate", "delta_decay")
            return _Projected(*(linear(x, weights, name) for name in names))
        by_key_head = (*x.shape[:2], self.key_heads, -1)
        values = self.heads // self.key_heads * self.value_width
        ends = (self.key_width, 2 * self.key_width, 2 * self.key_width + values)
        parts = jnp.split(linear(x, weights, "delta_in").reshape(by_key_head), ends, axis=-1)
        parts += jnp.split(linear(x, weights, "delta_gates").reshape(by_key_head), 2, axis=-1)
        query, key, value, gate, rate, decay = (part.reshape(*x.shape[:2], -1) for part in parts)
        return _Projected(jnp.concatenate([query, key, value], axis=-1), gate, rate, decay)

    def _inputs(self, mixed: jax.Array, projected: _Projected, weights: Weights, real: jax.Array | None) -> DeltaInputs:
        """Return the inputs of the delta rule from the convolved queries, keys and values; padding has none."""
        keys, shared = self.key_heads * self.key_width, self.heads // self.key_heads
        query, key, value = jnp.split(mixed.astype(jnp.float32), (keys, 2 * keys), axis=-1)
        query, key = (jnp.repeat(_unit_length(_by_head(part, self.key_heads)), shared, axis=1) for part in (query, key))
        rate = jax.nn.sigmoid(projected.rate).astype(jnp.float32)
        softened = jax.nn.softplus(projected.decay.astype(jnp.float32) + _wide(weights, "decay_bias"))
        decay = -jnp.exp(_wide(weights, "decay_rate")) * softened
        if real is not None:
            rate, decay = (jnp.where(real[..., None], part, 0.0) for part in (rate, decay))
        rate, decay = rate.swapaxes(1, 2), decay.swapaxes(1, 2)
        return DeltaInputs(query * self.key_width**-0.5, key, _by_head(value, self.heads), decay, rate)


def _by_head(x: jax.Array, heads: int) -> jax.Array:
    """Split the last axis into heads: [b, t, heads * h] -> [b, heads, t, h]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _wide(weights: Weights, name: str) -> jax.Array:
    """Return a weight [n] as float32 [1, 1, n]."""
    return weights[name].astype(jnp.float32)[None, None]


def _unit_length(x: jax.Array) -> jax.Array:
    """Divide vectors along the last axis by their length."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + _LENGTH_EPSILON)
