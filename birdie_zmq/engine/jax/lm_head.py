"""The LM head in JAX: it reduces hidden states or logits at some positions to a few numbers per request.

If a model can compute the logits of a part of the vocabulary, the logits of all of it never exist: the normaliser is
accumulated block by block (Milakov and Gimelshein, 2018, arXiv:1805.02867), and a block stays in the cache of a CPU.

Shape letters: q positions, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

PartialHead = Callable[[jax.Array | int, int], jax.Array]
"""``head(begin, size)``: logits float[q, size] of the tokens from ``begin`` to ``begin + size - 1``."""


def gather(outputs: jax.Array, rows: jax.Array, positions: jax.Array) -> jax.Array:
    """Return the values [q, …] at positions int32[q] of a step's outputs [b, t, …]."""
    return outputs[rows, positions]


def score(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the log-probability, greediness and finiteness, [q] each, of targets int32[q], from logits float[q, v].

    `birdie_zmq.engine.backend.TokenScores` says what finite means: a masked token, at minus infinity, is finite.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return (
        chosen - normaliser,
        logits.argmax(axis=-1).astype(targets.dtype) == targets,
        jnp.isfinite(normaliser),
    )


class _Running(NamedTuple):
    """Running reductions over blocks, float32[q] each; ``earlier`` is the largest logit of a token before the target."""

    peak: jax.Array
    total: jax.Array
    chosen: jax.Array
    earlier: jax.Array


def score_in_blocks(
    head: PartialHead, targets: jax.Array, vocab_size: int, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Score targets as `score` does, from the logits of `block` tokens of the vocabulary at a time."""

    def add_block(begin: jax.Array | int, size: int, running: _Running) -> _Running:
        logits = head(begin, size).astype(jnp.float32)
        peak = jnp.maximum(running.peak, logits.max(axis=-1))
        middle = jnp.where(peak == -jnp.inf, 0.0, peak)  # all tokens so far may be excluded
        total = running.total * jnp.exp(running.peak - middle) + jnp.exp(logits - middle[:, None]).sum(axis=-1)
        where = targets - begin
        found = jnp.take_along_axis(logits, jnp.clip(where, 0, size - 1)[:, None], axis=-1)[:, 0]
        earlier = jnp.where(jnp.arange(size)[None] < where[:, None], logits, -jnp.inf).max(axis=-1)
        return _Running(
            peak,
            total,
            jnp.where((where >= 0) & (where < size), found, running.chosen),
            jnp.maximum(running.earlier, earlier),
        )

    nothing = jnp.full(targets.shape, -jnp.inf, jnp.float32)
    running = _Running(nothing, jnp.zeros_like(nothing), nothing, nothing)
    full_blocks = vocab_size // block
    running = jax.lax.fori_loop(
        0, full_blocks, lambda number, running: add_block(number * block, block, running), running
    )
    if vocab_size % block:
        running = add_block(full_blocks * block, vocab_size % block, running)
    normaliser = running.peak + jnp.log(running.total)
    return (
        running.chosen - normaliser,
        (running.chosen == running.peak) & (running.earlier < running.chosen),  # the first of equal logits, as argmax
        jnp.isfinite(normaliser),
    )


def greedy_tokens(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the most likely tokens int32[q] of logits float[q, v], and whether the logits are finite, bool[q]."""
    logits = logits.astype(jnp.float32)
    return logits.argmax(axis=-1).astype(jnp.int32), jnp.isfinite(jax.nn.logsumexp(logits, axis=-1))
