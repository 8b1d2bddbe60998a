"""Drawing the next token, in JAX: temperature, then top-k, top-p and min-p, in the order of transformers.

Which tokens are left in is decided by a threshold on the logits, found bit by bit: 32 sums over the vocabulary instead
of sorting it. What is drawn depends on a row's own key and on how many tokens it has drawn, not on its neighbours.

Shape letters: q rows, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Limits(NamedTuple):
    """What leaves tokens out, as scalars; `birdie_zmq.protocol.messages.SamplingParams` says what each means."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array


class Chance(NamedTuple):
    """What is drawn by: uint32 [q, 2], the key of each row, and int32 [q], how many tokens it has drawn."""

    keys: jax.Array
    drawn: jax.Array


def draw(logits: jax.Array, limits: Limits, chance: Chance) -> tuple[jax.Array, jax.Array]:
    """A token for each row, int32 [q], by logits float[q, v], and whether they are finite enough to tell, bool [q]."""
    scaled = kept(logits.astype(jnp.float32) / limits.temperature, limits)

    def one(key: jax.Array, drawn: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(jax.random.wrap_key_data(key), drawn), row)

    tokens = jax.vmap(one)(chance.keys, chance.drawn, scaled)
    return tokens.astype(jnp.int32), jnp.isfinite(jax.nn.logsumexp(scaled, axis=-1))


def kept(scaled: jax.Array, limits: Limits) -> jax.Array:
    """Logits float32 [q, v], those of tokens that are left out at minus infinity.

    Of tokens that are equally likely all stay or none, where top-k and top-p would cut between them.
    """
    bits = _ordered(scaled)

    def stay(is_enough: Callable[[jax.Array], jax.Array], among: jax.Array) -> jax.Array:
        return among & (bits >= _threshold(is_enough)[:, None])

    vocabulary = scaled.shape[-1]
    wanted = jnp.where(limits.top_k > 0, jnp.minimum(limits.top_k, vocabulary), vocabulary)
    likeliest = stay(lambda least: (bits >= least[:, None]).sum(axis=-1) >= wanted, jnp.ones_like(bits, bool))
    likelihood = jax.nn.softmax(jnp.where(likeliest, scaled, -jnp.inf), axis=-1)
    # Rounding may keep the sum of all below a top_p of nearly one: then all stay.
    together = stay(
        lambda least: jnp.where(bits >= least[:, None], likelihood, 0.0).sum(axis=-1) >= limits.top_p, likeliest
    )
    together = jnp.where(limits.top_p < 1.0, together, likeliest)
    likely = likelihood >= limits.min_p * likelihood.max(axis=-1, keepdims=True)
    return jnp.where(together & likely, scaled, -jnp.inf)


def _ordered(values: jax.Array) -> jax.Array:
    """uint32 that are ordered as the float32 are."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def _threshold(is_enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest uint32 [q] that is enough, where all smaller ones are too; 0 where none is."""
    start = jnp.zeros_like(is_enough(jnp.uint32(0)[None]), jnp.uint32)

    def step(number: jax.Array, least: jax.Array) -> jax.Array:
        higher = least | (jnp.uint32(1) << (31 - number).astype(jnp.uint32))
        return jnp.where(is_enough(higher), higher, least)

    least: jax.Array = jax.lax.fori_loop(0, 32, step, start)
    return least
