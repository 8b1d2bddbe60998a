"""Whether a kernel computes on this process's device what XLA computes.

A kernel is compiled for the device by a library that is not ours, and a wrong score would be worse than a slow one. So a
few small rows are computed by both when a model is loaded; that takes seconds, once, since executables are kept on disk.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from birdie_zmq.engine.jax.fixed_settings import fixed_settings, in_32_bits
from birdie_zmq.engine.jax.sharding import mesh_sharding, sharded
from birdie_zmq.models.attention.interface import (
    AttentionMetadata,
    AttentionOptions,
    CachedTokens,
    CacheSize,
    KeysValues,
)
from birdie_zmq.models.attention.static_shapes import FlashKernel, StaticAttention

_GROUPS, _SHARED, _LENGTH, _CAPACITY, _LAYERS = 2, 2, 128, 256, 2

TOLERANCE = 0.03
"""The largest difference between two means of normally distributed values in bfloat16 that rounding explains."""

logger = logging.getLogger(__name__)


class _Case(NamedTuple):
    """Rows of tokens, the filled slots of a cache before them, and what each token attends to."""

    rows: int
    length: int
    lengths: tuple[int, ...] = ()
    trees: bool = False
    window: int | None = None


_CASES = {
    "trees": _Case(2, _LENGTH, trees=True),
    "texts": _Case(2, _LENGTH),
    "texts with a window": _Case(2, _LENGTH, window=48),
    "tokens after one cached row": _Case(2, _LENGTH, (200,)),
    "single tokens after rows of their own": _Case(3, 1, (7, 0, 256)),
}


@functools.cache
def agrees_with_xla(kernel: FlashKernel, width: int = 64, mesh: Mesh | None = None) -> bool:
    """Return whether a kernel agrees with XLA on texts, on trees, and after caches of one row and of several; warn if not.

    Args:
        kernel: The kernel.
        width: The width of a head.
        mesh: The devices over which heads are sharded, if there are several.
    """
    everywhere: Any = None if mesh is None else mesh_sharding(mesh)
    with fixed_settings(), in_32_bits(), jax.default_matmul_precision("highest"):  # as in `decoder`
        for name, case in _CASES.items():

            def compute(implementation: StaticAttention, case: _Case = case) -> np.ndarray[Any, Any]:
                attend = functools.partial(_attend, implementation, case, width, mesh)
                return np.asarray(jax.jit(attend, out_shardings=everywhere)())

            try:
                found = compute(StaticAttention(kernel))
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # whatever the library says of it
                _warn(kernel, f"{name} with heads of {width} cannot be computed: {str(error)[:300]}")
                return False
            difference = float(np.abs(found - compute(StaticAttention())).max())
            if not difference <= TOLERANCE:  # also if it is NaN
                _warn(kernel, f"{name} with heads of {width} differ by {difference:.3g}")
                return False
    return True


def _warn(kernel: FlashKernel, reason: str) -> None:
    logger.warning("%s is off, so attention takes longer: %s", type(kernel).__name__, reason)


def _attend(implementation: StaticAttention, case: _Case, width: int, mesh: Mesh | None) -> jax.Array:
    """Attend from random tokens after caches of random tokens; float32 [b, t, n * h]."""
    rows, length, lengths, trees, window = case
    groups = _GROUPS if mesh is None else _GROUPS * mesh.shape["model"]
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def sample(*shape: int, heads_axis: int) -> jax.Array:
        x = jax.random.normal(next(keys), shape, jnp.bfloat16)
        return x if mesh is None else sharded(x, mesh_sharding(mesh, *[None] * heads_axis, "model"))

    query = 2 * sample(rows, length, groups * _SHARED, width, heads_axis=2)
    own = KeysValues(*(sample(rows, groups, length, width, heads_axis=1) for _ in range(2)))
    past, before = [], jnp.zeros((1, 1), jnp.int32)
    if lengths:
        cache = implementation.create_cache(len(lengths), CacheSize(_LAYERS, groups, width), _CAPACITY, jnp.bfloat16)
        shape = (_LAYERS, len(lengths), groups, _CAPACITY, width)
        new = KeysValues(*(sample(*shape, heads_axis=2) for _ in range(2)))
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
    attended = implementation.attend(query, own, past, metadata, AttentionOptions(width**-0.5, window))
    return attended.astype(jnp.float32)
