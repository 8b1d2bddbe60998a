"""Scores of shared prefixes across batches: fewer tokens are computed, and the answers are the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from birdie_zmq.completions import CompletionPrompt
from birdie_zmq.engine.backend import TopTokens
from birdie_zmq.engine.position_scores import SequenceScores
from birdie_zmq.engine.prompt_scores import PromptScores
from tests.engine.recurrent import VOCABULARY
from tests.engine.test_completion import check_logprobs, packed, trees

RANDOM = np.random.default_rng(5)
FEW_SHOT = RANDOM.integers(2, VOCABULARY, 20).tolist()
QUESTIONS = [[*FEW_SHOT, *RANDOM.integers(2, VOCABULARY, 6).tolist()] for _ in range(6)]


def scores(count: int, top: int = 1) -> SequenceScores:
    ids = np.tile(np.arange(count, dtype=np.int32)[:, None], (1, top))
    return SequenceScores(np.arange(count, dtype=np.float32), TopTokens(ids, ids.astype(np.float32)))


def tokens(*ids: int) -> Any:
    return np.array(ids, np.int32)


def test_a_later_batch_computes_only_what_follows_the_prefix() -> None:
    scorer = trees()
    computed: list[int] = []
    for batch in (QUESTIONS[:3], QUESTIONS[3:]):
        answers = scorer.complete(
            [CompletionPrompt(ids=packed(text), max_tokens=1) for text in batch], prompt_logprobs=1, logprobs=1
        )
        computed.append(scorer.evaluator.report.tokens_computed - sum(computed))
        for text, answer in zip(batch, answers, strict=True):
            check_logprobs(answer.prompt_logprobs, scorer.logprobs(text)[:-1], text[1:])
    # Three questions of 6 tokens after one that is computed again, with padding; the first batch also has the 20 before them.
    assert computed[1] <= 32 < computed[0]

    scorer.evaluator.forget_scores()
    (again,) = scorer.complete([CompletionPrompt(ids=packed(QUESTIONS[3]))], prompt_logprobs=1)
    check_logprobs(again.prompt_logprobs, scorer.logprobs(QUESTIONS[3])[:-1], QUESTIONS[3][1:])


def test_a_prompt_that_is_known_whole_needs_no_step() -> None:
    scorer = trees()
    scorer.complete([CompletionPrompt(ids=packed(text)) for text in QUESTIONS], prompt_logprobs=1)
    steps = scorer.evaluator.report.steps

    (answer,) = scorer.complete([CompletionPrompt(ids=packed(FEW_SHOT))], prompt_logprobs=1)

    assert scorer.evaluator.report.steps == steps
    check_logprobs(answer.prompt_logprobs, scorer.logprobs(FEW_SHOT)[:-1], FEW_SHOT[1:])


def test_the_longest_prefix_with_enough_tokens_is_found() -> None:
    known = PromptScores()
    text = tokens(1, 2, 3, 4, 5)
    known.learn(text, scores(4), [tokens(1).tobytes(), tokens(1, 2, 3).tobytes(), tokens(9).tobytes()])

    assert len(known) == 2
    found = known.longest(tokens(1, 2, 3, 4, 7), 1)
    assert found is not None
    assert found.logprobs.tolist() == [0.0, 1.0, 2.0]  # of the tokens 2, 3 and 4
    shorter = known.longest(tokens(1, 2, 8), 1)
    assert shorter is not None
    assert len(shorter) == 1
    assert known.longest(tokens(1, 8), 1) is None
    assert known.longest(text, 5) is None
    known.learn(text, scores(4, top=5), [tokens(1, 2, 3).tobytes()])
    assert known.longest(text, 5) is not None


def test_what_was_not_used_for_longest_is_dropped_first() -> None:
    states = [tokens(first).tobytes() for first in (1, 2, 3)]
    known = PromptScores(limit_bytes=2 * scores(1).size_bytes)
    known.learn(tokens(1, 5), scores(1), states)
    known.learn(tokens(2, 5), scores(1), states)
    assert known.longest(tokens(1, 5), 1) is not None
    known.learn(tokens(3, 5), scores(1), states)

    assert [known.longest(tokens(first, 5), 1) is not None for first in (1, 2, 3)] == [True, False, True]
