"""ALiBi: a bias of attention scores by distance, in place of positions (Press et al., 2021, arXiv:2108.12409)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Alibi:
    """The bias of each head: its slope times the position of the key, minus that of the query.

    Attributes:
        heads: The number of query heads.
        scale: The factor of the bias.
        rounded: Whether slopes, positions and their products are rounded to bfloat16, as in Falcon.
    """

    heads: int
    scale: float = 1.0
    rounded: bool = False

    @property
    def slopes(self) -> jax.Array:
        """The slope of each head, float32 [n]: a geometric series for the next lower power of two, then every second of the next."""
        power = 2 ** math.floor(math.log2(self.heads))
        slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
        slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(self.heads - power)]
        return jnp.asarray(np.array(slopes, np.float32))

    def bias(self, slopes: jax.Array, positions: jax.Array) -> jax.Array:
        """Return the bias, float32, of keys at positions int32."""
        wide = positions.astype(jnp.float32)
        bias = self._round(self._round(slopes) * self._round(wide)) if self.rounded else slopes * wide
        return bias if self.scale == 1.0 else bias * self.scale

    @staticmethod
    def _round(x: jax.Array) -> jax.Array:
        # A conversion to bfloat16 and back may be optimised away.
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("slopes", "positions"), meta_fields=("alibi",))
@dataclass(frozen=True)
class QueryBias:
    """The slopes and positions of queries, both of the shape of the queries without the width of a head."""

    alibi: Alibi
    slopes: jax.Array
    positions: jax.Array

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Self:
        """Apply a function to both arrays."""
        return type(self)(self.alibi, function(self.slopes), function(self.positions))

    def of_keys(self, positions: jax.Array) -> jax.Array:
        """Return the bias [..., q, s] of scores of these queries [..., q] and of keys at positions int32 [..., s]."""
        keys = self.alibi.bias(self.slopes[..., None], positions[..., None, :])
        return keys - self.alibi.bias(self.slopes, self.positions)[..., None]
