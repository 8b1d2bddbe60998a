"""Attention whose keys and values come from one narrow vector of each token (DeepSeek-AI, 2024, arXiv:2405.04434).

The vector, c wide, is all that a state holds of a token, with a rotated key of r dimensions that all heads share. Heads
would expand it to keys and values; instead their matrices are applied to the queries and to the output, as the paper's
section 2.1.2 describes. So all query heads attend to one key of ``c + r`` dimensions, which is also the value.

Shape letters: b batch, t position, d width of the residual stream, n query heads, c width of the vector, p dimensions of
a head without positions, r rotated dimensions, w width of a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from birdie_zmq.models.attention import AttentionOptions, KeysValues, attention_for
from birdie_zmq.models.decoder_layer import Attention, LayerStep
from birdie_zmq.models.layers import Weights, linear, split_heads


@dataclass(frozen=True)
class LatentAttention(Attention):
    """Attention to one key/value head of the width ``c + r``.

    Its weights are ``key_value_down`` [d, c + r], ``latent_norm`` [c], ``key_value_up`` [c, n * (p + w)] and ``output``;
    and ``query`` [d, n * (p + r)], or ``query_down``, ``query_latent_norm`` and ``query_up`` in its place.

    Attributes:
        unrotated: The dimensions p.
        value_width: The width w.
    """

    unrotated: int = 0
    value_width: int = 0

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, KeysValues | None]:
        """Attend from x [b, t, d]; return [b, t, d], and the layer's own keys and values."""
        assert self.rope is not None
        assert self.norm is not None
        width = self.head_width - self.rope.width
        up = weights["key_value_up"].reshape(width, self.heads, self.unrotated + self.value_width)
        to_keys, to_values = up[..., : self.unrotated], up[..., self.unrotated :]
        heads = split_heads(self._queries(x, weights), self.heads)
        absorbed = jnp.einsum("btnp,cnp->btnc", heads[..., : self.unrotated], to_keys)
        query = jnp.concatenate([absorbed, self._rotate(heads[..., self.unrotated :], step)], axis=-1)
        down = linear(x, weights, "key_value_down")
        latent = self.norm(down[..., :width], weights, "latent_norm")
        rotated = self._rotate(split_heads(down[..., width:], 1), step)[:, :, 0]
        key = jnp.concatenate([latent, rotated], axis=-1)[:, None]
        own, options = KeysValues(key, key), AttentionOptions(self.scale or self.head_width**-0.5)
        attended = attention_for(step.metadata.target).attend(query, own, step.past, step.metadata, options)
        y = jnp.einsum("btnc,cnw->btnw", split_heads(attended, self.heads)[..., :width], to_values)
        return linear(y.reshape(*y.shape[:2], -1), weights, "output"), own

    def _queries(self, x: jax.Array, weights: Weights) -> jax.Array:
        if "query" in weights:
            return linear(x, weights, "query")
        assert self.norm is not None
        return linear(self.norm(linear(x, weights, "query_down"), weights, "query_latent_norm"), weights, "query_up")
