"""Splash attention, for TPUs and 16-bit weights: a flash-attention kernel of JAX in Pallas (arXiv:2307.08691).

It computes the tokens of a step whose rows are one text each, with or without a window and a soft cap. Trees and KV caches
are computed in XLA.

Shape letters are those of `interface`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.models.attention.interface import AttentionMetadata, AttentionOptions, CachedLayer, KeysValues
from birdie_zmq.models.attention.static_shapes import PartialAttention

LANES = 128
"""The unit in which a TPU lays out the last axis of an array; rows and heads are padded to multiples of it."""

BLOCK = 512
"""Maximum number of tokens of a block of queries or keys."""


@dataclass(frozen=True)
class SplashKernel:
    """Splash attention, as a `FlashKernel`.

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
        """Return None: attention to a KV cache is computed in XLA."""
        del query, past, metadata, options
        return None


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
