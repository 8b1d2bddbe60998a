"""Attention on a CPU: causal, over the tokens of a step and over the KV cache of the tokens before them.

Shape letters are those of `interface`. Inside the blockwise computation: q queries, s keys.

The loop over a cache covers the slots that are filled, so the number of its turns is known only when it runs. For a CPU
that costs nothing; `static_shapes` is for devices that would wait for the host before each turn.

Scores are computed for a block of queries and a block of keys at a time, small enough to stay in the processor's cache.
Over several blocks of keys the softmax is computed online (Milakov and Gimelshein, 2018, arXiv:1805.02867; Dao et al.,
2022, arXiv:2205.14135).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from birdie_zmq.models import cpu_kernels
from birdie_zmq.models.alibi import QueryBias
from birdie_zmq.models.attention.interface import (
    AttentionMetadata,
    AttentionOptions,
    CachedLayer,
    CacheSize,
    KeysValues,
    KVCache,
)
from birdie_zmq.models.attention.slots import with_slots

QUERY_BLOCK = 128
"""Queries per block; each block attends only to keys up to its own end."""

MAX_QUERY_BLOCKS = 16
"""Maximum number of query blocks per row, since each is compiled separately. Longer rows have larger blocks."""

STATE_BLOCK = 256
"""Slots of the KV cache per block of keys; the loop covers as many blocks as the longest row fills."""

SMALL_QUERY_COUNT = 32
"""With fewer queries, a CPU spends most time on reading the cache: the last block is half as large, or a quarter."""

WIDE_BLOCKS = 2
"""Number of blocks that are read at once as long as all rows fill them, without a mask; by few queries, as long as any does."""

STATE_QUERY_CHUNK = 1024
"""Maximum queries that attend to the KV cache at once."""


class _Accumulator(NamedTuple):
    """Online softmax over the keys so far: float32 weighted sums of values [..., q, h], total weight and maximum [..., q].

    The weights are relative to the maximum score; the sums are not yet divided by the total weight.
    """

    sums: jax.Array
    total: jax.Array
    maximum: jax.Array


def attention(
    query: jax.Array,
    own: KeysValues,
    past: Sequence[CachedLayer],
    metadata: AttentionMetadata,
    options: AttentionOptions,
) -> jax.Array:
    """Compute causal attention, as `AttentionImplementation.attend` describes it."""
    batch, length, heads, width = query.shape
    groups = own.keys.shape[1]
    if query.dtype == jnp.float32:  # cheaper than scaling the scores; a narrower dtype would lose bits
        query, options = query * options.scale, options._replace(scale=1.0)
    # Key/value heads become a batch axis of plain matrix products.
    shared = heads // groups
    queries = query.reshape(batch, length, groups, shared, width).transpose(0, 2, 3, 1, 4)
    bias = None
    if options.alibi is not None:
        slopes = options.alibi.slopes.reshape(1, groups, shared, 1)
        positions = jnp.broadcast_to(metadata.positions[:, None, None], (batch, groups, shared, length))
        bias = QueryBias(options.alibi, jnp.broadcast_to(slopes, positions.shape), positions)
    accumulated = None if options.sinks is None else _start_with_sinks(queries, options.sinks)
    reach = length + sum(each.cache.values.shape[3] for each in past)
    for each in past:
        of_cache = _attend_to_cache(queries, metadata, each, bias, options, reach)
        accumulated = of_cache if accumulated is None else _merge(accumulated, of_cache)
    size = max(QUERY_BLOCK, -(-length // MAX_QUERY_BLOCKS))
    done: list[jax.Array] = []
    for begin in range(0, length, size):
        end = min(begin + size, length)
        block = queries[:, :, :, begin:end]
        if done:  # a data dependency: XLA would otherwise hold the scores of all blocks at once
            block = block + (done[-1][:, :, :, :1, :1] > jnp.inf).astype(block.dtype)
        visible = _Visible(_mask(metadata, begin, end, options.window)[:, None, None])
        if bias is not None:
            of_block = bias.map(operator.itemgetter((..., slice(begin, end))))
            visible = visible._replace(bias=of_block.of_keys(metadata.positions[:, None, None, :end]))
        accumulator = None if accumulated is None else _Accumulator(*(x[:, :, :, begin:end] for x in accumulated))
        keys = own.keys[:, :, :end].swapaxes(2, 3)
        accumulator = _accumulate(accumulator, block, keys, own.values[:, :, :end], visible, options)
        done.append((accumulator.sums / accumulator.total[..., None]).astype(own.values.dtype))
    joined = jnp.concatenate(done, axis=3) if len(done) > 1 else done[0]
    return joined.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads * width)


def _start_with_sinks(queries: jax.Array, sinks: jax.Array) -> _Accumulator:
    """Return the attention of queries [b, k, g, t, h] to the sink [n] of their head, whose value is zero."""
    scores = sinks.astype(jnp.float32).reshape(1, *queries.shape[1:3], 1)
    maximum = jnp.broadcast_to(scores, queries.shape[:-1])
    return _Accumulator(jnp.zeros(queries.shape, jnp.float32), jnp.ones_like(maximum), maximum)


class _Visible(NamedTuple):
    """Which keys are visible: a mask bool, None if all are, and the bias of the scores, both with the rank of [r, k, g, q, s]."""

    mask: jax.Array | None
    bias: jax.Array | None = None


def _mask(metadata: AttentionMetadata, begin: int, end: int, window: int | None) -> jax.Array:
    """Return the mask bool [b or 1, q, s] of a row's queries in ``[begin, end)`` and keys in ``[0, end)``."""
    queries, keys = jnp.arange(begin, end)[:, None], jnp.arange(end)[None]
    mask = (keys <= queries)[None]
    if metadata.ends is not None:
        mask = mask & (queries[None] < metadata.ends[:, None, :end])
    if window is not None and window < end:
        positions = metadata.positions
        mask = mask & (positions[:, begin:end, None] - positions[:, None, :end] < window)
    return mask


