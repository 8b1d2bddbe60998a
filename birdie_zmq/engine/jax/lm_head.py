"""From hidden states or logits at some positions to the few numbers a request that cross to the host; in JAX.

Where a model can give its logits for a part of the vocabulary, those of all of it never exist: the normaliser is
gathered block by block (Milakov and Gimelshein, 2018, arXiv:1805.02867), and a block stays in the cache of a CPU.

Shape letters: q positions, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

SubBatch = Callable[[jax.Array | int, int], jax.Array]
"""``part(begin, size)``: logits float[q, size] of the tokens from ``begin`` on."""


def gather(read: jax.Array, rows: jax.Array, positions: jax.Array) -> jax.Array:
    """What stands at the places int32[q] of a step [b, t, …]: [q, …]."""
    return read[rows, positions]


def score(at: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability, greediness and finiteness of targets int32[q] by logits float[q, v]."""
    at = at.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(at, axis=-1)
    chosen = jnp.take_along_axis(at, targets[:, None], axis=-1)[:, 0]
    return (
        chosen - normaliser,
        at.argmax(axis=-1).astype(targets.dtype) == targets,
        jnp.isfinite(chosen) & jnp.isfinite(normaliser),
    )


class _Seen(NamedTuple):
    """What the blocks so far have shown, float32[q] each: ``earlier`` is the largest logit of a token before the target."""

    peak: jax.Array
    total: jax.Array
    chosen: jax.Array
    earlier: jax.Array


def score_in_blocks(
    part: SubBatch, targets: jax.Array, vocab_size: int, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `score`, from blocks of logits of so many tokens."""

    def look(begin: jax.Array | int, size: int, seen: _Seen) -> _Seen:
        at = part(begin, size).astype(jnp.float32)
        peak = jnp.maximum(seen.peak, at.max(axis=-1))
        middle = jnp.where(peak == -jnp.inf, 0.0, peak)  # all tokens so far may be excluded
        total = seen.total * jnp.exp(seen.peak - middle) + jnp.exp(at - middle[:, None]).sum(axis=-1)
        where = targets - begin
        found = jnp.take_along_axis(at, jnp.clip(where, 0, size - 1)[:, None], axis=-1)[:, 0]
        earlier = jnp.where(jnp.arange(size)[None] < where[:, None], at, -jnp.inf).max(axis=-1)
        return _Seen(
            peak,
            total,
            jnp.where((where >= 0) & (where < size), found, seen.chosen),
            jnp.maximum(seen.earlier, earlier),
        )

    nothing = jnp.full(targets.shape, -jnp.inf, jnp.float32)
    seen = _Seen(nothing, jnp.zeros_like(nothing), nothing, nothing)
    whole = vocab_size // block
    seen = jax.lax.fori_loop(0, whole, lambda number, seen: look(number * block, block, seen), seen)
    if vocab_size % block:
        seen = look(whole * block, vocab_size % block, seen)
    normaliser = seen.peak + jnp.log(seen.total)
    return (
        seen.chosen - normaliser,
        (seen.chosen == seen.peak) & (seen.earlier < seen.chosen),  # the first of equals, as argmax has it
        jnp.isfinite(seen.chosen) & jnp.isfinite(normaliser),
    )


def choose(at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The greedy tokens int32[q] by logits float[q, v], and whether they can be told."""
    at = at.astype(jnp.float32)
    return at.argmax(axis=-1).astype(jnp.int32), jnp.isfinite(jax.nn.logsumexp(at, axis=-1))
