"""Causal attention over the tokens of a step, and over a state that they continue.

Shape letters: b rows of the step, t position in a row, n query heads, k key/value heads, g query heads per key/value
head (n = k * g), h width of a head, l layer, r rows of the state (b or 1), c slots of a row of the state.

Scores exist for a block of queries and a block of keys at a time, small enough to stay in a cache. Where the keys come
in several blocks their softmax is gathered as it goes (Milakov and Gimelshein, 2018, arXiv:1805.02867; Dao et al.,
2022, arXiv:2205.14135).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

QUERY_BLOCK = 128
"""Queries that are attended at once; each block sees only keys up to its own end."""

MOST_BLOCKS = 16
"""The most blocks that a row is cut into, since each is compiled on its own. Longer rows have larger blocks."""

STATE_BLOCK = 256
"""Slots of a state that are read at once, as many blocks as its longest row fills."""

UNLIMITED = 2**30
"""The window of a layer that sees everything, where others of the same model do not."""


class State(NamedTuple):
    """Keys and values of what rows have read.

    ``keys`` and ``values`` are [r, l, k, c, h], ``lengths`` int32 [r] says how many slots of a row are filled.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array


class Reading(NamedTuple):
    """What each token of a step may see.

    Attributes:
        positions: int32 [b or 1, t]; where a token stands in its own text.
        ends: int32 [b, t], or None. Token i of a row sees its token j if ``j <= i < ends[j]``: a row may hold many texts,
            or a tree of them in depth-first order. None: each row is one text.
        state: What all texts of a row begin with, a row of the state for each row, or one for all; or None.
    """

    positions: jax.Array
    ends: jax.Array | None = None
    state: State | None = None