def _accumulate(
    past: _Accumulator | None,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: _Visible,
    options: AttentionOptions,
) -> _Accumulator:
    """Add keys [r, k, h, s] and values [r, k, s, h] to the attention of queries [r, k, g, q, h], after the keys in `past`.

    Each query needs a finite maximum, either from these keys or from `past`.
    """
    rows, groups, shared, count, width = queries.shape
    flat = queries.reshape(rows, groups, shared * count, width)
    scores = jnp.einsum("rkqh,rkhs->rkqs", flat, keys, preferred_element_type=jnp.float32)
    if not (isinstance(options.scale, float) and options.scale == 1.0):
        scores = scores * options.scale
    if options.softcap is not None:
        scores = jnp.tanh(scores / options.softcap) * options.softcap
    scores = scores.reshape(rows, groups, shared, count, -1)
    if visible.bias is not None:
        scores = scores + visible.bias
    if visible.mask is not None:
        scores = jnp.where(visible.mask, scores, -jnp.inf)
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


def _merge(first: _Accumulator, second: _Accumulator) -> _Accumulator:
    """Return the attention to the keys of both."""
    maximum = jnp.maximum(first.maximum, second.maximum)
    scales = jnp.exp(first.maximum - maximum), jnp.exp(second.maximum - maximum)
    sums = first.sums * scales[0][..., None] + second.sums * scales[1][..., None]
    return _Accumulator(sums, first.total * scales[0] + second.total * scales[1], maximum)


