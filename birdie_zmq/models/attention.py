"""Causal attention over the tokens of a step, and over the KV cache of the tokens before them.

Shape letters: b rows of the step, t position in a row, n query heads, k key/value heads, g query heads per key/value
head (n = k * g), h width of a head, l layer, r rows of the cache (b or 1), c capacity of a row of the cache. Inside the
blockwise computation: q queries, s keys.

Scores are computed for a block of queries and a block of keys at a time, small enough to stay in the processor's cache.
Over several blocks of keys the softmax is computed online (Milakov and Gimelshein, 2018, arXiv:1805.02867; Dao et al.,
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
"""Queries per block; each block attends only to keys up to its own end."""

MAX_QUERY_BLOCKS = 16
"""Maximum number of query blocks per row, since each is compiled separately. Longer rows have larger blocks."""

STATE_BLOCK = 256
"""Slots of the KV cache per block of keys; the loop covers as many blocks as the longest row fills."""

SMALL_QUERY_COUNT = 32
"""With fewer queries, a CPU reads a quarter of a block at a time, so that keys and values stay in its cache."""

UNMASKED_BLOCKS = 2
"""Number of blocks that are read at once, without a mask, as long as all rows fill them."""

STATE_QUERY_CHUNK = 1024
"""Maximum queries that attend to the KV cache at once."""

NO_WINDOW = 2**30
"""The window of a full-attention layer in a model with sliding-window layers."""


class KVCache(NamedTuple):
    """The state of a decoder: the keys and values of the tokens that its rows have processed.

    ``keys`` and ``values`` are [r, l, k, c, h]; ``lengths`` int32 [r] is the number of filled slots of each row.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("positions", "ends", "state"),
    meta_fields=("rows_sharded",),
)
@dataclass(frozen=True)
class AttentionMetadata:
    """Which tokens each token of a step attends to.

    Attributes:
        positions: int32 [b or 1, t]; the position of each token in its own sequence.
        ends: int32 [b, t], or None. Token i of a row attends to its token j if ``j <= i < ends[j]``: a row may hold
            several sequences, or a tree of them in depth-first order. None: each row is one sequence.
        state: The KV cache of the prefix of all sequences in a row: one cache row for each row, or one for
            all; or None.
        rows_sharded: Whether rows are sharded over groups of devices; no group should then wait for another's rows.
            Static under `jax.jit`.
    """

    positions: jax.Array
    ends: jax.Array | None = None
    state: KVCache | None = None
    rows_sharded: bool = False


class AttentionOptions(NamedTuple):
    """How attention scores are computed from the products of queries and keys.

    Attributes:
        scale: The factor of the scores.
        window: int32 []; a position attends to itself and the ``window - 1`` before it. None: to all before it.
        softcap: Scores are capped to (-softcap, softcap) by tanh, as in Gemma 2.
    """

    scale: float | jax.Array
    window: jax.Array | None = None
    softcap: float | None = None


class _Accumulator(NamedTuple):
    """Online softmax over the keys so far: float32 weighted sums of values [..., q, h], total weight and maximum [..., q].

    The weights are relative to the maximum score; the sums are not yet divided by the total weight.
    """

    sums: jax.Array
    total: jax.Array
    maximum: jax.Array


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    metadata: AttentionMetadata,
    layer: jax.Array,
    options: AttentionOptions,
) -> jax.Array:
    """Compute causal grouped-query attention (Ainslie et al., arXiv:2305.13245), scores and softmax in float32.

    Args:
        query: [b, t, n, h].
        key: [b, t, k, h], n a multiple of k.
        value: [b, t, k, h].
        metadata: Which tokens each token attends to.
        layer: int32 [], the layer of the KV cache.
        options: How scores are computed.

    Returns:
        [b, t, n * h].
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    if query.dtype == jnp.float32:  # cheaper than scaling the scores; a narrower dtype would lose bits
        query, options = query * options.scale, options._replace(scale=1.0)
    # Key/value heads become a batch axis of plain matrix products.
    queries = query.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
    keys, values = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    past = None
    if metadata.state is not None:
        past = _attend_to_state(queries, metadata, metadata.state, layer, options)
    size = max(QUERY_BLOCK, -(-length // MAX_QUERY_BLOCKS))
    done: list[jax.Array] = []
    for begin in range(0, length, size):
        end = min(begin + size, length)
        block = queries[:, :, :, begin:end]
        if done:  # a data dependency: XLA would otherwise hold the scores of all blocks at once
            block = block + (done[-1][:, :, :, :1, :1] > jnp.inf).astype(block.dtype)
        mask = _mask(metadata, begin, end, options.window)[:, None, None]
        accumulator = None if past is None else _Accumulator(*(x[:, :, :, begin:end] for x in past))
        accumulator = _accumulate(accumulator, block, keys[:, :, :end], values[:, :, :end], mask, options)
        done.append((accumulator.sums / accumulator.total[..., None]).astype(value.dtype))
    joined = jnp.concatenate(done, axis=3) if len(done) > 1 else done[0]
    return joined.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads * width)


def _mask(metadata: AttentionMetadata, begin: int, end: int, window: jax.Array | None) -> jax.Array:
    """Return the mask bool [b or 1, q, s] of a row's queries in ``[begin, end)`` and keys in ``[0, end)``."""
    queries, keys = jnp.arange(begin, end)[:, None], jnp.arange(end)[None]
    mask = (keys <= queries)[None]
    if metadata.ends is not None:
        mask = mask & (queries[None] < metadata.ends[:, None, :end])
    if window is not None:
        positions = metadata.positions
        mask = mask & (positions[:, begin:end, None] - positions[:, None, :end] < window)
    return mask


