"""Drawing the next token, in NumPy: temperature, then top-k, top-p and min-p, as `sampling` does it in JAX.

What is drawn depends on a row's own key and on how many tokens it has drawn, not on its neighbours.

Shape letters: q rows, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import NextTokens, SamplingMetadata
from birdie_zmq.types import SamplingParams

Logits = npt.NDArray[np.float32]


def draw(logits: Logits, drawing: SamplingMetadata) -> NextTokens:
    """A token for each row by logits float32 [q, v], and whether they are finite enough to tell."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is told by the second answer
        scaled = kept(logits / np.float32(drawing.sampling.temperature), drawing.sampling)
        finite = np.isfinite(scaled.max(axis=-1))
        noise = _gumbel(drawing.keys, drawing.drawn, logits.shape[-1])
        return NextTokens((scaled + noise).argmax(axis=-1).astype(np.int32), finite)


def kept(scaled: Logits, sampling: SamplingParams) -> Logits:
    """Logits float32 [q, v], those of tokens that are left out at minus infinity.

    Of tokens that are equally likely all stay or none, where top-k and top-p would cut between them.
    """
    falling = -np.sort(-scaled, axis=-1)
    vocabulary = scaled.shape[-1]
    wanted = min(sampling.top_k, vocabulary) if sampling.top_k else vocabulary
    least = falling[:, wanted - 1 : wanted]
    exponentials = np.exp(scaled - falling[:, :1]) * (scaled >= least)
    likelihood = exponentials / exponentials.sum(axis=-1, keepdims=True)
    stay = scaled >= least
    if sampling.top_p < 1.0:
        together = np.cumsum(-np.sort(-likelihood, axis=-1), axis=-1, dtype=np.float64)
        # Rounding may keep the sum of all below a top_p of nearly one: then all stay.
        enough = together >= sampling.top_p
        last = np.where(enough.any(axis=-1), enough.argmax(axis=-1), wanted - 1)
        stay &= scaled >= np.take_along_axis(falling, last[:, None], axis=-1)
    stay &= likelihood >= sampling.min_p * likelihood.max(axis=-1, keepdims=True)
    return np.where(stay, scaled, np.float32(-np.inf))


def _gumbel(keys: Sequence[int], drawn: npt.NDArray[np.int32], vocabulary: int) -> npt.NDArray[np.float64]:
    """Noise [q, v] that makes the largest of logits a draw by their likelihoods, from a generator of each row's own."""
    return np.stack(
        [
            np.random.Generator(np.random.Philox(key=[key, int(number)])).gumbel(size=vocabulary)
            for key, number in zip(keys, drawn, strict=True)
        ]
    )