class _Mixed(NamedTuple):
    """Attention to some of the keys, not yet normalised: float32 sums [..., q, h], their weight and its peak [..., q]."""

    sums: jax.Array
    total: jax.Array
    peak: jax.Array


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    reading: Reading,
    layer: jax.Array,
    *,
    scale: float | jax.Array,
    window: jax.Array | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Causal grouped-query attention (Ainslie et al., arXiv:2305.13245); scores and softmax in float32.

    Args:
        query: [b, t, n, h].
        key: [b, t, k, h], n a multiple of k.
        value: [b, t, k, h].
        reading: What each token may see.
        layer: int32 [], which layer of the state is read.
        scale: What scores are multiplied by.
        window: int32 []; a position sees itself and the ``window - 1`` before it. None: all before it.
        softcap: Scores are bent into (-softcap, softcap) by tanh, as Gemma 2 does.

    Returns:
        [b, t, n * h].
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    # Heads are an axis of the batch of plain matrix products.
    queries = query.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    keys, values = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    size = max(QUERY_BLOCK, -(-length // MOST_BLOCKS))
    done: list[jax.Array] = []
    for begin in range(0, length, size):
        end = min(begin + size, length)
        block, positions = queries[:, :, :, begin:end], reading.positions[:, begin:end]
        if done:  # one block after another: XLA would otherwise hold the scores of all of them at once
            block = block + (done[-1][:, :, :, :1, :1] > jnp.inf).astype(block.dtype)
        visible = _visible(reading, begin, end, window)[:, None, None]
        mixed = _mix(block, keys[:, :, :end], values[:, :, :end], visible, scale, softcap)
        if reading.state is not None:
            mixed = _merge(mixed, _mix_state(block, positions, reading.state, layer, scale, window, softcap))
        done.append((mixed.sums / mixed.total[..., None]).astype(value.dtype))
    joined = jnp.concatenate(done, axis=3) if len(done) > 1 else done[0]
    return joined.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads * width)


def _visible(reading: Reading, begin: int, end: int, window: jax.Array | None) -> jax.Array:
    """Which of the row's own tokens before `end` the tokens from `begin` on see: bool [b or 1, q, s]."""
    here, there = jnp.arange(begin, end)[:, None], jnp.arange(end)[None]
    visible = (there <= here)[None]
    if reading.ends is not None:
        visible = visible & (here[None] < reading.ends[:, None, :end])
    if window is not None:
        positions = reading.positions
        visible = visible & (positions[:, begin:end, None] - positions[:, None, :end] < window)
    return visible


def _mix(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    scale: float | jax.Array,
    softcap: float | None,
) -> _Mixed:
    """Attend queries [r, k, g, q, h] to keys and values [r, k, s, h] where visible, bool in the rank of [r, k, g, q, s]."""
    rows, groups, shared, count, width = queries.shape
    flat = queries.reshape(rows, groups, shared * count, width)
    scores = jnp.einsum("rkqh,rksh->rkqs", flat, keys, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    scores = jnp.where(visible, scores.reshape(rows, groups, shared, count, -1), -jnp.inf)
    peak = scores.max(axis=-1)
    # A query that sees none of these keys has no peak, and no weight.
    weights = jnp.exp(scores - jnp.where(peak == -jnp.inf, 0.0, peak)[..., None])
    mixed = jnp.einsum(
        "rkqs,rksh->rkqh",
        weights.astype(values.dtype).reshape(rows, groups, shared * count, -1),
        values,
        preferred_element_type=jnp.float32,
    )
    return _Mixed(mixed.reshape(queries.shape), weights.sum(axis=-1), peak)


def _merge(one: _Mixed, other: _Mixed) -> _Mixed:
    """Attention to the keys of both; one of them has a peak."""
    peak = jnp.maximum(one.peak, other.peak)
    scales = [jnp.exp(part.peak - peak) for part in (one, other)]
    sums = one.sums * scales[0][..., None] + other.sums * scales[1][..., None]
    return _Mixed(sums, one.total * scales[0] + other.total * scales[1], peak)


def _mix_state(
    queries: jax.Array,
    positions: jax.Array,
    state: State,
    layer: jax.Array,
    scale: float | jax.Array,
    window: jax.Array | None,
    softcap: float | None,
) -> _Mixed:
    """Attend queries [b, k, g, q, h] at positions int32 [b or 1, q] to what the state holds."""
    batch, groups, shared, count, width = queries.shape
    rows, capacity = state.keys.shape[0], state.keys.shape[3]
    one_for_all = rows == 1
    if one_for_all:  # then all rows are queries of one product
        queries = queries.transpose(1, 0, 2, 3, 4).reshape(1, groups, batch * shared, count, width)
    places = jnp.broadcast_to(positions[:, None], (batch, shared, count)).reshape(rows, -1, count)
    size = min(STATE_BLOCK, capacity)

    def attend(number: jax.Array, mixed: _Mixed) -> _Mixed:
        begin = number * size
        at, extent = (0, layer, 0, begin, 0), (rows, 1, groups, size, width)
        keys, values = (jax.lax.dynamic_slice(x, at, extent)[:, 0] for x in (state.keys, state.values))
        slots = begin + jnp.arange(size, dtype=jnp.int32)
        visible = (slots[None] < state.lengths[:, None])[:, None, None]
        if window is not None:
            visible = visible & (places[..., None] - slots[None, None, None] < window)
        return _merge(mixed, _mix(queries, keys, values, visible[:, None], scale, softcap))

    nothing = jnp.full(queries.shape[:-1], _LOWEST, jnp.float32)
    start = _Mixed(jnp.zeros(queries.shape, jnp.float32), jnp.zeros_like(nothing), nothing)
    mixed: _Mixed = jax.lax.fori_loop(0, (state.lengths.max() + size - 1) // size, attend, start)
    if one_for_all:
        back = [x.reshape(groups, batch, shared, *x.shape[3:]).swapaxes(0, 1) for x in mixed]
        mixed = _Mixed(*back)
    return mixed


_LOWEST = -1e30
"""In place of minus infinity where a peak is carried along: the difference of two of these is a number."""


def written(state: State, keys: jax.Array, values: jax.Array, lengths: jax.Array) -> State:
    """The state after a step: keys and values [l, r, k, t, h] stand behind what each row has.

    Of each row `lengths` int32 [r] are real; what is written behind them is overwritten by the next step, and never
    seen. The rows need room for all t.
    """

    def write(row: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, new, (0, 0, at, 0))

    write_all = jax.vmap(write)
    return State(
        write_all(state.keys, jnp.moveaxis(keys, 0, 1), state.lengths),
        write_all(state.values, jnp.moveaxis(values, 0, 1), state.lengths),
        state.lengths + lengths,
    )
