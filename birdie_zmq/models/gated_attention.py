"""Attention whose output is multiplied by a gate of each head (Qiu et al., 2025, arXiv:2505.06708)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from birdie_zmq.models.attention import KeysValues
from birdie_zmq.models.decoder_layer import Attention, LayerStep
from birdie_zmq.models.layers import Weights, linear, split_heads


@dataclass(frozen=True)
class GatedAttention(Attention):
    """Grouped-query attention; the outputs of ``query`` [d, n * 2h] are the query of each head and then its gate."""

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, KeysValues | None]:
        """Attend from x [b, t, d]; return [b, t, d], and the layer's own keys and values."""
        both = jnp.split(split_heads(linear(x, weights, "query"), self.heads), 2, axis=-1)
        query, gate = (part.reshape(*x.shape[:2], -1) for part in both)
        own = self._keys_values(x, weights, step)
        y = self._attend(self._heads_of_queries(query, weights, step), own, weights, step)
        return linear(y * jax.nn.sigmoid(gate), weights, "output"), own
