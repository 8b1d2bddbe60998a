"""Generation from a state: the plain greedy loop, whatever the prompts, the rows, and the way each text ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from birdie_zmq import Model
from birdie_zmq.engine.backend import Decoding
from birdie_zmq.engine.buckets import StepBudget
from birdie_zmq.engine.contract import resolve
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax_backend import JaxBackend
from birdie_zmq.engine.tokenizer import TextTokenizer
from birdie_zmq.models.decoder import model_of
from birdie_zmq.models.llama import Llama
from birdie_zmq.wire import messages as m
from tests.engine.recurrent import VOCABULARY, recurrent
from tests.engine.recurrent import logits as recurrent_logits

MAX_LENGTH = 252
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
assert len(LETTERS) == VOCABULARY


class Alphabet:
    """One token a letter; the prefix token is the first letter."""

    bos_token_id = 0

    def __init__(self, eos_token_id: int | None = None) -> None:
        self.eos_token_id = eos_token_id

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(LETTERS[i] for i in ids)


class Watched(JaxBackend):
    """The real backend, which remembers with how many rows it was asked to decode."""

    def __init__(self, model: Model) -> None:
        super().__init__(resolve(model), MAX_LENGTH)
        self.direct = jax.jit(partial(model.logits or recurrent_logits, model.params))
        self.asked: list[int] = []

    def decoding(self, rows: int, capacity: int) -> Decoding:
        self.asked.append(rows)
        return super().decoding(rows, capacity)

    def continuation(self, prompt: str, count: int) -> str:
        """The plain greedy loop, every token from the whole row, padded to one length."""
        tokens = Alphabet().encode(prompt) or [Alphabet.bos_token_id]
        begin = len(tokens)
        for _ in range(count):
            padded = np.array([tokens + [0] * (MAX_LENGTH - len(tokens))], np.int32)
            tokens.append(int(self.direct(padded)[0, len(tokens) - 1].argmax()))
        return Alphabet().decode(tokens[begin:])


class Heard:
    """The texts, by their prompts' numbers, in the order in which they came."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}

    def answered(self, indices: Sequence[int], answers: m.Answers) -> None:
        if isinstance(answers, m.Texts):
            for index, text in zip(indices, answers.texts, strict=True):
                assert index not in self.texts
                self.texts[index] = text

    def notice(self, level: m.Level, text: str) -> None:
        raise AssertionError(text)

    def phase(self, phase: str) -> None:
        pass


def llama() -> Model:
    architecture = Llama(
        vocab_size=VOCABULARY, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=32, max_length=MAX_LENGTH
    )
    return model_of(architecture, architecture.init_params(jax.random.key(1)))


MODELS: dict[str, Callable[[], Model]] = {"llama": llama, "recurrent": recurrent}


@pytest.fixture(scope="module", params=MODELS)
def backend(request: pytest.FixtureRequest) -> Watched:
    """Each model; its programs are compiled once for all tests."""
    backend = Watched(MODELS[request.param]())
    backend.budget = dataclasses.replace(backend.budget, decoding_rows=4)
    return backend


def evaluator_of(backend: Watched, eos_token_id: int | None = None) -> Evaluator:
    return Evaluator(TextTokenizer(Alphabet(eos_token_id)), backend, MAX_LENGTH)


def generate(
    evaluator: Evaluator, prompts: Sequence[str], *until: str, max_gen_toks: int = 9, **limits: Any
) -> list[str]:
    heard = Heard()
    settings = m.GenerationSettings(until=until, max_gen_toks=max_gen_toks)
    evaluator.generate(m.GenerateWork(prompts=list(prompts), settings=settings), m.StepLimits(**limits), heard)
    return [heard.texts[index] for index in range(len(prompts))]


PROMPTS = ["abc", "a", "", "xyzABCxyzABCxyzABCxyzABC", "hello", "hell", "qqqqqqqqqqqqqqqqq"]


