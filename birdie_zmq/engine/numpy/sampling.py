"""Choosing the next token in NumPy: temperature, then top-k, top-p and min-p, as in `birdie_zmq.engine.jax.sampling`.

A sampled token depends on its row's key and on how many tokens the row has sampled before, not on other rows. The random
numbers are those of the engine jax.

Shape letters: q rows, v vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import NextTokens, SamplingMetadata
from birdie_zmq.engine.numpy.threefry import gumbel
from birdie_zmq.types import SamplingParams

Logits = npt.NDArray[np.float32]


def sample(logits: Logits, metadata: SamplingMetadata) -> NextTokens:
    """Sample a token for each row of logits float32[q, v]; also return whether the logits are finite enough for that."""
    sampling = metadata.choice.sampling
    assert sampling is not None
    with np.errstate(invalid="ignore", over="ignore"):  # `finite` reports logits that are not finite
        scaled = filter_logits(logits / np.float32(sampling.temperature), sampling)
        finite = np.isfinite(scaled.max(axis=-1))
        return NextTokens((scaled + _gumbel(scaled, metadata)).argmax(axis=-1).astype(np.int32), finite)


def greedy(logits: Logits) -> NextTokens:
    """Take the most likely token for each row of logits float32[q, v]; also return whether the logits are finite."""
    return NextTokens(logits.argmax(axis=-1).astype(np.int32), np.isfinite(logsumexp(logits)))


def logsumexp(logits: Logits) -> Logits:
    """Return the normalisers float32[q] of logits float32[q, v]; NaN or infinite where the logits are."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        peak = logits.max(axis=-1)
        result: Logits = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=-1))
    return result


def filter_logits(scaled: Logits, sampling: SamplingParams) -> Logits:
    """Return logits float32[q, v] with the tokens that top-k, top-p and min-p exclude at minus infinity.

    If the boundary of top-k or top-p falls between equally likely tokens, all of them are kept.
    """
    descending = -np.sort(-scaled, axis=-1)
    vocabulary = scaled.shape[-1]
    k = min(sampling.top_k, vocabulary) if sampling.top_k else vocabulary
    smallest = descending[:, k - 1 : k]
    exponentials = np.exp(scaled - descending[:, :1]) * (scaled >= smallest)
    likelihood = exponentials / exponentials.sum(axis=-1, keepdims=True)
    keep = scaled >= smallest
    if sampling.top_p < 1.0:
        cumulative = np.cumsum(-np.sort(-likelihood, axis=-1), axis=-1, dtype=np.float64)
        # Rounding may leave the sum of all below a top_p of nearly one; then all tokens are kept.
        enough = cumulative >= sampling.top_p
        last = np.where(enough.any(axis=-1), enough.argmax(axis=-1), k - 1)
        keep &= scaled >= np.take_along_axis(descending, last[:, None], axis=-1)
    keep &= likelihood >= sampling.min_p * likelihood.max(axis=-1, keepdims=True)
    return np.where(keep, scaled, np.float32(-np.inf))


def _gumbel(scaled: Logits, metadata: SamplingMetadata) -> Logits:
    """Return noise float32[q, v] for the tokens that are left, from each row's own key; zero for the others."""
    noise = np.zeros(scaled.shape, np.float32)
    for row, (key, number) in enumerate(zip(metadata.keys, metadata.sampled.tolist(), strict=True)):
        left = np.flatnonzero(scaled[row] > -np.inf)
        noise[row, left] = gumbel(key, number, left)
    return noise