def _accumulate(
    past: _Accumulator | None,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array | None,
    options: AttentionOptions,
) -> _Accumulator:
    """Add keys and values [r, k, s, h] to the attention of queries [r, k, g, q, h], after the keys in `past`.

    ``mask`` is bool with the rank of [r, k, g, q, s]; None: all keys are visible. Each query needs a finite maximum,
    either from these keys or from `past`.
    """
    rows, groups, shared, count, width = queries.shape
    flat = queries.reshape(rows, groups, shared * count, width)
    scores = jnp.einsum("rkqh,rksh->rkqs", flat, keys, preferred_element_type=jnp.float32)
    if not (isinstance(options.scale, float) and options.scale == 1.0):
        scores = scores * options.scale
    if options.softcap is not None:
        scores = jnp.tanh(scores / options.softcap) * options.softcap
    scores = scores.reshape(rows, groups, shared, count, -1)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    maximum = scores.max(axis=-1)
    if past is not None:
        maximum = jnp.maximum(maximum, past.maximum)
    weights = jnp.exp(scores - maximum[..., None])
    sums = jnp.einsum(
        "rkqs,rksh->rkqh",
        weights.astype(values.dtype).reshape(rows, groups, shared * count, -1),
        values,
        preferred_element_type=jnp.float32,
    )
    sums, total = sums.reshape(queries.shape), weights.sum(axis=-1)
    if past is not None:
        rescale = jnp.exp(past.maximum - maximum)
        sums, total = sums + past.sums * rescale[..., None], total + past.total * rescale
    return _Accumulator(sums, total, maximum)


