"""Log-probabilities and most likely tokens in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from birdie_zmq.engine.backend import NextTokens
from birdie_zmq.engine.logprobs import logprobs_of, spread, top_count, top_tokens

LOGITS = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32))


def test_the_most_likely_tokens_come_first_and_of_equal_ones_the_lower_id() -> None:
    top = top_tokens(LOGITS, 2)

    assert top.ids.tolist() == [[1, 0], [2, 0]]
    np.testing.assert_allclose(np.exp(top.logprobs), [[0.5, 0.25], [0.8, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(logprobs_of(LOGITS, np.array([1, 2], np.int32)), top.logprobs[:, 0])


def test_tokens_of_some_rows_are_placed_in_a_step_of_all() -> None:
    tokens = np.array([1, 2], np.int32)
    chosen = NextTokens(tokens, np.array([True, False]), logprobs_of(LOGITS, tokens), top_tokens(LOGITS, 2))

    step = spread(chosen, np.array([3, 1], np.int32), 4)

    assert step.tokens.tolist() == [[0], [2], [0], [1]]
    assert step.finite.tolist() == [[True], [False], [True], [True]]
    assert step.logprobs is not None
    assert step.top is not None
    np.testing.assert_allclose(np.exp(step.logprobs[[3, 1], 0]), [0.5, 0.8], rtol=1e-6)
    assert step.top.ids[[3, 1], 0].tolist() == [[1, 0], [2, 0]]
    assert spread(NextTokens(tokens, np.ones(2, np.bool_)), np.array([0, 1], np.int32), 2).top is None


@pytest.mark.parametrize(("requested", "computed"), [(0, 1), (1, 1), (2, 5), (5, 5), (6, 20), (20, 20)])
def test_few_numbers_of_most_likely_tokens_are_compiled(requested: int, computed: int) -> None:
    assert top_count(requested) == computed
