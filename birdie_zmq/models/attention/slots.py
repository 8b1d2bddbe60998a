"""The slots of a KV cache, one for each token of a row."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def with_slots(x: jax.Array, slots: int, axis: int) -> jax.Array:
    """Return an array of a KV cache with this number of slots on an axis: the first ones as before, further ones empty."""
    if slots <= x.shape[axis]:
        return jax.lax.slice_in_dim(x, 0, slots, axis=axis)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, slots - x.shape[axis])
    return jnp.pad(x, padding)
