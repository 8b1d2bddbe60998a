"""Sampling the next token in JAX: temperature, then top-k, top-p and min-p, in the order of transformers.

The filters keep the tokens above a threshold on the logits. The threshold is found bit by bit, by 32 sums over the
vocabulary instead of a sort. A sampled token depends on its row's key and on how many tokens the row has sampled
before, not on other rows.

Shape letters: q rows, v vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from birdie_zmq.types import SamplingParams

_TINY = float(np.finfo(np.float32).tiny)


class SamplingArrays(NamedTuple):
    """Sampling parameters as scalar arrays; `birdie_zmq.types.SamplingParams` documents them."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array


class SamplingKeys(NamedTuple):
    """Random keys uint32[q, 2] of the rows, and the number of tokens that each row has sampled before, int32[q]."""

    keys: jax.Array
    sampled: jax.Array


def sampling_arrays(sampling: SamplingParams) -> SamplingArrays:
    """Return sampling parameters as arguments of an executable, so that one executable serves all values."""
    return SamplingArrays(
        jnp.float32(sampling.temperature),
        jnp.int32(min(sampling.top_k, 2**31 - 1)),
        jnp.float32(sampling.top_p),
        jnp.float32(sampling.min_p),
    )


def key_data(key: int) -> tuple[int, int]:
    """Split a key of at most 64 bits into two words of 32."""
    return key >> 32, key & 0xFFFFFFFF


def sample(logits: jax.Array, arrays: SamplingArrays, keys: SamplingKeys) -> tuple[jax.Array, jax.Array]:
    """Sample a token for each row, int32[q], from logits float[q, v]; also return whether they are finite, bool[q]."""
    scaled = filter_logits(logits.astype(jnp.float32) / arrays.temperature, arrays)

    with jax.threefry_partitionable(True):
        noise = jax.vmap(functools.partial(_gumbel, scaled.shape[-1]))(keys.keys, keys.sampled)
    tokens = (scaled + noise).argmax(axis=-1)
    return tokens.astype(jnp.int32), jnp.isfinite(jax.nn.logsumexp(scaled, axis=-1))


def _gumbel(size: int, key: jax.Array, sampled: jax.Array) -> jax.Array:
    """Return Gumbel noise float32[size] for a key uint32[2] and the number of tokens sampled before, int32[].

    The generator and the formula are those of JAX's defaults, which a program may change.
    """
    folded = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), sampled)
    uniform = jax.random.uniform(folded, (size,), jnp.float32, minval=_TINY, maxval=1.0)
    return -jnp.log(-jnp.log(uniform))


def filter_logits(scaled: jax.Array, arrays: SamplingArrays) -> jax.Array:
    """Return logits float32[q, v] with the tokens that top-k, top-p and min-p exclude at minus infinity.

    If the boundary of top-k or top-p falls between equally likely tokens, all of them are kept.
    """
    bits = _ordered(scaled)

    def stay(is_enough: Callable[[jax.Array], jax.Array], among: jax.Array) -> jax.Array:
        return among & (bits >= _threshold(is_enough)[:, None])

    vocabulary = scaled.shape[-1]
    top_k = jnp.where(arrays.top_k > 0, jnp.minimum(arrays.top_k, vocabulary), vocabulary)
    likeliest = stay(lambda least: (bits >= least[:, None]).sum(axis=-1) >= top_k, jnp.ones_like(bits, bool))
    likelihood = jax.nn.softmax(jnp.where(likeliest, scaled, -jnp.inf), axis=-1)
    # Rounding may leave the sum of all below a top_p of nearly one; then all tokens are kept.
    together = stay(
        lambda least: jnp.where(bits >= least[:, None], likelihood, 0.0).sum(axis=-1) >= arrays.top_p, likeliest
    )
    together = jnp.where(arrays.top_p < 1.0, together, likeliest)
    likely = likelihood >= arrays.min_p * likelihood.max(axis=-1, keepdims=True)
    return jnp.where(together & likely, scaled, -jnp.inf)


def _ordered(values: jax.Array) -> jax.Array:
    """Map float32 to uint32 in the same order."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def _threshold(is_enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Return the largest uint32[q] for which `is_enough`, which then holds for all smaller ones; 0 if there is none."""
    start = jnp.zeros_like(is_enough(jnp.uint32(0)[None]), jnp.uint32)

    def step(number: jax.Array, least: jax.Array) -> jax.Array:
        higher = least | (jnp.uint32(1) << (31 - number).astype(jnp.uint32))
        return jnp.where(is_enough(higher), higher, least)

    least: jax.Array = jax.lax.fori_loop(0, 32, step, start)
    return least
