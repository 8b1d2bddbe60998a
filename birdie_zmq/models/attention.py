"""Causal attention over the tokens of a step, and over a state that they continue.

Shape letters: b rows of the step, t position in a row, n query heads, k key/value heads, g query heads per key/value
head (n = k * g), h width of a head, l layer, r rows of the state (b or 1), c slots of a row of the state.

Scores exist for a block of queries and a block of keys at a time, small enough to stay in a cache. Where the keys come
in several blocks their softmax is gathered as it goes (Milakov and Gimelshein, 2018, arXiv:1805.02867; Dao et al.,
2022, arXiv:2205.14135).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

QUERY_BLOCK = 128
"""Queries that are attended at once; each block sees only keys up to its own end."""

MOST_BLOCKS = 16
"""The most blocks that a row is cut into, since each is compiled on its own. Longer rows have larger blocks."""

STATE_BLOCK = 256
"""Slots of a state that are read at once, as many blocks as its longest row fills."""

FEW_QUERIES = 32
"""Fewer queries than these read a quarter of a block at once on a CPU, so that keys and values stay in its cache."""

FULL_BLOCKS = 2
"""How many of these blocks are read at once, without a mask, as long as all rows fill them."""

STATE_QUERIES = 1024
"""Queries that read a state at once."""

UNLIMITED = 2**30
"""The window of a layer that sees everything, where others of the same model do not."""


class State(NamedTuple):
    """Keys and values of what rows have read.

    ``keys`` and ``values`` are [r, l, k, c, h], ``lengths`` int32 [r] says how many slots of a row are filled.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("positions", "ends", "state"),
    meta_fields=("are_dealt_out",),
)
@dataclass(frozen=True)
class Reading:
    """What each token of a step may see.

    Attributes:
        positions: int32 [b or 1, t]; where a token stands in its own text.
        ends: int32 [b, t], or None. Token i of a row sees its token j if ``j <= i < ends[j]``: a row may hold many texts,
            or a tree of them in depth-first order. None: each row is one text.
        state: What all texts of a row begin with, a row of the state for each row, or one for all; or None.
        are_dealt_out: Whether rows lie on several groups of devices, none of which should wait for another's. Static
            under `jax.jit`.
    """

    positions: jax.Array
    ends: jax.Array | None = None
    state: State | None = None
    are_dealt_out: bool = False


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
    if query.dtype == jnp.float32:  # cheaper than to multiply the scores; what is shorter would lose bits by it
        query, scale = query * scale, 1.0
    # Heads are an axis of the batch of plain matrix products.
    queries = query.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    keys, values = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    before = None
    if reading.state is not None:
        before = _mix_state(queries, reading, reading.state, layer, scale, window, softcap)
    size = max(QUERY_BLOCK, -(-length // MOST_BLOCKS))
    done: list[jax.Array] = []
    for begin in range(0, length, size):
        end = min(begin + size, length)
        block = queries[:, :, :, begin:end]
        if done:  # one block after another: XLA would otherwise hold the scores of all of them at once
            block = block + (done[-1][:, :, :, :1, :1] > jnp.inf).astype(block.dtype)
        visible = _visible(reading, begin, end, window)[:, None, None]
        so_far = None if before is None else _Mixed(*(x[:, :, :, begin:end] for x in before))
        mixed = _mix(so_far, block, keys[:, :, :end], values[:, :, :end], visible, scale, softcap)
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
    before: _Mixed | None,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array | None,
    scale: float | jax.Array,
    softcap: float | None,
) -> _Mixed:
    """Attend queries [r, k, g, q, h] to keys and values [r, k, s, h] too, beside what they have attended to before.

    ``visible`` is bool in the rank of [r, k, g, q, s]; None: all is. A query needs a peak from here or from before.
    """
    rows, groups, shared, count, width = queries.shape
    flat = queries.reshape(rows, groups, shared * count, width)
    scores = jnp.einsum("rkqh,rksh->rkqs", flat, keys, preferred_element_type=jnp.float32)
    if not (isinstance(scale, float) and scale == 1.0):
        scores = scores * scale
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    scores = scores.reshape(rows, groups, shared, count, -1)
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    peak = scores.max(axis=-1)
    if before is not None:
        peak = jnp.maximum(peak, before.peak)
    weights = jnp.exp(scores - peak[..., None])
    mixed = jnp.einsum(
        "rkqs,rksh->rkqh",
        weights.astype(values.dtype).reshape(rows, groups, shared * count, -1),
        values,
        preferred_element_type=jnp.float32,
    )
    sums, total = mixed.reshape(queries.shape), weights.sum(axis=-1)
    if before is not None:
        fade = jnp.exp(before.peak - peak)
        sums, total = sums + before.sums * fade[..., None], total + before.total * fade
    return _Mixed(sums, total, peak)


def _mix_state(
    queries: jax.Array,
    reading: Reading,
    state: State,
    layer: jax.Array,
    scale: float | jax.Array,
    window: jax.Array | None,
    softcap: float | None,
) -> _Mixed:
    """Attend queries [b, k, g, q, h] of a step to what the state holds."""
    batch, groups, shared, count, width = queries.shape
    rows, capacity = state.keys.shape[0], state.keys.shape[3]
    places = jnp.broadcast_to(reading.positions[:, None], (batch, shared, count))
    if rows == 1:  # then all rows are queries of one product
        queries = queries.transpose(1, 0, 2, 3, 4)
    queries, places = queries.reshape(rows, groups, 1, -1, width), places.reshape(rows, -1)
    few = queries.shape[3] < FEW_QUERIES and jax.default_backend() == "cpu"
    size = min(STATE_BLOCK // 4 if few else STATE_BLOCK, capacity)
    wide = FULL_BLOCKS * size
    # Few queries gain nothing by it, and a block as large as the state would be read whether it is full or not.
    has_full = window is None and capacity > wide and queries.shape[3] >= STATE_BLOCK
    full = state.lengths.min() // wide if has_full else 0
    blocks = (state.lengths.max() + size - 1) // size

    def read(part: tuple[jax.Array, jax.Array]) -> _Mixed:
        asking, places = part

        def attend(begin: jax.Array, slots: int, is_full: bool, mixed: _Mixed) -> _Mixed:
            at, extent = (0, layer, 0, begin, 0), (rows, 1, groups, slots, width)
            keys, values = (jax.lax.dynamic_slice(x, at, extent)[:, 0] for x in (state.keys, state.values))
            visible = None
            if not is_full:
                numbers = begin + jnp.arange(slots, dtype=jnp.int32)
                visible = (numbers[None] < state.lengths[:, None])[:, None]
                if window is not None:
                    visible = visible & (places[..., None] - numbers[None, None] < window)
                visible = visible[:, None, None]
            return _mix(mixed, asking, keys, values, visible, scale, softcap)

        nothing = jnp.full(asking.shape[:-1], _LOWEST, jnp.float32)
        mixed = _Mixed(jnp.zeros(asking.shape, jnp.float32), jnp.zeros_like(nothing), nothing)
        if has_full:
            mixed = jax.lax.fori_loop(0, full, lambda i, mixed: attend(i * wide, wide, True, mixed), mixed)
        return jax.lax.fori_loop(  # type: ignore[no-any-return]
            full * FULL_BLOCKS, blocks, lambda i, mixed: attend(i * size, size, False, mixed), mixed
        )

    mixed = _in_parts(read, queries, places, interleaved=reading.are_dealt_out)
    if rows == 1:
        back = [x.reshape(groups, batch, shared, count, *x.shape[4:]).swapaxes(0, 1) for x in mixed]
    else:
        back = [x.reshape(batch, groups, shared, count, *x.shape[4:]) for x in mixed]
    return _Mixed(*back)


def _in_parts(
    read: Callable[[tuple[jax.Array, jax.Array]], _Mixed], queries: jax.Array, places: jax.Array, *, interleaved: bool
) -> _Mixed:
    """Let queries [r, k, 1, n, h] at places int32 [r, n] read, `STATE_QUERIES` at most at once: one program for all.

    Where parts are interleaved, each has queries of all rows: they are read one after another, and devices that have
    different rows then read side by side.
    """
    count = queries.shape[3]
    parts = next(parts for parts in range(-(-count // STATE_QUERIES), count + 1) if count % parts == 0)
    if parts == 1:
        return read((queries, places))
    axis = 1 if interleaved else 0  # of the two into which the axis of the queries is cut, the one of the parts
    sizes = (-1, parts) if interleaved else (parts, -1)
    cut = jnp.moveaxis(queries.reshape(*queries.shape[:3], *sizes, queries.shape[4]), 3 + axis, 0)
    mixed = jax.lax.map(read, (cut, jnp.moveaxis(places.reshape(len(places), *sizes), 1 + axis, 0)))
    back = (jnp.moveaxis(x, 0, 3 + axis) for x in mixed)
    return _Mixed(*(x.reshape(*x.shape[:3], count, *x.shape[5:]) for x in back))


_LOWEST = -1e30
"""In place of minus infinity where a peak is carried along: the difference of two of these is a number."""


def whole_blocks(capacity: int) -> int:
    """So many slots or a few more: states are read in whole blocks."""
    block = STATE_BLOCK if capacity > STATE_BLOCK else STATE_BLOCK // 4
    return -(-capacity // block) * block if capacity > block else capacity


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