def _attend_to_cache(
    queries: jax.Array,
    metadata: AttentionMetadata,
    past: CachedLayer,
    bias: QueryBias | None,
    options: AttentionOptions,
    reach: int,
) -> _Accumulator:
    """Attend queries [b, k, g, q, h] of a step, with positions below `reach`, to a KV cache."""
    batch, groups, shared, count, width = queries.shape
    rows, capacity = past.cache.values.shape[0], past.cache.values.shape[3]
    if metadata.target.kernel == "numba" and bias is None:
        computed = _attend_by_kernel(queries, metadata, past, options)
        if computed is not None:
            return computed
    lengths = past.lengths
    # A window that reaches from any query to the first slot needs no mask.
    window = options.window if options.window is not None and options.window < reach else None
    positions = jnp.broadcast_to(metadata.positions[:, None], (batch, shared, count))

    def by_cache_row(x: jax.Array) -> jax.Array:
        """Reshape [b, k, g, q, ...] to [r, k, 1, n, ...]: if all rows share a cache row, they are queries of one product."""
        x = x.swapaxes(0, 1) if rows == 1 else x
        return x.reshape(rows, groups, 1, -1, *x.shape[4:])

    queries, positions = by_cache_row(queries), positions.reshape(rows, -1)
    bias = None if bias is None else bias.map(by_cache_row)
    few = queries.shape[3] < SMALL_QUERY_COUNT
    size = min(_smallest_block(capacity) if few else STATE_BLOCK, capacity)
    wide = WIDE_BLOCKS * STATE_BLOCK
    # A wide block as large as the cache would be read even if it is not full.
    has_wide = window is None and capacity > wide and (few or queries.shape[3] >= STATE_BLOCK)
    filled = (lengths.max() if few else lengths.min()) // wide if has_wide else 0
    first = filled * (wide // size)
    if window is not None:
        first = jnp.maximum(positions.min() - past.begin - window + 1, 0) // size
    blocks = (lengths.max() + size - 1) // size

    def attend_chunk(chunk: tuple[jax.Array, jax.Array, QueryBias | None]) -> _Accumulator:
        queries, positions, bias = chunk

        def attend_block(begin: jax.Array, slots: int, is_full: bool, accumulator: _Accumulator) -> _Accumulator:
            start = (0, past.layer, 0)
            keys = jax.lax.dynamic_slice(past.cache.keys, (*start, 0, begin), (rows, 1, groups, width, slots))[:, 0]
            values = jax.lax.dynamic_slice(past.cache.values, (*start, begin, 0), (rows, 1, groups, slots, width))[:, 0]
            key_slots = begin + jnp.arange(slots, dtype=jnp.int32)
            key_positions = past.begin + key_slots
            mask = None
            if not is_full:
                mask = (key_slots[None] < lengths[:, None])[:, None]
                if window is not None:
                    mask = mask & (positions[..., None] - key_positions[None, None] < window)
                mask = mask[:, None, None]
            visible = _Visible(mask, None if bias is None else bias.of_keys(key_positions[None, None, None]))
            return _accumulate(accumulator, queries, keys, values, visible, options)

        no_score = jnp.full(queries.shape[:-1], _MIN_SCORE, jnp.float32)
        accumulator = _Accumulator(jnp.zeros(queries.shape, jnp.float32), jnp.zeros_like(no_score), no_score)
        if has_wide:
            accumulator = jax.lax.fori_loop(
                0, filled, lambda i, a: attend_block(i * wide, wide, not few, a), accumulator
            )
        return jax.lax.fori_loop(  # type: ignore[no-any-return]
            first, blocks, lambda i, a: attend_block(i * size, size, False, a), accumulator
        )

    accumulator = _map_chunks(attend_chunk, queries, positions, bias, interleaved=metadata.rows_sharded)
    if rows == 1:
        result = [x.reshape(groups, batch, shared, count, *x.shape[4:]).swapaxes(0, 1) for x in accumulator]
    else:
        result = [x.reshape(batch, groups, shared, count, *x.shape[4:]) for x in accumulator]
    return _Accumulator(*result)


def _attend_by_kernel(
    queries: jax.Array, metadata: AttentionMetadata, past: CachedLayer, options: AttentionOptions
) -> _Accumulator | None:
    """Attend queries [b, k, g, 1, h] to a KV cache by the kernel of `cpu_kernels`; None if it does not support this."""
    kernels = cpu_kernels.load() if queries.shape[3] == 1 and options.softcap is None else None
    if kernels is None:
        return None
    first = jnp.zeros_like(past.lengths)
    if options.window is not None:
        first = jnp.maximum(first, metadata.positions[:, 0] - past.begin - options.window + 1)
    slots = first, past.lengths
    computed = kernels.attend_to_cache(queries[:, :, :, 0], *past.cache, past.layer, slots)
    if computed is None:
        return None
    sums, total, maximum = computed
    return _Accumulator(sums[:, :, :, None], total[..., None], maximum[..., None])


def _map_chunks(
    attend_chunk: Callable[[tuple[jax.Array, jax.Array, QueryBias | None]], _Accumulator],
    queries: jax.Array,
    positions: jax.Array,
    bias: QueryBias | None,
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
        return attend_chunk((queries, positions, bias))
    place = 1 if interleaved else 0  # of the chunk axis, of the two into which the query axis is split
    sizes = (-1, chunks) if interleaved else (chunks, -1)

    def split(x: jax.Array, axis: int) -> jax.Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :]), axis + place, 0)

    split_bias = None if bias is None else bias.map(lambda x: split(x, 3))
    accumulator = jax.lax.map(attend_chunk, (split(queries, 3), split(positions, 1), split_bias))
    merged = (jnp.moveaxis(x, 0, 3 + place) for x in accumulator)
    return _Accumulator(*(x.reshape(*x.shape[:3], count, *x.shape[5:]) for x in merged))


