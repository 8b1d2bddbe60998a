"""The gated delta rule: a state that forgets, and that is corrected towards the value of each key (arXiv:2412.06464).

The state of a head is a matrix S [h, w] from keys to values. A token with key k, value v, decay a and rate r changes it to
``a S + k r (v - (a S)^T k)^T``, and its output is ``S^T q``.

Many tokens are computed in chunks (Yang et al., 2024, arXiv:2406.06484). Within a chunk, the values to write depend on each
other by a triangular matrix, which is inverted; then all is matrix products, and only the states between chunks are
computed one after another. All of it is float32.

Shape letters: b rows, n heads, t position in a row, h width of a key, w width of a value, g chunks, c tokens of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from birdie_zmq.models.state_space_duality import decays

CHUNK = 64
"""Tokens of a chunk, a power of two. Fewer tokens are one smaller chunk."""

_SUBSTITUTED = 16
"""Rows of a triangular matrix that are inverted one after another; larger ones are inverted by blocks."""


class DeltaInputs(NamedTuple):
    """The inputs of the tokens of a step, all float32.

    Attributes:
        query: [b, n, t, h].
        key: [b, n, t, h], of unit length.
        value: [b, n, t, w].
        decay: [b, n, t], the logarithms of the decays, at most 0.
        rate: [b, n, t]. A token with the rate 0 and the decay 0 leaves the state as it was.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    decay: jax.Array
    rate: jax.Array


def gated_delta_rule(inputs: DeltaInputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the outputs [b, n, t, w] of tokens after a state float32 [b, n, h, w], and the state after them."""
    return _one_token(inputs, state) if inputs.key.shape[2] == 1 else _chunks(inputs, state)


def _one_token(inputs: DeltaInputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    query, key, value, decay, rate = (x[:, :, 0] for x in inputs)
    state = state * jnp.exp(decay)[..., None, None]
    correction = (value - jnp.einsum("bnhw,bnh->bnw", state, key)) * rate[..., None]
    state = state + key[..., None] * correction[:, :, None]
    return jnp.einsum("bnhw,bnh->bnw", state, query)[:, :, None], state


def _chunks(inputs: DeltaInputs, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    length = inputs.key.shape[2]
    size = min(CHUNK, 1 << (length - 1).bit_length())
    query, key, value, decay, rate = (_split(x, size) for x in inputs)
    between, before = _decays(decay)
    index = jnp.arange(size, dtype=jnp.int32)
    is_earlier = (index[:, None] > index[None])[None, None, None]
    written = key * rate[..., None]
    influence = jnp.where(is_earlier, jnp.einsum("bngch,bngdh->bngcd", written, key) * between, 0.0)
    inverse = invert_unit_triangular(influence)
    own = inverse @ (value * rate[..., None])
    of_state = inverse @ (written * before[..., None])
    scores = jnp.einsum("bngch,bngdh->bngcd", query, key) * between
    from_state = query * before[..., None]
    to_end = key * between[..., -1, :, None]
    kept = before[..., -1, None, None]

    def step(state: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        own, of_state, scores, from_state, to_end, kept = chunk
        values = own - of_state @ state
        output = from_state @ state + scores @ values
        return state * kept + to_end.swapaxes(2, 3) @ values, output

    chunks = tuple(jnp.moveaxis(x, 2, 0) for x in (own, of_state, scores, from_state, to_end, kept))
    if len(chunks[0]) == 1:
        state, outputs = step(state, tuple(x[0] for x in chunks))
        outputs = outputs[None]
    else:
        state, outputs = jax.lax.scan(step, state, chunks)
    joined = jnp.moveaxis(outputs, 0, 2)
    return joined.reshape(*joined.shape[:2], -1, joined.shape[-1])[:, :, :length], state


def _decays(decay: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the decays between tokens [b, n, g, c, c], 0 for later ones, and from before a chunk to each token."""
    shape = decay.shape
    by_chunk = decay.reshape(shape[0], -1, shape[-1]).swapaxes(1, 2)
    between, before = decays(by_chunk)
    return between.reshape(*shape, shape[-1]), before.reshape(shape)


def _split(x: jax.Array, size: int) -> jax.Array:
    """Split tokens [b, n, t, ...] into chunks [b, n, g, c, ...], with zeros at the end."""
    missing = -x.shape[2] % size
    padded = jnp.pad(x, [(0, 0), (0, 0), (0, missing), *((0, 0) for _ in x.shape[3:])])
    return padded.reshape(*x.shape[:2], -1, size, *x.shape[3:])


def invert_unit_triangular(below: jax.Array) -> jax.Array:
    """Invert matrices [..., c, c] with ones on the diagonal and `below` under it; c is a power of two.

    Rows of small blocks on the diagonal are substituted one after another, and blocks of inverses are then joined. It takes
    matrix products alone, which every platform has, and which can be divided over a mesh.
    """
    size = below.shape[-1]
    block = min(size, _SUBSTITUTED)
    small = _diagonal_blocks(below, block)
    identity = jnp.eye(block, dtype=below.dtype)
    rows: list[jax.Array] = [jnp.broadcast_to(identity[0], small.shape[:-1])]
    for number in range(1, block):
        before = jnp.stack(rows, axis=-2)
        factors = small[..., number, :number, None]
        rows.append(jnp.expand_dims(identity[number], range(before.ndim - 2)) - (factors * before).sum(axis=-2))
    inverse = jnp.stack(rows, axis=-2)
    while block < size:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        low = _diagonal_blocks(below, 2 * block)[..., block:, :block]
        corner = -(second @ low @ first)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([upper, jnp.concatenate([corner, second], axis=-1)], axis=-2)
        block *= 2
    return inverse[..., 0, :, :]


def _diagonal_blocks(x: jax.Array, block: int) -> jax.Array:
    """Return the blocks [..., c / block, block, block] on the diagonal of matrices [..., c, c]."""
    count = x.shape[-1] // block
    split = x.reshape(*x.shape[:-2], count, block, count, block)
    return jnp.moveaxis(jnp.diagonal(split, axis1=-4, axis2=-2), -1, -3)