@pytest.mark.parametrize(
    ("limits", "most"), [({}, 4), ({"rows": 1}, 1), ({"rows": 2}, 2), ({"max_rows": 3}, 3), ({"max_rows": 100}, 4)]
)
def test_texts_are_those_of_the_plain_greedy_loop(backend: Watched, limits: dict[str, int], most: int) -> None:
    texts = generate(evaluator_of(backend), PROMPTS, **limits)

    assert texts == [backend.continuation(prompt, 9) for prompt in PROMPTS]
    assert backend.asked[-1] <= most


@pytest.mark.parametrize("count", [1, 2, 7])
def test_texts_end_after_max_gen_toks(backend: Watched, count: int) -> None:
    texts = generate(evaluator_of(backend), PROMPTS, max_gen_toks=count)

    assert texts == [backend.continuation(prompt, count) for prompt in PROMPTS]


def test_each_text_ends_at_its_own_eos_and_makes_room_for_the_next_prompt(backend: Watched) -> None:
    whole = [backend.continuation(prompt, 12) for prompt in PROMPTS]
    letter = whole[0][4]

    texts = generate(evaluator_of(backend, LETTERS.index(letter)), PROMPTS, max_gen_toks=12)

    assert texts == [text.split(letter)[0] for text in whole]
    assert len({len(text) for text in texts}) > 1


def test_each_text_ends_before_its_first_stop_string(backend: Watched) -> None:
    whole = [backend.continuation(prompt, 12) for prompt in PROMPTS]
    stop, other = whole[1][3:5], whole[3][7]

    texts = generate(evaluator_of(backend), PROMPTS, stop, other, max_gen_toks=12)

    assert texts == [text.split(stop)[0].split(other)[0] for text in whole]


def test_one_call_may_decode_more_tokens_than_are_asked_for(backend: Watched) -> None:
    before = backend.budget
    backend.budget = dataclasses.replace(before, decoded=5)
    backend._programs.clear()  # they decode as many as the budget said when they were compiled
    try:
        texts = generate(evaluator_of(backend), PROMPTS[:3], max_gen_toks=7)
    finally:
        backend.budget = before
        backend._programs.clear()

    assert texts == [backend.continuation(prompt, 7) for prompt in PROMPTS[:3]]


def test_long_prompts_that_begin_with_what_was_scored_before_are_continued_alike(backend: Watched) -> None:
    beginning = (LETTERS * 3)[:100]
    before = backend.budget
    backend.budget = StepBudget(tokens=32, call_tokens=4)
    evaluator = evaluator_of(backend)
    pairs = [(beginning + letter, "ab") for letter in "abcd"]
    try:
        evaluator.loglikelihood(m.LogLikelihoodWork(pairs=pairs), m.StepLimits(rows=2), Heard())
        # The longest has 246 tokens to read, and a state 256 slots: no piece may be written beyond them.
        prompts = [beginning + "x", *(beginning + (letter * 7 + LETTERS * 4)[:147] for letter in "abcdef")]
        texts = generate(evaluator, prompts, max_gen_toks=4)
    finally:
        backend.budget = before

    assert texts == [backend.continuation(prompt, 4) for prompt in prompts]


def test_steps_and_tokens_are_counted(backend: Watched) -> None:
    evaluator = evaluator_of(backend)
    generate(evaluator, ["abc", "ab"], max_gen_toks=4)

    report = evaluator.report
    # Each prompt but its last token is read in a step of 16; then two tokens at once are decoded for both rows.
    assert report.requests == 2
    assert report.steps == 2 + 2
    assert report.tokens_requested == (2 + 1) + 2 * 4
    assert report.tokens_computed == 2 * 16 + 2 * 4
    assert report.tokens_padding == 2 * 16 - (2 + 1)
    assert report.shapes == [(1, 16), (2, 1)]
    assert len(report.shapes) <= report.shape_bound
