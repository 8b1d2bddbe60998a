"""The recurrent block of Griffin: a real-gated linear recurrent unit, RG-LRU (De et al., 2024, arXiv:2402.19427).

Its weights are ``recurrent_in`` and ``branch`` [d, c] with biases, ``convolution`` [c, 1, taps] with a bias, ``input_gate``
and ``recurrent_gate`` [n, w, w] with biases [n, w], a matrix for each block of channels, ``recurrent_param`` [c], and
``output`` [c, d] with a bias.

Shape letters: b batch, t position, d width of the residual stream, c channels of the recurrence, n blocks, w channels of a
block (c = n * w).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from birdie_zmq.models.causal_convolution import causal_convolution, convolution_state
from birdie_zmq.models.decoder_layer import LayerStep
from birdie_zmq.models.layers import ACTIVATIONS, Weights, linear
from birdie_zmq.models.linear_scan import linear_scan
from birdie_zmq.models.recurrence import StateSpec
from birdie_zmq.models.weight_map import ShardSpec

_SHARPNESS = 8.0
"""The constant c of the paper's equation 4: the factor of the logarithm of the decay."""


@dataclass(frozen=True)
class GriffinBlock:
    """The recurrence between a convolution and a gate.

    Attributes:
        channels: The number c.
        blocks: The number n.
        taps: The number of tokens of the convolution.
        activation: The activation of the branch that gates the output.
    """

    channels: int
    blocks: int
    taps: int
    activation: str

    def __post_init__(self) -> None:
        if self.channels % self.blocks:
            raise ValueError(f"lru_width {self.channels} is not a multiple of num_attention_heads {self.blocks}")

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """The last inputs of the convolution, and the float32 state of each channel."""
        shard = ShardSpec(0, self.blocks)
        return convolution_state(self.channels, self.taps, shard), StateSpec((self.channels,), "float32", shard)

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Compute x [b, t, d]; return [b, t, d], and the state after the real tokens."""
        before, state = step.states
        real, branch = step.metadata.real, ACTIVATIONS[self.activation](linear(x, weights, "branch"))
        u = linear(x, weights, "recurrent_in")
        u, before = causal_convolution(u, before, weights, "convolution", real=real)
        gate = self._gate(u, weights, "recurrent_gate").astype(jnp.float32)
        param = weights["recurrent_param"].astype(jnp.float32)[None, None]
        decay = -_SHARPNESS * gate * jax.nn.softplus(param)
        # The state of a text is zero before its first token, whose input is not made smaller by a decay.
        is_first = (step.metadata.positions == 0)[..., None]
        size = jnp.where(is_first, 1.0, jnp.sqrt(-jnp.expm1(2.0 * decay)))
        inputs = (u * self._gate(u, weights, "input_gate")).astype(jnp.float32) * size
        if real is not None:
            decay, inputs = (jnp.where(real[..., None], part, 0.0) for part in (decay, inputs))
        h = linear_scan(jnp.exp(decay), inputs, state)
        return linear(h.astype(x.dtype) * branch, weights, "output"), (before, h[:, -1])

    def _gate(self, u: jax.Array, weights: Weights, name: str) -> jax.Array:
        """Return the sigmoid [b, t, c] of each block of channels times its matrix."""
        by_block = u.reshape(*u.shape[:2], self.blocks, -1)
        y = jnp.einsum("btnw,nwv->btnv", by_block, weights[name]) + weights[f"{name}_bias"][None, None]
        return jax.nn.sigmoid(y.reshape(u.shape))
