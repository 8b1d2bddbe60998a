"""Kernels for decoding on a CPU, compiled by Numba and called by XLA.

A decode step computes one token of each row, so it takes the time to read the weights and the KV cache. XLA's matrix
products read arrays of their own: a layer is first copied out of the stacked weights, and a block out of the cache. These
kernels read both where they are.

Numba compiles them when the first decode step is traced, in about four seconds. Small models would not gain that back, so
`is_worthwhile` says which models use them.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MIN_BYTES = 2**26
"""Models with fewer bytes of float32 weights are decoded by XLA alone."""

_TOLERANCE = 1e-5

logger = logging.getLogger(__name__)


class Kernels(NamedTuple):
    """The compiled kernels, by the names of their functions in the modules of this package."""

    multiply_by_layer: Callable[[jax.Array, jax.Array, jax.Array], jax.Array | None]
    multiply_by_transpose: Callable[[jax.Array, jax.Array], jax.Array | None]
    attend_to_cache: Callable[
        [jax.Array, jax.Array, jax.Array, jax.Array, tuple[jax.Array, jax.Array]],
        tuple[jax.Array, jax.Array, jax.Array] | None,
    ]


def is_worthwhile(float32_bytes: int) -> bool:
    """Return whether decoding a model with this many bytes of float32 weights gains from the kernels, if Numba is there."""
    return float32_bytes >= MIN_BYTES and importlib.util.find_spec("numba") is not None


@functools.cache
def load() -> Kernels | None:
    """Compile the kernels and compare them with NumPy; None, after a warning, if that fails."""
    try:
        from birdie_zmq.models.cpu_kernels.cached_attention import attend_to_cache
        from birdie_zmq.models.cpu_kernels.product import multiply_by_layer
        from birdie_zmq.models.cpu_kernels.transposed_product import multiply_by_transpose

        kernels = Kernels(multiply_by_layer, multiply_by_transpose, attend_to_cache)
        with jax.ensure_compile_time_eval():
            difference = float(np.max([_difference_of_products(kernels), _difference_of_attention(kernels)]))
    except Exception as error:  # noqa: BLE001 - whatever Numba, LLVM or XLA says of it
        logger.warning("the kernels for decoding on a CPU are off, so decoding takes longer: %s", str(error)[:300])
        return None
    if not difference <= _TOLERANCE:  # also if it is NaN
        logger.warning("the kernels for decoding on a CPU are off, since they differ from NumPy by %.3g", difference)
        return None
    return kernels


def _difference_of_products(kernels: Kernels) -> float:
    """Return the largest difference of products from NumPy's, in their standard deviations."""
    random = np.random.default_rng(0)
    stack = random.normal(size=(2, 64, 112)).astype(np.float32)
    differences = []
    for rows in (1, 2, 4, 11):
        x = random.normal(size=(rows, 64)).astype(np.float32)
        products = (
            kernels.multiply_by_layer(jnp.asarray(x), jnp.asarray(stack), jnp.int32(1)),
            kernels.multiply_by_transpose(jnp.asarray(x), jnp.asarray(stack[1].T)),
        )
        differences += [np.abs(np.asarray(product) - x @ stack[1]).max() / 8 for product in products]
    return float(np.max(differences))


def _difference_of_attention(kernels: Kernels) -> float:
    """Return the largest difference of attention from NumPy's."""
    random = np.random.default_rng(0)
    queries = random.normal(size=(3, 2, 3, 16)).astype(np.float32)
    keys, values = random.normal(size=(3, 2, 2, 16, 1104)), random.normal(size=(3, 2, 2, 1104, 16))
    first, end = np.array([0, 13, 1030], np.int32), np.array([5, 1101, 1104], np.int32)
    slots = jnp.asarray(first), jnp.asarray(end)
    given = [jnp.asarray(x, jnp.float32) for x in (queries, keys, values)]
    attended = kernels.attend_to_cache(given[0], given[1], given[2], jnp.int32(1), slots)
    assert attended is not None
    sums, total, _ = attended
    index = np.arange(1104)
    hidden = (index < first[:, None]) | (index >= end[:, None])
    scores = np.where(hidden[:, None, None], -np.inf, np.einsum("rkgh,rkhc->rkgc", queries, keys[:, 1]))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("rkgc,rkch->rkgh", weights / weights.sum(-1, keepdims=True), values[:, 1])
    return float(np.abs(np.asarray(sums) / np.asarray(total)[..., None] - expected).max())
