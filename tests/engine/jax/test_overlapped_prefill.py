"""Prefilling while the step before is computed: a step starts before the tokens of the step before it are fetched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from birdie_zmq.engine.backend import NextTokens
from birdie_zmq.engine.jax.decoding import JaxDecoding
from birdie_zmq.engine.jax.position_head import PendingTokens
from tests.engine.jax.test_decoding import MODELS, RecordingBackend, evaluator_of, generate

PROMPTS = ["abcdefgh" * 3, "ijklmnop" * 3, "qrstuvwx" * 3, "yzABCDEF" * 3]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("ahead", [1, 2])
def test_a_step_starts_before_the_tokens_of_the_last_one_are_fetched(
    model: Callable[..., object], ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are more prompts than rows, so that the third and fourth are prefilled between decode steps."""
    backend = RecordingBackend(model())  # type: ignore[arg-type]
    backend.budget = dataclasses.replace(backend.budget, tokens=16, chunk_tokens=16, decoding_rows=2, steps_ahead=ahead)
    unfetched: list[PendingTokens] = []
    most: list[int] = []
    start, fetch = JaxDecoding._start, PendingTokens.result

    def counted_start(decoding: JaxDecoding, *arguments: object) -> object:
        started = start(decoding, *arguments)  # type: ignore[arg-type]
        unfetched.append(started.tokens)
        most.append(len(unfetched))
        return started

    def counted_fetch(tokens: PendingTokens) -> NextTokens:
        assert unfetched.pop(0) is tokens, "tokens are fetched in the order of the steps"
        return fetch(tokens)

    monkeypatch.setattr(JaxDecoding, "_start", counted_start)
    monkeypatch.setattr(PendingTokens, "result", counted_fetch)

    texts = generate(evaluator_of(backend), PROMPTS)

    assert texts == [backend.continuation(prompt, 9) for prompt in PROMPTS]
    assert max(most) == ahead
    assert not unfetched
