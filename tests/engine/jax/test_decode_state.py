"""The state of a decode batch has room for short answers, and is enlarged for long ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from birdie_zmq import Model
from birdie_zmq.engine.decoding_memory import can_be_enlarged
from birdie_zmq.engine.jax import decode_state, memory
from birdie_zmq.types import SamplingParams
from tests.engine.jax.test_decoding import LETTERS, RecordingBackend, evaluator_of, generate, generate_texts, llama
from tests.engine.recurrent import recurrent

PROMPTS = ["a", LETTERS[:30], "dab", "", LETTERS[5:22] * 3]
LONG = 100


def forks() -> Model:
    """Return a model whose prompts are prefilled in rows of a state."""
    return dataclasses.replace(llama(), branch=None, prefill=None, append=None, extend_after=None)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Let states have room for four tokens at first, and any capacity; return the rows and capacities of all states."""
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(decode_state, "FIRST_TOKENS", 4)
    monkeypatch.setattr(decode_state, "capacity_for", lambda tokens: 1 << (tokens - 1).bit_length())
    for name in ("create", "make_room"):
        function = getattr(decode_state.DecodeState, name)

        def noted(state: Any, tokens: int, function: Any = function) -> None:
            function(state, tokens)
            if (state.rows, state.capacity) not in sizes[-1:]:
                sizes.append((state.rows, state.capacity))

        monkeypatch.setattr(decode_state.DecodeState, name, noted)
    return sizes


@pytest.mark.parametrize(
    ("model", "chunk", "rows"), [(llama, 16, 3), (llama, 1024, 1), (forks, 16, None), (forks, 1024, 3)]
)
def test_texts_are_those_of_a_greedy_loop_while_the_state_is_enlarged(
    model: Callable[[], Model], chunk: int, rows: int | None, sizes: list[tuple[int, int]]
) -> None:
    backend = RecordingBackend(model())
    backend.budget = dataclasses.replace(backend.budget, tokens=chunk, chunk_tokens=chunk, call_tokens=1)

    texts = generate(evaluator_of(backend), PROMPTS, max_gen_toks=LONG, rows=rows)

    assert texts == [backend.continuation(prompt, LONG) for prompt in PROMPTS]
    capacities = [capacity for _, capacity in sizes]
    assert min(capacities) <= 64
    assert max(capacities) == 256
    for before, after in itertools.pairwise(sizes):
        assert after[1] >= before[1] or rows == 1, "a state is not made smaller"


def test_short_answers_take_a_small_state(sizes: list[tuple[int, int]]) -> None:
    backend = RecordingBackend(llama())
    answer = backend.continuation(PROMPTS[1], 20)
    end = next(letter for letter in answer[1:] if letter != answer[0])

    (text,) = generate(evaluator_of(backend), [PROMPTS[1]], end, max_gen_toks=LONG)

    assert text == answer.split(end)[0]
    assert sizes == [(1, 64)]


def test_prompts_behind_a_shared_or_a_cached_prefix(sizes: list[tuple[int, int]]) -> None:
    backend = RecordingBackend(llama())
    backend.budget = dataclasses.replace(backend.budget, tokens=32, chunk_tokens=32, call_tokens=1)
    evaluator, prefix = evaluator_of(backend), LETTERS + LETTERS[::-1]
    for prompts in ([prefix + letter for letter in "abc"], [prefix + "d", prefix[:60] + "e", "f"]):
        texts = generate(evaluator, prompts, max_gen_toks=60)

        assert texts == [backend.continuation(prompt, 60) for prompt in prompts]

    assert backend.shared_tokens == [80, 0]
    assert sizes[0] == (3, 8), "the capacity is that of the tokens after the shared prefix"
    assert sizes[-1][1] == 256


def test_penalties_and_samples_do_not_depend_on_the_size_of_the_state(sizes: list[tuple[int, int]]) -> None:
    texts = []
    for enlarges in (True, False):
        backend = RecordingBackend(llama())
        backend.budget = dataclasses.replace(backend.budget, enlarges_states=enlarges)
        sampling = SamplingParams(temperature=1.0)
        texts.append(
            generate_texts(
                evaluator_of(backend), PROMPTS, max_gen_toks=LONG, sampling=sampling, keys=range(len(PROMPTS))
            )
        )
    assert texts[0] == texts[1]
    assert sizes[-1][1] == 256


@pytest.mark.parametrize(
    ("model", "free"),
    [(recurrent, None), (lambda: dataclasses.replace(llama(), resize=None), None), (llama, "little")],
    ids=["a state of fixed size", "no resize", "little memory"],
)
def test_state_has_its_whole_capacity(
    model: Callable[[], Model], free: str | None, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = RecordingBackend(model())
    if free is not None:
        row_bytes = 2 * 256 * 8 * 4  # keys and values of 256 tokens, one head of 8 float32
        rows = 6 + 2  # one row is prefilled, and one is cached
        monkeypatch.setattr(memory, "free_bytes", lambda _devices: int((rows + 0.5) * row_bytes / 0.8))

    texts = generate(evaluator_of(backend), PROMPTS, max_gen_toks=LONG, rows=6)

    assert texts == [backend.continuation(prompt, LONG) for prompt in PROMPTS]
    assert {capacity for _, capacity in sizes} == ({2**30} if model is recurrent else {256})


@pytest.mark.parametrize(("free", "fits"), [(None, True), (1876, True), (1874, False)])
def test_state_is_enlarged_if_the_last_two_sizes_fit_into_memory(free: int | None, fits: bool) -> None:
    assert can_be_enlarged(free, row_bytes=100, rows=10) == fits