def _attend_to_state(
    queries: jax.Array,
    metadata: AttentionMetadata,
    state: KVCache,
    layer: jax.Array,
    options: AttentionOptions,
) -> _Accumulator:
    """Attend queries [b, k, g, q, h] of a step to the KV cache."""
    batch, groups, shared, count, width = queries.shape
    rows, capacity = state.keys.shape[0], state.keys.shape[3]
    positions = jnp.broadcast_to(metadata.positions[:, None], (batch, shared, count))
    if rows == 1:  # all rows share the cache row, so they are queries of one product
        queries = queries.transpose(1, 0, 2, 3, 4)
    queries, positions = queries.reshape(rows, groups, 1, -1, width), positions.reshape(rows, -1)
    few = queries.shape[3] < SMALL_QUERY_COUNT and jax.default_backend() == "cpu"
    size = min(STATE_BLOCK // 4 if few else STATE_BLOCK, capacity)
    wide = UNMASKED_BLOCKS * size
    # Unmasked blocks do not help few queries. One as large as the cache would be read even if it is not full.
    has_full = options.window is None and capacity > wide and queries.shape[3] >= STATE_BLOCK
    full = state.lengths.min() // wide if has_full else 0
    blocks = (state.lengths.max() + size - 1) // size

    def attend_chunk(chunk: tuple[jax.Array, jax.Array]) -> _Accumulator:
        queries, positions = chunk

        def attend_block(begin: jax.Array, slots: int, is_full: bool, accumulator: _Accumulator) -> _Accumulator:
            start, sizes = (0, layer, 0, begin, 0), (rows, 1, groups, slots, width)
            keys, values = (jax.lax.dynamic_slice(x, start, sizes)[:, 0] for x in (state.keys, state.values))
            mask = None
            if not is_full:
                key_positions = begin + jnp.arange(slots, dtype=jnp.int32)
                mask = (key_positions[None] < state.lengths[:, None])[:, None]
                if options.window is not None:
                    mask = mask & (positions[..., None] - key_positions[None, None] < options.window)
                mask = mask[:, None, None]
            return _accumulate(accumulator, queries, keys, values, mask, options)

        no_score = jnp.full(queries.shape[:-1], _MIN_SCORE, jnp.float32)
        accumulator = _Accumulator(jnp.zeros(queries.shape, jnp.float32), jnp.zeros_like(no_score), no_score)
        if has_full:
            accumulator = jax.lax.fori_loop(0, full, lambda i, a: attend_block(i * wide, wide, True, a), accumulator)
        return jax.lax.fori_loop(  # type: ignore[no-any-return]
            full * UNMASKED_BLOCKS, blocks, lambda i, a: attend_block(i * size, size, False, a), accumulator
        )

    accumulator = _map_chunks(attend_chunk, queries, positions, interleaved=metadata.rows_sharded)
    if rows == 1:
        result = [x.reshape(groups, batch, shared, count, *x.shape[4:]).swapaxes(0, 1) for x in accumulator]
    else:
        result = [x.reshape(batch, groups, shared, count, *x.shape[4:]) for x in accumulator]
    return _Accumulator(*result)


def _map_chunks(
    attend_chunk: Callable[[tuple[jax.Array, jax.Array]], _Accumulator],
    queries: jax.Array,
    positions: jax.Array,
    *,
    interleaved: bool,
) -> _Accumulator:
    """Apply a function to queries [r, k, 1, n, h] at positions int32 [r, n], at most `STATE_QUERY_CHUNK` at a time.

    The function is compiled once for all chunks. Each interleaved chunk has queries of all rows: chunks are
    computed one after another, so devices that hold different rows then work in parallel.
    """
    count = queries.shape[3]
    chunks = next(chunks for chunks in range(-(-count // STATE_QUERY_CHUNK), count + 1) if count % chunks == 0)
    if chunks == 1:
        return attend_chunk((queries, positions))
    axis = 1 if interleaved else 0  # the chunk axis, of the two into which the query axis is split
    sizes = (-1, chunks) if interleaved else (chunks, -1)
    chunked_queries = jnp.moveaxis(queries.reshape(*queries.shape[:3], *sizes, queries.shape[4]), 3 + axis, 0)
    chunked_positions = jnp.moveaxis(positions.reshape(len(positions), *sizes), 1 + axis, 0)
    accumulator = jax.lax.map(attend_chunk, (chunked_queries, chunked_positions))
    merged = (jnp.moveaxis(x, 0, 3 + axis) for x in accumulator)
    return _Accumulator(*(x.reshape(*x.shape[:3], count, *x.shape[5:]) for x in merged))


_MIN_SCORE = -1e30
"""The initial maximum, in place of minus infinity: subtracting it from itself gives 0, not NaN."""


def round_up_to_blocks(capacity: int) -> int:
    """Round a capacity up to whole blocks, because the KV cache is read in blocks."""
    block = STATE_BLOCK if capacity > STATE_BLOCK else STATE_BLOCK // 4
    return -(-capacity // block) * block if capacity > block else capacity


def append_tokens(state: KVCache, keys: jax.Array, values: jax.Array, lengths: jax.Array) -> KVCache:
    """Return the state after a step, with keys and values [l, r, k, t, h] appended to each row.

    Of each row the first `lengths` int32 [r] tokens are real. The others are padding, which the next step overwrites
    and no token attends to. The rows need capacity for all t.
    """

    def write(row: jax.Array, new: jax.Array, begin: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, new, (0, 0, begin, 0))

    write_all = jax.vmap(write)
    return KVCache(
        write_all(state.keys, jnp.moveaxis(keys, 0, 1), state.lengths),
        write_all(state.values, jnp.moveaxis(values, 0, 1), state.lengths),
        state.lengths + lengths,
    )