_MIN_SCORE = -1e30
"""The initial maximum, in place of minus infinity: subtracting it from itself gives 0, not NaN."""


def _smallest_block(capacity: int) -> int:
    """Return the size of the blocks at the end of a cache that few queries read; the capacity is a multiple of it."""
    return STATE_BLOCK // 2 if capacity % (STATE_BLOCK // 2) == 0 else STATE_BLOCK // 4


def round_up_to_blocks(capacity: int) -> int:
    """Round a capacity up to whole blocks, because the KV cache is read in blocks."""
    block = STATE_BLOCK if capacity > STATE_BLOCK else STATE_BLOCK // 4
    return -(-capacity // block) * block if capacity > block else capacity


def append_tokens(cache: KVCache, offset: int, new: KeysValues, lengths: jax.Array) -> KVCache:
    """Return the cache with tokens of a step, as `AttentionImplementation.append_tokens` describes it."""

    def write_keys(row: jax.Array, new: jax.Array, begin: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, new.swapaxes(2, 3), (offset, 0, 0, begin))

    def write_values(row: jax.Array, new: jax.Array, begin: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(row, new, (offset, 0, begin, 0))

    keys, values = (jnp.moveaxis(x, 0, 1) for x in new)
    return KVCache(
        jax.vmap(write_keys)(cache.keys, keys, lengths), jax.vmap(write_values)(cache.values, values, lengths)
    )


def take_tokens(past: CachedLayer, slots: jax.Array) -> jax.Array:
    """Return what one slot of each row holds, as `AttentionImplementation.take_tokens` describes it."""
    rows = jnp.arange(len(slots), dtype=jnp.int32) % past.cache.keys.shape[0]
    slots = jnp.clip(slots, 0, past.cache.keys.shape[4] - 1)
    keys, values = past.cache.keys[rows, past.layer, :, :, slots], past.cache.values[rows, past.layer, :, slots]
    return jnp.concatenate([keys.reshape(len(slots), -1), values.reshape(len(slots), -1)], axis=-1)


@dataclass(frozen=True)
class BlockwiseAttention:
    """Attention on a CPU.

    Its caches hold keys [r, l, k, h, c] and values [r, l, k, c, h]. Both are laid out as the right-hand side of the matrix
    product that reads them, so that a CPU need not transpose them for few queries.
    """

    heads_axis = 2
    append_tokens = staticmethod(append_tokens)
    take_tokens = staticmethod(take_tokens)
    attend = staticmethod(attention)

    def create_cache(self, rows: int, size: CacheSize, capacity: int, dtype: DTypeLike) -> KVCache:
        """Create an empty cache of rows with a capacity of `capacity` tokens each."""
        slots, heads = round_up_to_blocks(capacity), (rows, size.layers, size.kv_heads)
        return KVCache(
            jnp.zeros((*heads, size.head_width, slots), dtype), jnp.zeros((*heads, slots, size.head_width), dtype)
        )

    def resize_cache(self, cache: KVCache, capacity: int) -> KVCache:
        """Return the cache with another capacity in tokens."""
        slots = round_up_to_blocks(capacity)
        return KVCache(with_slots(cache.keys, slots, axis=4), with_slots(cache.values, slots, axis=3))
