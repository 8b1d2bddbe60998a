"""Attention in XLA for GPUs and TPUs: no shape and no number of turns of a loop depends on how many tokens a row has.

A loop whose number of turns is known only when it runs makes a GPU wait for the host before each turn. So all slots of a
KV cache are read, and a mask hides those that are not filled; the engine chooses capacities from few sizes, so few are
empty.

Attention to the tokens of a step and to each cache is computed separately, and merged by the log-sum-exp of their scores
(Dao et al., 2022, arXiv:2205.14135). A kernel can compute either part; see `FlashKernel`.

Shape letters are those of `interface`; s keys.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

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
from birdie_zmq.models.layouts import cache_in_order

SCORE_BYTES = 2**28
"""Maximum memory for the float32 scores that are computed at once."""

SLOT_UNIT = 64
"""Capacities are multiples of this number of slots."""


class PartialAttention(NamedTuple):
    """Attention to some of the keys that each query attends to.

    Attributes:
        output: [b, t, n, h], the mean of the values, weighted by the softmax over these keys; finite.
        log_sum: float32 [b, t, n], the logarithm of the sum of the exponentials of the scores; minus infinity if a query
            attends to none of these keys.
    """

    output: jax.Array
    log_sum: jax.Array


class FlashKernel(Protocol):
    """A kernel that computes attention without holding scores in memory; hashable, and static under `jax.jit`."""

    def own(
        self, query: jax.Array, own: KeysValues, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention | None:
        """Attend to the tokens of the step; None if the kernel does not support this."""
        ...

    def cached(
        self, query: jax.Array, past: CachedLayer, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention | None:
        """Attend to the tokens of a KV cache; None if the kernel does not support this."""
        ...


@dataclass(frozen=True)
class StaticAttention:
    """Attention on a GPU or a TPU.

    Its caches hold keys and values [r, l, c, k * h], without an axis of its own for the width of a head: a TPU would pad
    an axis of 64 to 128, and flash-attention kernels take heads next to each other.

    Attributes:
        kernel: Computes what it supports; None computes all in XLA.
    """

    kernel: FlashKernel | None = None
    heads_axis = 3

    def create_cache(self, rows: int, size: CacheSize, capacity: int, dtype: DTypeLike) -> KVCache:
        """Create an empty cache of rows with a capacity of `capacity` tokens each."""
        slots = -(-capacity // SLOT_UNIT) * SLOT_UNIT
        shape = (rows, size.layers, slots, size.kv_heads * size.head_width)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def resize_cache(self, cache: KVCache, capacity: int) -> KVCache:
        """Return the cache with another capacity in tokens."""
        slots = -(-capacity // SLOT_UNIT) * SLOT_UNIT
        return KVCache(*(with_slots(x, slots, axis=2) for x in cache))

    def append_tokens(self, cache: KVCache, offset: int, new: KeysValues, lengths: jax.Array) -> KVCache:
        """Return the cache with tokens of a step, as `AttentionImplementation.append_tokens` describes it."""

        def write(row: jax.Array, new: jax.Array, begin: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(row, new, (offset, begin, 0))

        layers, rows, _, length, _ = new.keys.shape
        flat = (x.transpose(1, 0, 3, 2, 4).reshape(rows, layers, length, -1) for x in new)
        keys, values = (jax.vmap(write)(old, x, lengths) for old, x in zip(cache, flat, strict=True))
        return KVCache(keys, values)

    def take_tokens(self, past: CachedLayer, slots: jax.Array) -> jax.Array:
        """Return what one slot of each row holds, as `AttentionImplementation.take_tokens` describes it."""
        rows = jnp.arange(len(slots), dtype=jnp.int32) % past.cache.keys.shape[0]
        slots = jnp.clip(slots, 0, past.cache.keys.shape[2] - 1)
        return jnp.concatenate([x[rows, past.layer, slots] for x in past.cache], axis=-1)

    def attend(
        self,
        query: jax.Array,
        own: KeysValues,
        past: Sequence[CachedLayer],
        metadata: AttentionMetadata,
        options: AttentionOptions,
    ) -> jax.Array:
        """Compute causal attention, as `AttentionImplementation.attend` describes it."""
        parts = [self._attend_to_own(query, own, metadata, options)]
        parts += [self._attend_to_cache(query, each, metadata, options) for each in past]
        if options.sinks is not None:
            log_sum = jnp.broadcast_to(options.sinks.astype(jnp.float32)[None, None], query.shape[:3])
            parts.append(PartialAttention(jnp.zeros_like(query), log_sum))
        merged = merge(parts).astype(own.values.dtype)
        return merged.reshape(*merged.shape[:2], -1)

    def _attend_to_own(
        self, query: jax.Array, own: KeysValues, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention:
        found = None if self.kernel is None else self.kernel.own(query, own, metadata, options)
        return attend_to_own(query, own, metadata, options) if found is None else found

    def _attend_to_cache(
        self, query: jax.Array, past: CachedLayer, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention:
        found = None if self.kernel is None else self.kernel.cached(query, past, metadata, options)
        return attend_to_cache(query, past, metadata, options) if found is None else found


def merge(parts: Sequence[PartialAttention]) -> jax.Array:
    """Return the attention [b, t, n, h] to the keys of all parts; each query attends to a key of one of them."""
    if len(parts) == 1:
        return parts[0].output
    log_sums = jnp.stack([part.log_sum for part in parts])
    weights = jax.nn.softmax(log_sums, axis=0)
    weighted = [
        part.output.astype(jnp.float32) * weight[..., None] for part, weight in zip(parts, weights, strict=True)
    ]
    merged: jax.Array = functools.reduce(operator.add, weighted)
    return merged


def attend_to_own(
    query: jax.Array, own: KeysValues, metadata: AttentionMetadata, options: AttentionOptions
) -> PartialAttention:
    """Attend from queries [b, t, n, h] to the tokens of the step."""
    length, groups = query.shape[1], own.keys.shape[1]

    def attend_block(begin: jax.Array | int, block: _Queries) -> _Grouped:
        index = jnp.arange(block.queries.shape[3], dtype=jnp.int32) + begin
        keys = jnp.arange(length, dtype=jnp.int32)
        mask = (keys[None] <= index[:, None])[None]
        if metadata.ends is not None:
            mask = mask & (index[None, :, None] < metadata.ends[:, None])
        if options.window is not None and options.window < length:
            mask = mask & (block.positions[:, :, None] - metadata.positions[:, None] < options.window)
        bias = None if block.bias is None else block.bias.of_keys(metadata.positions[:, None, None])
        return _attend(block.queries, own.keys, own.values, _Visible(mask[:, None, None], bias), options)

    grouped = _map_blocks(attend_block, _group(query, groups, metadata, options), length)
    return _ungroup(grouped)


def attend_to_cache(
    query: jax.Array, past: CachedLayer, metadata: AttentionMetadata, options: AttentionOptions
) -> PartialAttention:
    """Attend from queries [b, t, n, h] to the tokens of a KV cache."""
    batch, _, _, width = query.shape
    cached = window_of(past, options.window, metadata.target.platform)
    rows, slots, groups = cached.keys.shape[0], cached.keys.shape[1], cached.keys.shape[2] // width
    keys, values = (x.reshape(rows, slots, groups, width).transpose(0, 2, 1, 3) for x in (cached.keys, cached.values))

    def attend_block(begin: jax.Array | int, block: _Queries) -> _Grouped:
        del begin
        mask = (cached.slots < past.lengths[:, None])[:, None]
        key_positions = past.begin + cached.slots
        if options.window is not None:
            mask = mask & (block.positions[:, :, None] - key_positions[:, None] < options.window)
        bias = None if block.bias is None else block.bias.of_keys(key_positions[:, None, None])
        return _attend(block.queries, keys, values, _Visible(mask[:, None, None], bias), options)

    grouped = _group(query, groups, metadata, options)
    if rows == 1 and batch > 1:  # all queries read one row, in one product
        attended = _map_blocks(attend_block, grouped.in_one_row(), slots)
        attended = _Grouped(*(_split_row(x, batch) for x in attended))
    else:
        attended = _map_blocks(attend_block, grouped, slots)
    return _ungroup(attended)


class CachedSlots(NamedTuple):
    """Some slots of a layer of a KV cache: keys and values [r, s, k * h], and the numbers of the slots, int32 [r, s]."""

    keys: jax.Array
    values: jax.Array
    slots: jax.Array


def window_of(past: CachedLayer, window: int | None, platform: str) -> CachedSlots:
    """Return the slots that tokens after a cache can attend to: all, or the last filled ones, as many as the window spans."""
    rows, _, capacity, width = past.cache.keys.shape
    count = capacity if window is None else min(capacity, -(-window // SLOT_UNIT) * SLOT_UNIT)
    if count == capacity:
        layer = (cache_in_order(jax.lax.dynamic_index_in_dim(x, past.layer, 1), platform) for x in past.cache)
        keys, values = (x[:, 0] for x in layer)
        return CachedSlots(keys, values, jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), (rows, capacity)))
    begins = jnp.clip(past.lengths - count, 0, capacity - count)

    def take(row: jax.Array, begin: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(row, (past.layer, begin, 0), (1, count, width))[0]

    keys, values = (jax.vmap(take)(x, begins) for x in past.cache)
    return CachedSlots(keys, values, begins[:, None] + jnp.arange(count, dtype=jnp.int32)[None])


class _Queries(NamedTuple):
    """Queries [r, k, g, q, h], their positions int32 [r or 1, q], and their bias."""

    queries: jax.Array
    positions: jax.Array
    bias: QueryBias | None

    def in_one_row(self) -> _Queries:
        """Return the queries of all rows as those of one row."""
        batch, groups, shared, count = self.queries.shape[:4]

        def join(x: jax.Array) -> jax.Array:
            return jnp.moveaxis(x, 0, 2).reshape(1, groups, shared, batch * count, *x.shape[4:])

        positions = jnp.broadcast_to(self.positions, (batch, count)).reshape(1, -1)
        return _Queries(join(self.queries), positions, None if self.bias is None else self.bias.map(join))


class _Grouped(NamedTuple):
    """`PartialAttention` by key/value heads: output [r, k, g, q, h] and log_sum float32 [r, k, g, q]."""

    output: jax.Array
    log_sum: jax.Array


class _Visible(NamedTuple):
    """Which keys are visible: a mask bool [r or 1, 1, 1, q, s], and the bias of the scores, if any."""

    mask: jax.Array
    bias: jax.Array | None


def _group(query: jax.Array, groups: int, metadata: AttentionMetadata, options: AttentionOptions) -> _Queries:
    """Return queries [b, t, n, h] by key/value heads."""
    batch, length, heads, width = query.shape
    shared = heads // groups
    queries = query.reshape(batch, length, groups, shared, width).transpose(0, 2, 3, 1, 4)
    if options.alibi is None:
        return _Queries(queries, metadata.positions, None)
    slopes = jnp.broadcast_to(options.alibi.slopes.reshape(1, groups, shared, 1), queries.shape[:4])
    positions = jnp.broadcast_to(metadata.positions[:, None, None], queries.shape[:4])
    return _Queries(queries, metadata.positions, QueryBias(options.alibi, slopes, positions))


def _ungroup(grouped: _Grouped) -> PartialAttention:
    """Return attention [r, k, g, q, ...] as [b, t, n, ...]."""
    rows, groups, shared, count, width = grouped.output.shape
    output = grouped.output.transpose(0, 3, 1, 2, 4).reshape(rows, count, groups * shared, width)
    return PartialAttention(output, grouped.log_sum.transpose(0, 3, 1, 2).reshape(rows, count, groups * shared))


def _split_row(x: jax.Array, batch: int) -> jax.Array:
    """Split the queries of one row [1, k, g, b * q, ...] into rows [b, k, g, q, ...]."""
    return jnp.moveaxis(x.reshape(*x.shape[1:3], batch, -1, *x.shape[4:]), 2, 0)


def _map_blocks(function: Callable[[jax.Array | int, _Queries], _Grouped], queries: _Queries, keys: int) -> _Grouped:
    """Apply a function to blocks of queries, each as large as `SCORE_BYTES` allows, with the number of its first query.

    The function is compiled once for all blocks.
    """
    rows, groups, shared, count, _ = queries.queries.shape
    fitting = max(1, SCORE_BYTES // (4 * rows * groups * shared * keys))
    blocks = next(blocks for blocks in range(-(-count // fitting), count + 1) if count % blocks == 0)
    if blocks == 1:
        return function(0, queries)
    size = count // blocks

    def split(x: jax.Array, axis: int) -> jax.Array:
        return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :]), axis, 0)

    begins = jnp.arange(blocks, dtype=jnp.int32) * size
    bias = None if queries.bias is None else queries.bias.map(lambda x: split(x, 3))
    parts = _Queries(split(queries.queries, 3), split(queries.positions, 1), bias)
    mapped = jax.lax.map(lambda each: function(*each), (begins, parts))
    joined = (jnp.moveaxis(x, 0, 3) for x in mapped)
    return _Grouped(*(x.reshape(*x.shape[:3], count, *x.shape[5:]) for x in joined))


def _attend(
    queries: jax.Array, keys: jax.Array, values: jax.Array, visible: _Visible, options: AttentionOptions
) -> _Grouped:
    """Attend from queries [r, k, g, q, h] to keys and values [r, k, s, h]."""
    rows, groups, shared, count, width = queries.shape
    flat = queries.reshape(rows, groups, shared * count, width)
    scores = jnp.einsum("rkqh,rksh->rkqs", flat, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(rows, groups, shared, count, -1) * options.scale
    if options.softcap is not None:
        scores = jnp.tanh(scores / options.softcap) * options.softcap
    if visible.bias is not None:
        scores = scores + visible.bias
    scores = jnp.where(visible.mask, scores, -jnp.inf)
    maximum = scores.max(axis=-1)
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(maximum), maximum, 0.0)[..., None])
    total = weights.sum(axis=-1)
    sums = jnp.einsum(
        "rkqs,rksh->rkqh",
        weights.astype(values.dtype).reshape(rows, groups, shared * count, -1),
        values,
        preferred_element_type=jnp.float32,
    )
    sees_any = total > 0
    output = sums.reshape(queries.shape) / jnp.where(sees_any, total, 1.0)[..., None]
    log_sum = jnp.where(sees_any, maximum + jnp.log(jnp.where(sees_any, total, 1.0)), -jnp.inf)
    return _Grouped(output, log_sum)
