"""The memory layout of large arrays in an executable, where XLA's own choice would copy them.

XLA chooses the order of an array's axes in memory by the instructions that read it. An argument has the order of its axes,
so another choice copies it, and loops carry that choice to the whole stack of weights or the whole state.
"""

from __future__ import annotations

import jax

try:
    from jax.experimental.layout import Layout, with_layout_constraint
except ImportError:  # before jax 0.6; steps are right, and need more memory
    Layout = None  # type: ignore[assignment, misc]


def cache_in_order(x: jax.Array, platform: str) -> jax.Array:
    """Keep the axes of a layer's part [r, 1, ...] of a KV cache in their order in memory, on a TPU.

    An axis of one element may be put anywhere. Where XLA puts the layer first, it copies the cache of all layers in each
    step, as in a model of attention and short convolutions.
    """
    return _in_order(x) if platform == "tpu" else x


def state_in_order(x: jax.Array, platform: str) -> jax.Array:
    """Keep the axes of a layer's part of the states of recurrences in their order in memory, on a GPU.

    Matrix products of the gated delta rule prefer another order, for which a call would copy the states of all layers.
    On a TPU, keeping the order would copy them instead.
    """
    return _in_order(x) if platform == "gpu" else x


def apart(x: jax.Array, platform: str) -> jax.Array:
    """Compute a matrix product apart from what reads it, on a TPU.

    XLA would otherwise compute queries and keys in the order of axes that the rotary embedding prefers, for which it copies
    the weights of all layers once for each call.
    """
    separated: jax.Array = jax.lax.optimization_barrier(x) if platform == "tpu" else x  # type: ignore[no-untyped-call]
    return separated


def _in_order(x: jax.Array) -> jax.Array:
    if Layout is None:
        return x
    constrained: jax.Array = with_layout_constraint(x, Layout(tuple(range(x.ndim))))  # type: ignore[no-untyped-call]
    return constrained
