"""Whether a kernel computes on this process's device what XLA computes.

A kernel is compiled for the device by a library that is not ours, and a wrong score would be worse than a slow one. So a
few small rows are computed by both when a model is loaded; that takes seconds, once, since executables are kept on disk.
"""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from birdie_zmq.engine.jax.fixed_settings import fixed_settings, in_32_bits
from birdie_zmq.models.attention.interface import (
    AttentionMetadata,
    AttentionOptions,
    CachedTokens,
    CacheSize,
    KeysValues,
)
from birdie_zmq.models.attention.static_shapes import FlashKernel, StaticAttention

_HEADS, _GROUPS, _WIDTH, _LENGTH, _CAPACITY, _LAYERS = 4, 2, 64, 128, 256, 2

TOLERANCE = 0.03
"""The largest difference between two means of normally distributed values in bfloat16 that rounding explains."""

logger = logging.getLogger(__name__)


@functools.cache
def agrees_with_xla(kernel: FlashKernel) -> bool:
    """Return whether a kernel agrees with XLA on texts, on trees, and after caches of one row and of several; warn if not."""
    with fixed_settings(), in_32_bits(), jax.default_matmul_precision("highest"):  # as in `decoder`
        for name, (rows, length, lengths) in _CASES.items():
            compute = functools.partial(_attend, rows=rows, length=length, lengths=lengths, trees=name == "trees")
            try:
                found = np.asarray(jax.jit(functools.partial(compute, StaticAttention(kernel)))())
                expected = np.asarray(jax.jit(functools.partial(compute, StaticAttention()))())
            except jax.errors.JaxRuntimeError as error:
                _warn(kernel, f"{name} cannot be computed: {str(error)[:300]}")
                return False
            difference = float(np.abs(found - expected).max())
            if not difference <= TOLERANCE:  # also if it is NaN
                _warn(kernel, f"{name} differ by {difference:.3g}")
                return False
    return True


_CASES = {
    "trees": (2, _LENGTH, ()),
    "texts": (2, _LENGTH, ()),
    "tokens after one cached row": (2, _LENGTH, (200,)),
    "single tokens after rows of their own": (3, 1, (7, 0, 256)),
}


def _warn(kernel: FlashKernel, reason: str) -> None:
    logger.warning("%s is off, so attention takes longer: %s", type(kernel).__name__, reason)


def _attend(
    implementation: StaticAttention, *, rows: int, length: int, lengths: tuple[int, ...], trees: bool
) -> jax.Array:
    """Attend from random tokens after caches of random tokens; float32 [b, t, n * h]."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def sample(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape, jnp.bfloat16)

    query = 2 * sample(rows, length, _HEADS, _WIDTH)
    own = KeysValues(*(sample(rows, _GROUPS, length, _WIDTH) for _ in range(2)))
    past, before = [], jnp.zeros((1, 1), jnp.int32)
    if lengths:
        cache = implementation.create_cache(len(lengths), CacheSize(_LAYERS, _GROUPS, _WIDTH), _CAPACITY, jnp.bfloat16)
        new = KeysValues(*(sample(_LAYERS, len(lengths), _GROUPS, _CAPACITY, _WIDTH) for _ in range(2)))
        cache = implementation.append_tokens(cache, 0, new, jnp.zeros(len(lengths), jnp.int32))
        filled = jnp.array(lengths, jnp.int32)
        past.append(CachedTokens((cache,), filled, jnp.int32(0)).layer(0, jnp.int32(1)))
        before = filled[:, None]
    index = jnp.arange(length, dtype=jnp.int32)[None]
    ends = None
    if trees:  # the second quarter and the rest are two branches after the first
        ends = jnp.where(index < length // 4, length, jnp.where(index < length // 2, length // 2, length))
        ends = jnp.broadcast_to(ends, (rows, length))
    metadata = AttentionMetadata(before + index, ends)
    attended = implementation.attend(query, own, past, metadata, AttentionOptions(_WIDTH**-0.5))
    return attended.astype(jnp.float32)
