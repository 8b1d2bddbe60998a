"""The head of a model, for the single tokens of decoding."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from birdie_zmq.models import cpu_kernels

_MAX_ROWS = 31
"""Fewer than the positions of any step of texts, so that scoring compiles no kernels (`engine.jax.position_head`)."""


def multiply_by_head(hidden: jax.Array, outer: Mapping[str, jax.Array]) -> jax.Array | None:
    """Multiply hidden states [q, d] by the head [d, v] or a tied embedding [v, d]; None leaves it to XLA."""
    if hidden.ndim != 2 or len(hidden) > _MAX_ROWS:
        return None
    kernels = cpu_kernels.load()
    if kernels is None:
        return None
    if "head" in outer:
        return kernels.multiply_by_layer(hidden, outer["head"][None], jnp.int32(0))
    return kernels.multiply_by_transpose(hidden, outer["embedding"])
