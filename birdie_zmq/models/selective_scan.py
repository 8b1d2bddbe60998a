"""The recurrence of Mamba as associative scans over chunks (Gu and Dao, 2023, arXiv:2312.00752).

Each channel keeps n numbers. Each of them decays by a factor of its own for each token. The composition of two steps
``state -> decay * state + input`` is one of the same form, so the steps of a chunk are combined by an associative scan
(Blelloch, 1990). Chunks follow one another, so only the states of one chunk are in memory.

Shape letters: b rows, t position in a row, q position in a chunk, i channels, n numbers of a channel.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK = 16
"""The most tokens of a chunk. A scan of more tokens combines them more often, and takes more memory."""


class Inputs(NamedTuple):
    """The inputs of the recurrence, float32.

    Attributes:
        x: The inputs of the channels [b, t, i].
        time_step: The time steps [b, t, i]; 0 for padding.
        keys: The shares of an input that are added to the n numbers [b, t, n], called B in the paper.
        queries: The shares of the n numbers that are read [b, t, n], called C in the paper.
    """

    x: jax.Array
    time_step: jax.Array
    keys: jax.Array
    queries: jax.Array


def selective_scan(inputs: Inputs, rates: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute ``state[t] = exp(time_step[t] * rates) * state[t - 1] + time_step[t] * x[t] * keys[t]``, and what is read of it.

    Args:
        inputs: The inputs.
        rates: The logarithms of the decays in a time step of 1, less than 0, float32 [i, n].
        state: The state before the inputs, float32 [b, i, n].

    Returns:
        The outputs [b, t, i], and the state after the last token.
    """
    length = inputs.x.shape[1]
    count = -(-length // CHUNK)
    size = -(-length // count)

    def split(x: jax.Array) -> jax.Array:
        """Split [b, t, ...] into chunks [c, b, q, ...], with zeros at the end, which change no state."""
        padded = jnp.pad(x, ((0, 0), (0, count * size - length), (0, 0)))
        return jnp.moveaxis(padded.reshape(len(x), count, size, -1), 1, 0)

    def one_chunk(state: jax.Array, chunk: Inputs) -> tuple[jax.Array, jax.Array]:
        decay = jnp.exp(chunk.time_step[..., None] * rates[None, None])
        added = (chunk.time_step * chunk.x)[..., None] * chunk.keys[:, :, None]
        decay, added = jax.lax.associative_scan(_compose, (decay, added), axis=1)
        states = decay * state[:, None] + added
        return states[:, -1], jnp.einsum("bqin,bqn->bqi", states, chunk.queries)

    if count == 1:
        state, y = one_chunk(state, inputs)
        return y, state
    state, y = jax.lax.scan(one_chunk, state, Inputs(*map(split, inputs)))
    return jnp.moveaxis(y, 0, 1).reshape(len(inputs.x), count * size, -1)[:, :length], state


def _compose(first: tuple[jax.Array, jax.Array], then: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the step that two steps make together, each as its decay and what it adds."""
    return first[0] * then[0], then[0] * first[1] + then[1]
