"""What attention computes, and the interface of its implementations, one for each platform.

Shape letters: b rows of the step, t position in a row, n query heads, k key/value heads, g query heads per key/value
head (n = k * g), h width of a head, l layer, r rows of the cache (b or 1), c capacity of a row of the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from birdie_zmq.models.alibi import Alibi


class Target(NamedTuple):
    """What a function is compiled for; hashable, and static under `jax.jit`.

    It is an argument, and not JAX's default device, so that a function can be compiled for devices that this machine lacks.

    Attributes:
        platform: JAX's name of the platform: ``cpu``, ``gpu`` or ``tpu``.
        mesh: The mesh of several devices, if any.
        kernel: The kernel that computes what it supports of attention. On a CPU, ``numba`` stands for those of `cpu_kernels`,
            which also compute products with the weights.
    """

    platform: str = "cpu"
    mesh: Mesh | None = None
    kernel: Literal["xla", "cudnn", "paged_cudnn", "splash", "numba"] = "xla"


CPU = Target()
"""One device of the platform ``cpu``."""


class CacheSize(NamedTuple):
    """The sizes of a KV cache: the number of layers that write it, of key/value heads, and the width of a head."""

    layers: int
    kv_heads: int
    head_width: int


class KVCache(NamedTuple):
    """The keys and values [r, l, ...] of the tokens of rows, for all layers with heads of these sizes.

    The layout of the other axes is the implementation's.
    """

    keys: jax.Array
    values: jax.Array


class CachedTokens(NamedTuple):
    """Tokens that come before those of a step.

    Attributes:
        caches: Their keys and values, one KV cache for each of the architecture's `cache_sizes`.
        lengths: int32 [r], the filled slots of each row: one row for each row of the step, or one for all.
        begin: int32 [], the position of the token in the first slot of every row.
    """

    caches: tuple[KVCache, ...]
    lengths: jax.Array
    begin: jax.Array

    def layer(self, cache: int, index: jax.Array) -> CachedLayer:
        """Return a layer, by the number of its cache and its index int32 [] in it."""
        return CachedLayer(self.caches[cache], index, self.lengths, self.begin)


class CachedLayer(NamedTuple):
    """One layer of `CachedTokens`: the cache, the layer's index int32 [] in it, and the other attributes."""

    cache: KVCache
    layer: jax.Array
    lengths: jax.Array
    begin: jax.Array


class KeysValues(NamedTuple):
    """The keys and values [b, k, t, h] that a layer computes in a step; [l, b, k, t, h] for several layers."""

    keys: jax.Array
    values: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("positions", "ends", "real"),
    meta_fields=("rows_sharded", "target"),
)
@dataclass(frozen=True)
class AttentionMetadata:
    """Which tokens each token of a step attends to.

    Attributes:
        positions: int32 [b or 1, t]; the position of each token in its own sequence.
        ends: int32 [b, t], or None. Token i of a row attends to its token j if ``j <= i < ends[j]``: a row may hold
            several sequences, or a tree of them in depth-first order. None: each row is one sequence.
        rows_sharded: Whether rows are sharded over groups of devices; no group should then wait for another's rows.
            Static under `jax.jit`.
        target: The devices that compute the step. Static under `jax.jit`.
        real: bool [b, t], the tokens that are not padding; None if padding is not known.
    """

    positions: jax.Array
    ends: jax.Array | None = None
    rows_sharded: bool = False
    target: Target = CPU
    real: jax.Array | None = None


class AttentionOptions(NamedTuple):
    """How attention scores are computed from the products of queries and keys.

    Attributes:
        scale: The factor of the scores.
        window: A position attends to itself and the ``window - 1`` before it. None: to all before it.
        softcap: Scores are capped to (-softcap, softcap) by tanh, as in Gemma 2.
        alibi: The bias of each head by distance, in place of rotary positions.
        sinks: A score [n] of each head that every query has in addition to its keys, with a value of zero (Xiao et al.,
            2023, arXiv:2309.17453).
    """

    scale: float | jax.Array
    window: int | None = None
    softcap: float | None = None
    alibi: Alibi | None = None
    sinks: jax.Array | None = None


class AttentionImplementation(Protocol):
    """Attention on one platform, and the layout of its KV caches; hashable, and static under `jax.jit`.

    Attributes:
        heads_axis: The axis of keys and values in a cache that is sharded by key/value heads.
    """

    heads_axis: int

    def create_cache(self, rows: int, size: CacheSize, capacity: int, dtype: DTypeLike) -> KVCache:
        """Create an empty cache of rows with a capacity of `capacity` tokens each."""
        ...

    def resize_cache(self, cache: KVCache, capacity: int) -> KVCache:
        """Return the cache with another capacity in tokens; slots beyond it are dropped, and further ones are empty."""
        ...

    def append_tokens(self, cache: KVCache, offset: int, new: KeysValues, lengths: jax.Array) -> KVCache:
        """Return the cache with keys and values [l, r, k, t, h] of a step written to the layers from `offset` on.

        Each row is written from its slot `lengths` int32 [r] on. Padding is written too: no token attends to it, and the
        next step overwrites it. The rows need capacity for all t.
        """
        ...

    def take_tokens(self, past: CachedLayer, slots: jax.Array) -> jax.Array:
        """Return what one slot of each row of a cache holds: keys and then values, [s, 2 * k * h].

        Args:
            past: The layer of a KV cache with s rows, or with one row for all.
            slots: int32 [s]; one that the cache does not have gives any other.
        """
        ...

    def attend(
        self,
        query: jax.Array,
        own: KeysValues,
        past: Sequence[CachedLayer],
        metadata: AttentionMetadata,
        options: AttentionOptions,
    ) -> jax.Array:
        """Compute causal grouped-query attention (Ainslie et al., arXiv:2305.13245), scores and softmax in float32.

        Args:
            query: [b, t, n, h].
            own: Keys and values [b, k, t, h] of the same tokens, n a multiple of k.
            past: The layer of the KV caches with the tokens before them, which a row attends to one after another.
            metadata: Which tokens each token attends to.
            options: How scores are computed.

        Returns:
            [b, t, n * h].
        """
        ...
