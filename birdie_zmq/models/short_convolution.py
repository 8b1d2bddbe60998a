"""Gated short convolutions over tokens, in place of attention (Liquid AI, 2025, arXiv:2511.23404).

The output of a token is a weighted sum of the gated inputs of the last few tokens of its text. Like keys and values, these
inputs are kept for every token: a KV cache holds one half of them as keys and one half as values. So texts share prefixes,
fork and form trees as with attention, and of a cache only the last few tokens are read.

Shape letters: b rows, t position in a row, r rows of a cache, d width of the residual stream, s distance of a token to an
earlier one of its text, from 1 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from birdie_zmq.models.attention import AttentionMetadata, CachedLayer, KeysValues, attention_for
from birdie_zmq.models.decoder_layer import Attention, LayerStep
from birdie_zmq.models.layers import Weights, linear


@dataclass(frozen=True)
class ShortConvolution(Attention):
    """A convolution over `taps` tokens, as an `Attention` of one head of the width d / 2.

    Its weights are ``convolution_in`` [d, 3d], whose outputs are a gate of the inputs, a gate of the outputs and the inputs;
    ``convolution`` [d, 1, taps], with the token itself last; and ``output`` [d, d].

    Attributes:
        taps: The number of tokens.
    """

    taps: int = 1

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, KeysValues | None]:
        """Convolve x [b, t, d]; return [b, t, d], and the layer's own gated inputs as keys and values."""
        gate, out_gate, inputs = jnp.split(linear(x, weights, "convolution_in"), 3, axis=-1)
        gated = gate * inputs
        kernel = weights["convolution"][:, 0]
        y = gated * kernel[:, -1][None, None]
        before = _last_tokens(step.past, step.metadata, self.taps - 1)
        for distance in range(1, self.taps):
            y = y + _earlier(gated, before, step, distance) * kernel[:, -1 - distance][None, None]
        if "convolution_bias" in weights:
            y = y + weights["convolution_bias"][None, None]
        keys, values = jnp.split(gated[:, None], 2, axis=-1)
        return linear(out_gate * y, weights, "output"), KeysValues(keys, values)


def _earlier(gated: jax.Array, before: Sequence[jax.Array], step: LayerStep, distance: int) -> jax.Array:
    """Return the gated inputs [b, t, d] of the token at a distance before each token; zeros if its text begins later.

    Args:
        gated: The gated inputs of the tokens of the step.
        before: Those of the tokens before the step, [r, d] each, from the last one on.
        step: The step.
        distance: The distance s.
    """
    metadata, length = step.metadata, gated.shape[1]
    index = jnp.arange(length, dtype=jnp.int32)
    if metadata.ends is None:
        found = jnp.pad(gated, ((0, 0), (distance, 0), (0, 0)))[:, :length]
        depth = index[None]
    else:
        positions = jnp.broadcast_to(metadata.positions, metadata.ends.shape)
        # In depth-first order a text's token of a position comes once before each later token of the text.
        is_earlier = (index[:, None] > index[None])[None] & (index[None, :, None] < metadata.ends[:, None])
        is_wanted = is_earlier & (positions[:, :, None] - positions[:, None] == distance)
        found = jnp.take_along_axis(gated, is_wanted.argmax(axis=2)[..., None], axis=1)
        found = jnp.where(is_wanted.any(axis=2)[..., None], found, jnp.zeros((), found.dtype))
        depth = positions - _first_position(step.past)
    for number, token in enumerate(before[:distance]):
        comes_from_before = depth == distance - 1 - number
        found = jnp.where(comes_from_before[..., None], token[:, None], found)
    return found


def _first_position(past: Sequence[CachedLayer]) -> jax.Array:
    """Return the position of the first token after the tokens before a step, int32 [r or 1, 1]."""
    if not past:
        return jnp.zeros((1, 1), jnp.int32)
    return (past[-1].begin + past[-1].lengths)[:, None]


def _last_tokens(past: Sequence[CachedLayer], metadata: AttentionMetadata, count: int) -> list[jax.Array]:
    """Return the gated inputs [r or 1, d] of the last tokens before a step, from the last one on; zeros where there are none."""
    found = []
    for distance in range(1, count + 1) if past else ():
        position = _first_position(past)[:, 0] - distance
        token: jax.Array | None = None
        for each in past:
            slots = jnp.broadcast_to(position - each.begin, jnp.broadcast_shapes(position.shape, each.lengths.shape))
            own = attention_for(metadata.target).take_tokens(each, slots)
            is_there = (slots >= 0) & (slots < each.lengths)
            values = jnp.where(is_there[:, None], own, jnp.zeros((), own.dtype))
            token = values if token is None else token + values
        assert token is not None
        found.append(token)
    return found
