"""Depthwise causal convolutions whose state is the last few inputs of a text.

Shape letters: b rows, t position in a row, c channels, k the number of tokens that a convolution spans.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from birdie_zmq.models.layers import ACTIVATIONS, Weights
from birdie_zmq.models.recurrence import StateSpec
from birdie_zmq.models.weight_map import ShardSpec, TensorSpec


def convolution_specs(
    name: str, channels: int, taps: int, shard: ShardSpec | None = None, *, bias: bool, key: str
) -> dict[str, TensorSpec]:
    """Return the specs of a PyTorch ``Conv1d`` with a group for each channel: its weight [c, 1, k], and its bias [c].

    Args:
        name: The name in the file, without ``.weight``.
        channels: The number of channels.
        taps: The number of tokens that it spans.
        shard: How the channels, axis 0, may be sharded.
        bias: Whether it has a bias.
        key: The parameter name.
    """
    specs = {key: TensorSpec(f"{name}.weight", (channels, 1, taps), shard=shard)}
    return specs | {f"{key}_bias": TensorSpec(f"{name}.bias", (channels,), shard=shard)} if bias else specs


def convolution_state(channels: int, taps: int, shard: ShardSpec | None = None) -> StateSpec:
    """Return the state of a convolution, [k - 1, c]: the last inputs of a text in their order, zeros before the first."""
    return StateSpec((taps - 1, channels), shard=None if shard is None else ShardSpec(1, shard.parts))


def causal_convolution(
    x: jax.Array,
    state: jax.Array,
    weights: Weights,
    name: str,
    activation: str | None = None,
    real: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Convolve each channel over the last k tokens of a text.

    The sum is computed in float32.

    Args:
        x: The inputs [b, t, c].
        state: The k - 1 inputs before them, [b, k - 1, c].
        weights: The weights of the layer.
        name: The name of the kernel [c, 1, k], whose last column is for the token itself; with a bias if there is one.
        activation: The activation of the outputs, by its name; None for none.
        real: bool [b, t], whether a token is one of the first, real tokens of its row; None if all are.

    Returns:
        The outputs [b, t, c], and the state after the last real token of each row.
    """
    kernel, length = weights[name][:, 0].astype(jnp.float32), x.shape[1]
    taps = kernel.shape[1]
    inputs = jnp.concatenate([state, x], axis=1)
    y = sum(inputs[:, k : k + length].astype(jnp.float32) * kernel[:, k][None, None] for k in range(taps))
    bias = weights.get(f"{name}_bias")
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None, None]
    if activation is not None:
        y = ACTIVATIONS[activation](jnp.asarray(y))
    if real is None:
        after = inputs[:, length:]
    else:
        first = jnp.broadcast_to(real, x.shape[:2]).sum(axis=1, dtype=jnp.int32)
        after = jax.vmap(lambda row, begin: jax.lax.dynamic_slice_in_dim(row, begin, taps - 1))(inputs, first)
    return jnp.asarray(y).astype(x.dtype), after
