"""The recurrence of Mamba 2 in chunks (Dao and Gu, 2024, arXiv:2405.21060, section 6).

Each head keeps a matrix that decays by one factor for each token, to which the outer product of the token's input and key is
added. Within a chunk this is attention whose scores are multiplied by the decay between two tokens, so it takes matrix
products only; between chunks it is the recurrence itself.

Shape letters: b rows, t position in a row, q position in a chunk, g groups of heads, s heads of a group, h all heads
(h = g * s), p width of a head, n width of a key.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK = 64
"""The most tokens of a chunk. Longer ones compute more scores, shorter ones read and write the state more often."""

_LEAST_LOG_DECAY = -200.0
"""exp of less is zero in float32."""

_GRID = 2.0**8
"""Sums of multiples of 1 / 256 are exact in float32 up to 65,536; those of a chunk are at most 12,800."""


class Inputs(NamedTuple):
    """The inputs of the recurrence, float32.

    Attributes:
        x: The inputs of the heads [b, t, h, p].
        time_step: The factors of the inputs [b, t, h]; 0 for padding.
        log_decay: The logarithms of the decays, at most 0, [b, t, h]; 0 for padding.
        keys: The keys [b, t, g, n], called B in the paper.
        queries: The queries [b, t, g, n], called C in the paper.
    """

    x: jax.Array
    time_step: jax.Array
    log_decay: jax.Array
    keys: jax.Array
    queries: jax.Array


def chunked_scan(inputs: Inputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute ``state[t] = exp(log_decay[t]) * state[t - 1] + time_step[t] * x[t] keys[t]^T`` and ``y = state queries``.

    Args:
        inputs: The inputs.
        state: The state before them, float32 [b, h, p, n].

    Returns:
        The outputs y [b, t, h, p], and the state after the last token.
    """
    length = inputs.x.shape[1]
    count = -(-length // CHUNK)
    if count == 1:
        return _one_chunk(state, inputs)
    size = -(-length // count)

    def split(x: jax.Array) -> jax.Array:
        """Split [b, t, ...] into chunks [c, b, q, ...], with zeros at the end, which change no state."""
        padded = jnp.pad(x, ((0, 0), (0, count * size - length), *((0, 0) for _ in x.shape[2:])))
        return jnp.moveaxis(padded.reshape(len(x), count, size, *x.shape[2:]), 1, 0)

    def one_chunk(state: jax.Array, chunk: Inputs) -> tuple[jax.Array, jax.Array]:
        y, state = _one_chunk(state, chunk)
        return state, y

    state, y = jax.lax.scan(one_chunk, state, Inputs(*map(split, inputs)))
    return jnp.moveaxis(y, 0, 1).reshape(len(inputs.x), count * size, *inputs.x.shape[2:])[:, :length], state


def decays(log_decay: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the decay from one token of a chunk to another, and from before the chunk to each token.

    Differences of two cumulative sums lose digits where a decay before both tokens is strong. The sums are therefore split
    into multiples of 1 / 256, which are summed exactly, and small rests.

    Args:
        log_decay: [b, q, h].

    Returns:
        float32 [b, h, q, q], for each token by its earlier ones, 0 for later ones; and [b, h, q].
    """
    log_decay = jnp.maximum(jnp.moveaxis(log_decay, 1, 2), _LEAST_LOG_DECAY)
    coarse = jnp.round(log_decay * _GRID) / _GRID
    sums = [jnp.cumsum(part, axis=-1) for part in (coarse, log_decay - coarse)]
    between, rest = (x[..., :, None] - x[..., None, :] for x in sums)
    positions = jnp.arange(log_decay.shape[-1], dtype=jnp.int32)
    is_earlier = positions[None] <= positions[:, None]
    return jnp.exp(jnp.where(is_earlier[None, None], between + rest, -jnp.inf)), jnp.exp(sums[0] + sums[1])


def _one_chunk(state: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """Compute one chunk; return its outputs [b, q, h, p] and the state after it."""
    rows, size, heads, width = inputs.x.shape
    groups = inputs.keys.shape[2]

    def grouped(x: jax.Array, axis: int) -> jax.Array:
        """Split an axis of heads into groups and the heads of a group."""
        return x.reshape(*x.shape[:axis], groups, heads // groups, *x.shape[axis + 1 :])

    between, before = (grouped(x, 1) for x in decays(inputs.log_decay))  # [b, g, s, q, q] and [b, g, s, q]
    x = grouped(inputs.x * inputs.time_step[..., None], 2).transpose(0, 2, 3, 1, 4)  # [b, g, s, q, p]
    keys, queries = (each.swapaxes(1, 2) for each in (inputs.keys, inputs.queries))  # [b, g, q, n]
    own = grouped(state, 1)
    scores = jnp.einsum("bgin,bgjn->bgij", queries, keys)
    y = jnp.einsum("bgsij,bgsjp->bgsip", scores[:, :, None] * between, x)
    y = y + jnp.einsum("bgin,bgspn->bgsip", queries, own) * before[..., None]
    last = x * between[:, :, :, -1, :, None]
    own = own * before[..., -1][..., None, None] + jnp.einsum("bgsjp,bgjn->bgspn", last, keys)
    return y.transpose(0, 3, 1, 2, 4).reshape(rows, size, heads, width), own.reshape(state.shape)
