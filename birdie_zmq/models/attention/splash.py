"""Splash attention, for TPUs and 16-bit weights: a flash-attention kernel of JAX in Pallas (arXiv:2307.08691).

It computes the tokens of a step whose rows are one text each, with or without a window and a soft cap. Trees and KV caches
are computed in XLA, and a decode step in a form that suits the layout of arrays on a TPU.

Shape letters are those of `interface`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.models.attention.interface import AttentionMetadata, AttentionOptions, CachedLayer, KeysValues
from birdie_zmq.models.attention.static_shapes import PartialAttention
from birdie_zmq.models.layouts import cache_in_order

LANES = 128
"""The unit in which a TPU lays out the last axis of an array; rows and heads are padded to multiples of it."""

BLOCK = 512
"""Maximum number of tokens of a block of queries or keys."""


_FEW_TOKENS = 4
"""Tokens of a row that attend to a KV cache without separating its heads."""

_MIN_SCORE = -1e30
"""The score of a slot that is not filled: finite, so that a row without a filled slot has finite attention."""


@dataclass(frozen=True)
class SplashKernel:
    """Attention on a TPU, as a `FlashKernel`.

    Attributes:
        interpret: Whether the kernel is run in Python, on any platform; for tests.
    """

    interpret: bool = False

    def own(
        self, query: jax.Array, own: KeysValues, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention | None:
        """Attend to the tokens of the step."""
        length, heads, width = query.shape[1:]
        if metadata.ends is not None or length < LANES or not _supports(query, options):
            return None
        padding = -length % LANES, -width % LANES
        # The kernel does not scale scores. Zeros at the end of heads change no product, and tokens after the last no other.
        scaled = (query.astype(jnp.float32) * options.scale).astype(query.dtype).transpose(0, 2, 1, 3)
        arrays = [jnp.pad(x, ((0, 0), (0, 0), (0, padding[0]), (0, padding[1]))) for x in (scaled, *own)]
        kernel = _kernel(heads, length + padding[0], options, interpret=self.interpret)
        # Products of 16-bit arrays are exact in either precision, and the compiler of the kernel rejects the highest one.
        with (
            jax.default_matmul_precision("default"),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
        ):
            output, (log_sum,) = jax.vmap(kernel)(*arrays)
        output = output[:, :, :length, :width].transpose(0, 2, 1, 3)
        return PartialAttention(output, log_sum[:, :, :length].transpose(0, 2, 1))

    def cached(
        self, query: jax.Array, past: CachedLayer, metadata: AttentionMetadata, options: AttentionOptions
    ) -> PartialAttention | None:
        """Attend from few tokens of each row to a row of a KV cache, in XLA; None for other tokens.

        The heads of a cache are not separated, which would copy it and pad narrow heads: a query has the width of all heads,
        with zeros outside of its own. That multiplies operations by the number of heads, and a decode step has few.
        """
        batch, length, heads, width = query.shape
        if (
            len(past.lengths) != batch
            or length > _FEW_TOKENS
            or options.window is not None
            or options.alibi is not None
        ):
            return None
        layer = (
            cache_in_order(jax.lax.dynamic_index_in_dim(x, past.layer, 1), metadata.target.platform) for x in past.cache
        )
        keys, values = (x[:, 0] for x in layer)
        groups = keys.shape[2] // width
        own = jnp.repeat(jnp.eye(groups, dtype=query.dtype), heads // groups, axis=0)[None, None, :, :, None]
        wide = (query[:, :, :, None] * own).reshape(batch, length * heads, groups * width)
        scores = jnp.einsum("bqw,bsw->bqs", wide, keys, preferred_element_type=jnp.float32) * options.scale
        if options.softcap is not None:
            scores = jnp.tanh(scores / options.softcap) * options.softcap
        filled = jnp.arange(keys.shape[1], dtype=jnp.int32)[None] < past.lengths[:, None]
        scores = jnp.where(filled[:, None], scores, _MIN_SCORE)
        maximum = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - maximum)
        total = weights.sum(axis=-1)
        sums = jnp.einsum("bqs,bsw->bqw", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        sums = (sums.reshape(batch, length, heads, groups, width) * own.astype(jnp.float32)).sum(axis=3)
        log_sum = (maximum[..., 0] + jnp.log(total)).reshape(batch, length, heads)
        log_sum = jnp.where((past.lengths > 0)[:, None, None], log_sum, -jnp.inf)
        return PartialAttention(sums / total.reshape(batch, length, heads)[..., None], log_sum)


def _supports(query: jax.Array, options: AttentionOptions) -> bool:
    return options.alibi is None and isinstance(options.scale, float) and query.dtype == jnp.bfloat16


def _kernel(heads: int, length: int, options: AttentionOptions, *, interpret: bool) -> Any:
    """Return the kernel for a row of `length` tokens; its blocks are as large as divide it."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        CausalMask,
        LocalMask,
        MultiHeadMask,
        make_splash_mha,
    )

    window = options.window if options.window is not None and options.window < length else None
    shape = (length, length)
    mask = CausalMask(shape) if window is None else LocalMask(shape, (window - 1, 0), 0)
    size = next(size for size in range(min(BLOCK, length), 0, -LANES) if length % size == 0)
    return make_splash_mha(
        MultiHeadMask([mask] * heads),
        block_sizes=BlockSizes(block_q=size, block_kv=size, block_kv_compute=size),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=True,
        attn_logits_soft_cap=options.softcap,
        interpret=interpret,
    )
