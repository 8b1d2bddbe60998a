"""Log-probabilities of tokens and the most likely tokens, in NumPy.

Shape letters: q positions, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import NextTokens, TopTokens
from birdie_zmq.engine.numpy.sampling import logsumexp

_TOP_COUNTS = (1, 5, 20)


def top_count(requested: int) -> int:
    """Return the number of most likely tokens to compute for a requested number, since each is compiled separately."""
    return next(count for count in _TOP_COUNTS if count >= requested)


def logprobs_of(logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Return the log-probabilities float32[q] of tokens int32[q] by logits float32[q, v]."""
    with np.errstate(invalid="ignore"):  # the caller checks that the normaliser is finite
        result: npt.NDArray[np.float32] = logits[np.arange(len(tokens)), tokens] - logsumexp(logits)
    return result


def top_tokens(logits: npt.NDArray[np.float32], count: int) -> TopTokens:
    """Return the most likely tokens by logits float32[q, v], at most as many as there are."""
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    with np.errstate(invalid="ignore"):
        logprobs = np.take_along_axis(logits, ids, axis=-1) - logsumexp(logits)[:, None]
    return TopTokens(ids.astype(np.int32), logprobs)


def spread(chosen: NextTokens, rows: npt.NDArray[np.int32], count: int) -> NextTokens:
    """Return the tokens of some rows int32[q] as those of one step of `count` rows, [count, 1]; other rows have zeros."""

    def placed(values: npt.NDArray[Any], default: npt.NDArray[Any]) -> npt.NDArray[Any]:
        default[rows, 0] = values
        return default

    finite = placed(chosen.finite, np.ones((count, 1), np.bool_))
    tokens = placed(chosen.tokens, np.zeros((count, 1), np.int32))
    if chosen.logprobs is None or chosen.top is None:
        return NextTokens(tokens, finite)
    logprobs = placed(chosen.logprobs, np.zeros((count, 1), np.float32))
    size = chosen.top.ids.shape[-1]
    ids = placed(chosen.top.ids, np.zeros((count, 1, size), np.int32))
    top = placed(chosen.top.logprobs, np.zeros((count, 1, size), np.float32))
    return NextTokens(tokens, finite, logprobs, TopTokens(ids, top))
