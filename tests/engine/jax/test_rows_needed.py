"""A decode batch has rows for the texts that go on after their first token."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from birdie_zmq.engine import generation
from birdie_zmq.engine.jax import decode_state, decoding, states
from tests.engine.jax.test_decoding import LETTERS, MODELS, RecordingBackend, evaluator_of, generate


def _prompts(backend: RecordingBackend, ended: int) -> tuple[list[str], str]:
    """Return prompts whose first token is a letter, between two that go on, in the order of steps; and that letter."""
    prompts = [first + second + "abc" + second + first for first in LETTERS[:10] for second in LETTERS[:5]]
    texts = {prompt: backend.continuation(prompt, 1) for prompt in prompts}
    letter, _ = Counter(texts.values()).most_common(1)[0]
    ending = [prompt for prompt, text in texts.items() if text == letter]
    others = [prompt for prompt, text in texts.items() if text != letter]
    ending = [prompt for prompt in ending if others[0] < prompt < others[-1]][:ended]
    assert len(ending) == ended
    return [others[0], *ending, others[-1]], letter


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(
    ("tokens", "ahead", "is_exact"),
    [(128, 1, True), (32, 2, True), (32, 1, False)],
    ids=["one step", "two steps at once", "two steps, one after another"],
)
def test_texts_that_end_with_their_first_token_get_no_row(
    model: Callable[..., Any], tokens: int, ahead: int, is_exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = RecordingBackend(model())
    backend.budget = dataclasses.replace(
        backend.budget, tokens=tokens, chunk_tokens=tokens, decoding_rows=8, steps_ahead=ahead, call_tokens=1
    )
    monkeypatch.setattr(generation, "_MAX_PREFILL_TOKENS", tokens)
    monkeypatch.setattr(generation, "_MAX_PREFILL_ROWS", tokens // 8)
    prompts, letter = _prompts(backend, ended=6)
    steps: list[int] = []
    prefill = decoding.JaxDecoding.prefill

    def counted_prefill(batch: Any, *arguments: Any, **keywords: Any) -> Any:
        steps.append(len(created))
        return prefill(batch, *arguments, **keywords)

    monkeypatch.setattr(decoding.JaxDecoding, "prefill", counted_prefill)
    created: list[int] = []
    create = states.create_state

    def counted_create(model: Any, rows: int, capacity: int) -> Any:
        created.append(rows)
        return create(model, rows, capacity)

    monkeypatch.setattr(decode_state, "create_state", counted_create)

    texts = generate(evaluator_of(backend), prompts, letter)

    assert texts == [backend.continuation(prompt, 9).split(letter)[0] for prompt in prompts]
    (rows,) = created
    assert len(steps) == (1 if tokens == 128 else 2)
    assert steps == [0] * len(steps) if is_exact else [0, 1], "whether the state was created before a step"
    assert (rows == 2) == is_exact, "each of 8 texts may need a row until its first token is known"
    assert rows <= 8


def test_no_state_is_created_if_all_texts_end_with_their_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = RecordingBackend(MODELS["llama"]())
    prompts, letter = _prompts(backend, ended=3)
    monkeypatch.setattr(decode_state, "create_state", None)

    assert generate(evaluator_of(backend), prompts[1:-1], letter) == ["", "", ""]
