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


def score_top(logits: jax.Array, targets: jax.Array, top: int) -> tuple[jax.Array, ...]:
    """Return what `score` returns, and the ``top`` most likely tokens int32[q, top] with their log-probabilities."""
    logits = logits.astype(jnp.float32)
    scores = score(logits, targets)
    values, ids = _largest(logits, top)
    return *scores, ids, values - jax.nn.logsumexp(logits, axis=-1)[:, None]


def _largest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Return the `count` largest of values float32[q, n], largest first, and where they are, int32[q, count]."""
    if count == 1:  # a maximum takes one pass
        where = values.argmax(axis=-1, keepdims=True)
        return jnp.take_along_axis(values, where, axis=-1), where.astype(jnp.int32)
    largest, where = jax.lax.top_k(values, count)
    return largest, where.astype(jnp.int32)


class _Running(NamedTuple):
    """Running reductions over blocks, float32[q] each; ``earlier`` is the largest logit of a token before the target.

    ``largest`` float32[q, k] and ``ids`` int32[q, k] are the largest logits so far; k may be 0.
    """

    peak: jax.Array
    total: jax.Array
    chosen: jax.Array
    earlier: jax.Array
    largest: jax.Array
    ids: jax.Array


def score_in_blocks(
    head: PartialHead, targets: jax.Array, vocab_size: int, block: int, top: int = 0
) -> tuple[jax.Array, ...]:
    """Score targets as `score` or `score_top` does, from the logits of `block` tokens of the vocabulary at a time."""

    def add_block(begin: jax.Array | int, size: int, running: _Running) -> _Running:
        logits = head(begin, size).astype(jnp.float32)
        peak = jnp.maximum(running.peak, logits.max(axis=-1))
        middle = jnp.where(peak == -jnp.inf, 0.0, peak)  # all tokens so far may be excluded
        total = running.total * jnp.exp(running.peak - middle) + jnp.exp(logits - middle[:, None]).sum(axis=-1)
        where = targets - begin
        found = jnp.take_along_axis(logits, jnp.clip(where, 0, size - 1)[:, None], axis=-1)[:, 0]
        earlier = jnp.where(jnp.arange(size)[None] < where[:, None], logits, -jnp.inf).max(axis=-1)
        largest, ids = running.largest, running.ids
        if top:  # those of earlier blocks come first, so that the lower of equally likely ids is kept
            new, at = _largest(logits, min(top, size))
            largest, order = _largest(jnp.concatenate([largest, new], axis=-1), top)
            ids = jnp.take_along_axis(jnp.concatenate([ids, at + begin], axis=-1), order, axis=-1)
        return _Running(
            peak,
            total,
            jnp.where((where >= 0) & (where < size), found, running.chosen),
            jnp.maximum(running.earlier, earlier),
            largest,
            ids,
        )

    nothing = jnp.full(targets.shape, -jnp.inf, jnp.float32)
    none = jnp.full((len(targets), top), -jnp.inf, jnp.float32)
    running = _Running(nothing, jnp.zeros_like(nothing), nothing, nothing, none, jnp.zeros(none.shape, jnp.int32))
    full_blocks = vocab_size // block
    running = jax.lax.fori_loop(
        0, full_blocks, lambda number, running: add_block(number * block, block, running), running
    )
    if vocab_size % block:
        running = add_block(full_blocks * block, vocab_size % block, running)
    normaliser = running.peak + jnp.log(running.total)
    scores = (
        running.chosen - normaliser,
        (running.chosen == running.peak) & (running.earlier < running.chosen),  # the first of equal logits, as argmax
        jnp.isfinite(normaliser),
    )
    return (*scores, running.ids, running.largest - normaliser[:, None]) if top else scores


def greedy_tokens(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the most likely tokens int32[q] of logits float[q, v], and whether the logits are finite, bool[q]."""
    logits = logits.astype(jnp.float32)
    return logits.argmax(axis=-1).astype(jnp.int32), jnp.isfinite(jax.nn.logsumexp(logits, axis=-1))


def logprobs_of(logits: jax.Array, tokens: jax.Array, top: int) -> tuple[jax.Array, ...]:
    """Return the log-probabilities float32[q] of tokens int32[q], and the ``top`` most likely ones as `score_top` does.

    Returns:
        The three arrays; none if ``top`` is 0.
    """
    if not top:
        return ()
    logprobs, _, _, ids, likeliest = score_top(logits, tokens, top)
    return logprobs, ids, likeliest
