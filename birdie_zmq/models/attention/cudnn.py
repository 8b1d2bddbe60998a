"""Flash attention of cuDNN, for NVIDIA GPUs and 16-bit weights (Dao, 2023, arXiv:2307.08691).

JAX offers it as ``jax.nn.dot_product_attention(implementation="cudnn")``. That rounds the log-sum-exp to the dtype of the
output, and merging by a rounded one would change weights by several percent, so the functions below it are called, which
return float32. They are not public: `is_available` checks that they are there and take these arguments, and
`kernel_check` that they compute what XLA computes.

What cuDNN does not support is computed in XLA: soft caps, ALiBi, factors of scores that are arrays, wide heads (over 256,
before Hopper over 128), and windows over a KV cache.

Shape letters are those of `interface`; s keys.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.models.attention.interface import AttentionMetadata, AttentionOptions, CachedLayer, KeysValues
from birdie_zmq.models.attention.static_shapes import PartialAttention

SHORTEST_STEP = 16
"""Tokens of a shorter step attend to each other in XLA; in a decode step each attends only to itself."""

_MODULE = "jax._src.cudnn.fused_attention_stablehlo"
_ARGUMENTS = {"query", "key", "value", "q_seqlen", "kv_seqlen", "scale", "mask_type", "return_residual"}
_FUNCTIONS = {
    "dot_product_attention": _ARGUMENTS | {"mask", "sliding_window_length"},
    "paged_attention": _ARGUMENTS | {"page_table_k", "page_table_v"},
}

logger = logging.getLogger(__name__)


@functools.cache
def is_available() -> bool:
    """Return whether this JAX has the functions, with the arguments that are used here; warn if not."""
    try:
        module = importlib.import_module(_MODULE)
        for name, arguments in _FUNCTIONS.items():
            missing = sorted(arguments - set(inspect.signature(getattr(module, name)).parameters))
            if missing:
                raise AttributeError(f"{name} has no argument {missing[0]}")
        for mask_type in ("NO_MASK", "PADDING", "CAUSAL"):
            getattr(module.MaskType, mask_type)
    except (ImportError, AttributeError) as error:
        logger.warning("flash attention of cuDNN is off: jax %s is not supported (%s)", jax.__version__, error)
        return False
    return True


@dataclass(frozen=True)
class CudnnKernel:
    """Flash attention of cuDNN, as a `FlashKernel`."""

    def own(
        self, query: jax.Array, own: KeysValues, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention | None:
        """Attend to the tokens of the step: causally, or by a mask if there are trees."""
        if query.shape[1] < SHORTEST_STEP or not supports(query, options):
            return None
        keys, values = (x.transpose(0, 2, 1, 3) for x in own)
        length = query.shape[1]
        window = options.window if options.window is not None and options.window < length else None
        masks: dict[str, Any]
        if metadata.ends is None:
            masks = {"mask_type": "CAUSAL", "sliding_window_length": window}
        else:
            masks = {"mask_type": "NO_MASK", "mask": _mask(metadata, length, window)}
        return _call("dot_product_attention", query, keys, values, scale=options.scale, **masks)

    def cached(
        self, query: jax.Array, past: CachedLayer, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention | None:
        """Attend to the filled slots of a KV cache."""
        del metadata
        if options.window is not None or not supports(query, options):
            return None
        rows, groups = past.lengths.shape[0], past.cache.keys.shape[3] // query.shape[3]
        # cuDNN does not say what attention to no key is.
        lengths = jnp.maximum(past.lengths, 1)
        found = self._attend_to_slots(_join(query, rows, groups), past, lengths, options)
        if found is None:
            return None
        is_empty = (past.lengths == 0)[:, None, None]
        log_sum = jnp.where(is_empty, -jnp.inf, found.log_sum)
        output = jnp.where(is_empty[..., None], jnp.zeros((), found.output.dtype), found.output)
        return PartialAttention(_split(output, query.shape), _split(log_sum, query.shape[:3]))

    def _attend_to_slots(
        self, query: jax.Array, past: CachedLayer, lengths: jax.Array, options: AttentionOptions
    ) -> PartialAttention | None:
        """Attend from queries [r, q, k, h] to the first `lengths` int32 [r] slots."""
        layer = (jax.lax.dynamic_index_in_dim(x, past.layer, 1, keepdims=False) for x in past.cache)
        keys, values = (x.reshape(*x.shape[:2], -1, query.shape[3]) for x in layer)
        masks = {"mask_type": "PADDING", "q_seqlen": _all_queries(query), "kv_seqlen": lengths}
        return _call("dot_product_attention", query, keys, values, scale=options.scale, **masks)


@dataclass(frozen=True)
class PagedCudnnKernel(CudnnKernel):
    """Flash attention of cuDNN that reads the rows of a cache where they are.

    A slice of one layer of many rows would be copied first, so a decode step would read its cache once more and write it
    as well. To cuDNN the cache of all layers is a number of pages, one for each layer of each row, and the table of a row
    names the page of the layer that is computed. Only for one device: pages are numbered across all rows.
    """

    def _attend_to_slots(
        self, query: jax.Array, past: CachedLayer, lengths: jax.Array, options: AttentionOptions
    ) -> PartialAttention | None:
        rows, layers = past.cache.keys.shape[:2]
        if rows == 1:  # its slice is one piece of memory, and small beside what is computed from it
            return super()._attend_to_slots(query, past, lengths, options)
        keys, values = (x.reshape(rows * layers, x.shape[2], -1, query.shape[3]) for x in past.cache)
        pages = jnp.arange(rows, dtype=jnp.int32) * layers + past.layer
        # cuDNN wants as many entries as there are pages; those after the first are beyond the capacity of a row.
        table = jnp.broadcast_to(pages[:, None, None, None], (rows, 1, layers, 1))
        masks = {"mask_type": "PADDING", "q_seqlen": _all_queries(query), "kv_seqlen": lengths}
        tables = {"page_table_k": table, "page_table_v": table}
        return _call("paged_attention", query, keys, values, scale=options.scale, **masks, **tables)


def supports(query: jax.Array, options: AttentionOptions) -> bool:
    """Return whether cuDNN computes attention of these queries with these options."""
    is_plain = options.softcap is None and options.alibi is None and isinstance(options.scale, float)
    return is_plain and query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[3] % 8 == 0


def _join(query: jax.Array, rows: int, groups: int) -> jax.Array:
    """Return queries [b, t, n, h] as [r, b * t * g / r, k, h].

    All filled slots are visible to all tokens, so queries that share keys can be computed as if they were more tokens.
    Each key is then read once.
    """
    heads, width = query.shape[2:]
    joined = query.reshape(rows, -1, groups, heads // groups, width).swapaxes(2, 3)
    return joined.reshape(rows, -1, groups, width)


def _split(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return [r, b * t * g / r, k, ...] as [b, t, n, ...]."""
    batch, length, heads = shape[:3]
    groups = x.shape[2]
    split = x.reshape(batch, length, heads // groups, groups, *x.shape[3:])
    return split.swapaxes(2, 3).reshape(batch, length, heads, *x.shape[3:])


def _mask(metadata: AttentionMetadata, length: int, window: int | None) -> jax.Array:
    """Return which keys of a step are visible to which queries, bool [b or 1, 1, q, s]."""
    index = jnp.arange(length, dtype=jnp.int32)
    mask = (index[None] <= index[:, None])[None]
    if metadata.ends is not None:
        mask = mask & (index[None, :, None] < metadata.ends[:, None])
    if window is not None:
        mask = mask & (metadata.positions[:, :, None] - metadata.positions[:, None] < window)
    return mask[:, None]


def _all_queries(query: jax.Array) -> jax.Array:
    """Return the number of queries of each row, int32 [r]."""
    return jnp.full(query.shape[:1], query.shape[1], jnp.int32)


def _call(name: str, query: jax.Array, keys: jax.Array, values: jax.Array, **options: Any) -> PartialAttention | None:
    """Call a function of `_MODULE`; None if it does not support heads of this width on this device."""
    module: Any = importlib.import_module(_MODULE)
    options["mask_type"] = module.MaskType[options["mask_type"]]
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            output, log_sum = getattr(module, name)(query, keys, values, return_residual=True, **options)
    except NotImplementedError:
        return None
    return PartialAttention(output, log_sum.transpose(0, 2, 1))
