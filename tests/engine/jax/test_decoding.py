"""Generation from a state: the plain greedy loop, whatever the prompts, the rows, and the way each text ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq import Model
from birdie_zmq.engine.backend import Decoding, NextTokens
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.generation import narrowing_widths
from birdie_zmq.engine.jax import backend as jax_backend
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.jax.decoding import JaxDecoding, key_data, limits_of
from birdie_zmq.engine.jax.sampling import Chance, draw
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.progress_delta import ProgressReporter
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.models.decoder import model_of
from birdie_zmq.models.llama import Llama
from birdie_zmq.types import (
    Answers,
    GenerateWork,
    GenerationParams,
    Level,
    LogLikelihoodWork,
    ProgressDelta,
    SamplingParams,
    StepLimits,
    Texts,
)
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

    def decoding(self, rows: int, capacity: int, sampling: SamplingParams | None = None) -> Decoding:
        self.asked.append(rows)
        return super().decoding(rows, capacity, sampling)

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

    def answered(self, indices: Sequence[int], answers: Answers) -> None:
        if isinstance(answers, Texts):
            for index, text in zip(indices, answers.texts, strict=True):
                assert index not in self.texts
                self.texts[index] = text

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.notices: list[str] = []

    def notice(self, level: Level, text: str) -> None:
        self.notices.append(text)

    def compiling(self, detail: str) -> None:
        pass

    def running(self) -> None:
        pass

    def step(self) -> None:
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
    return Evaluator(TokenizerAdapter(Alphabet(eos_token_id)), backend, MAX_LENGTH)


def generate(
    evaluator: Evaluator, prompts: Sequence[str], *until: str, max_gen_toks: int = 9, **limits: Any
) -> list[str]:
    return heard_of(evaluator, prompts, *until, max_gen_toks=max_gen_toks, notices=(), **limits)


def heard_of(
    evaluator: Evaluator,
    prompts: Sequence[str],
    *until: str,
    max_gen_toks: int = 9,
    sampling: SamplingParams | None = None,
    keys: Sequence[int] = (),
    notices: Sequence[str] = (),
    **limits: Any,
) -> list[str]:
    """The texts in the order of their prompts; `notices` are parts of what is said meanwhile."""
    heard = Heard()
    settings = GenerationParams(until=until, max_gen_toks=max_gen_toks, sampling=sampling)
    work = GenerateWork(prompts=list(prompts), settings=settings, keys=list(keys))
    evaluator.generate(work, StepLimits(**limits), heard)
    assert len(heard.notices) == len(notices)
    assert all(part in notice for part, notice in zip(notices, heard.notices, strict=True))
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
    before, evaluator = backend.budget, evaluator_of(backend)
    backend.budget = dataclasses.replace(before, decoded=5)
    try:
        texts = generate(evaluator, PROMPTS[:3], max_gen_toks=7)
    finally:
        backend.budget = before

    assert texts == [backend.continuation(prompt, 7) for prompt in PROMPTS[:3]]
    # Two calls of five for each, of which seven are asked for.
    assert evaluator.report.tokens_generated == 3 * 7
    assert evaluator.report.tokens_thrown_away == 3 * 3


def test_long_prompts_that_begin_with_what_was_scored_before_are_continued_alike(backend: Watched) -> None:
    prefix = (LETTERS * 3)[:100]
    before = backend.budget
    backend.budget = StepBudget(tokens=32, call_tokens=4)
    evaluator = evaluator_of(backend)
    pairs = [(prefix + letter, "ab") for letter in "abcd"]
    try:
        evaluator.loglikelihood(LogLikelihoodWork(pairs=pairs), StepLimits(rows=2), Heard())
        # The longest has 246 tokens to read, and a state 256 slots: no piece may be written beyond them.
        prompts = [prefix + "x", *(prefix + (letter * 7 + LETTERS * 4)[:147] for letter in "abcdef")]
        texts = generate(evaluator, prompts, max_gen_toks=4)
    finally:
        backend.budget = before

    assert texts == [backend.continuation(prompt, 4) for prompt in prompts]


def test_steps_and_tokens_are_counted(backend: Watched) -> None:
    evaluator = evaluator_of(backend)
    generate(evaluator, ["abc", "ab"], max_gen_toks=4)

    report = evaluator.report
    # Each prompt but its last token is read in a step of 16; then a token at once is decoded for both rows.
    assert report.requests == 2
    assert report.steps == 2 + 4
    assert report.tokens_requested == (2 + 1) + 2 * 4
    assert report.tokens_computed == 2 * 16 + 2 * 4
    assert report.tokens_padding == 2 * 16 - (2 + 1)
    assert report.shapes == [(1, 16), (2, 1)]
    assert len(report.shapes) <= report.shape_bound


# --- What prompts share ----------------------------------------------------------------------------------------------


def test_what_prompts_begin_with_is_read_once_for_all(backend: Watched) -> None:
    shots = (LETTERS[::-1] * 3)[:96]  # no other test has left its state
    prompts = [shots + letter * 10 for letter in "abcdef"]
    before = backend.budget
    backend.budget = dataclasses.replace(before, call_tokens=4)
    evaluator = evaluator_of(backend)
    try:
        texts = generate(evaluator, prompts, max_gen_toks=4)
    finally:
        backend.budget = before

    assert texts == [backend.continuation(prompt, 4) for prompt in prompts]
    assert evaluator.report.tokens_computed - evaluator.report.tokens_padding == 96 + 6 * 9 + 6 * 4


def test_a_beginning_that_had_to_go_is_read_again(backend: Watched) -> None:
    shots = (LETTERS * 3)[:96]
    prompts = [shots + letter * 10 for letter in "abcdef"]
    before, limit = backend.budget, backend._states._limit_bytes
    backend.budget = dataclasses.replace(before, call_tokens=4)
    try:
        backend._states._limit_bytes = 0
        first = generate(evaluator_of(backend), prompts, max_gen_toks=4)
        scored = [(shots + "xyz" * 9 + letter, "ab") for letter in "abcd"]
        evaluator_of(backend).loglikelihood(LogLikelihoodWork(pairs=scored), StepLimits(), Heard())
        again = generate(evaluator_of(backend), prompts, max_gen_toks=4)
    finally:
        backend.budget, backend._states._limit_bytes = before, limit

    assert first == again == [backend.continuation(prompt, 4) for prompt in prompts]


# --- Rows that are left ----------------------------------------------------------------------------------------------


def test_when_few_rows_are_left_the_others_are_not_computed(backend: Watched) -> None:
    whole = [backend.continuation(prompt, 40) for prompt in PROMPTS[:4]]
    eos = next(letter for letter in LETTERS if sum(letter in text for text in whole) in (1, 2, 3))
    evaluator = evaluator_of(backend, LETTERS.index(eos))
    before = backend.budget
    backend.budget = dataclasses.replace(before, call_tokens=4)
    try:
        texts = generate(evaluator, PROMPTS[:4], max_gen_toks=40)
    finally:
        backend.budget = before

    assert texts == [text.split(eos)[0] for text in whole]
    rows = {rows for rows, length in evaluator.report.shapes if length == 1}
    assert 4 in rows
    assert min(rows) < 4
    forced = evaluator_of(backend, LETTERS.index(eos))
    assert generate(forced, PROMPTS[:4], max_gen_toks=40, rows=4) == texts
    assert {rows for rows, length in forced.report.shapes if length == 1} == {4}
    assert evaluator.report.tokens_padding < forced.report.tokens_padding
    assert evaluator.report.tokens_generated == forced.report.tokens_generated


@pytest.mark.parametrize(
    ("count", "room", "budget", "widths"),
    [
        (16, 512, StepBudget(tokens=1024), (16, 8, 4, 1)),
        (3, 512, StepBudget(tokens=1024), (3,)),
        (1, 512, StepBudget(tokens=1024), (1,)),
        (64, 512, StepBudget(tokens=16_384, call_tokens=1024, row_tokens=1), (64,)),
        (64, 65_536, StepBudget(tokens=16_384, call_tokens=1024, row_tokens=1), (64, 32, 8)),
    ],
)
def test_a_width_is_compiled_where_it_makes_a_round_much_cheaper(
    count: int, room: int, budget: StepBudget, widths: tuple[int, ...]
) -> None:
    assert narrowing_widths(count, room, 1, budget) == widths
    assert narrowing_widths(count, room, None, budget) == (count,), "where the user says how many rows there are"


def test_rows_that_are_dealt_out_to_devices_go_on_in_whole_units() -> None:
    assert narrowing_widths(32, 512, 8, StepBudget(tokens=1024, row_unit=8)) == (32, 16, 8)


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_rows_are_fewer_where_memory_is_and_long_prompts_have_less_company(
    backend: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [*PROMPTS, (LETTERS * 6)[:230]]
    small, large = (state_bytes(backend, room) for room in (256, 512))
    monkeypatch.setattr(jax_backend, "_SHARE_OF_FREE", 1.0)
    monkeypatch.setattr(jax_backend, "capacity_for", lambda room: 512 if room > 100 else 256)
    monkeypatch.setattr(jax_backend, "_free_bytes", lambda _devices: max(3 * large, 6 * small))
    backend.asked.clear()

    texts = generate(evaluator_of(backend), prompts)

    assert texts == [backend.continuation(prompt, 9) for prompt in prompts]
    # A recurrent state takes the same memory whatever it has read.
    assert backend.asked == ([4] if small == large else [1, 4])


def test_no_room_for_one_row_is_an_error_that_says_how_much_there_is(
    backend: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax_backend, "_free_bytes", lambda _devices: 2 * state_bytes(backend, 256))

    with pytest.raises(OutOfDeviceMemory, match=r"a prompt and its answer of \d+ tokens .* about \d+ tokens would fit"):
        generate(evaluator_of(backend), PROMPTS)


def state_bytes(backend: Watched, room: int) -> int:
    assert backend._model.init_state is not None
    state = backend._model.init_state(backend._params, 1, room)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_a_step_without_room_is_done_again_with_fewer_rows(backend: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    decode = JaxDecoding.decode

    def failing(self: JaxDecoding, active: Any) -> NextTokens:
        nonlocal calls
        calls += 1
        if calls in (3, 5):
            raise OutOfDeviceMemory("no room")
        return decode(self, active)

    monkeypatch.setattr(JaxDecoding, "decode", failing)
    backend.asked.clear()

    texts = heard_of(
        evaluator_of(backend), PROMPTS, notices=["no room; at most 2 prompts", "no room; at most 1 prompts"]
    )

    assert texts == [backend.continuation(prompt, 9) for prompt in PROMPTS]
    assert backend.asked == [4, 2, 1]


# --- Drawn tokens ----------------------------------------------------------------------------------------------------

WARM = SamplingParams(temperature=1.3, top_p=0.9, top_k=30)
KEYS = [11, 22, 2**61 + 3, 44, 55, 66, 77]


def drawn(backend: Watched, prompt: str, key: int, count: int) -> str:
    """The plain loop, every token from the whole row."""
    tokens = Alphabet().encode(prompt) or [Alphabet.bos_token_id]
    begin = len(tokens)
    for number in range(count):
        padded = np.array([tokens + [0] * (MAX_LENGTH - len(tokens))], np.int32)
        logits = backend.direct(padded)[0, len(tokens) - 1][None]
        by = Chance(jnp.array([key_data(key)], jnp.uint32), jnp.array([number], jnp.int32))
        tokens.append(int(_draw(logits, limits_of(WARM), by)[0][0]))
    return Alphabet().decode(tokens[begin:])


_draw = jax.jit(draw)


@pytest.mark.parametrize("limits", [{}, {"rows": 1}, {"rows": 3}])
def test_drawn_texts_are_those_of_the_plain_loop_whatever_the_rows(backend: Watched, limits: dict[str, Any]) -> None:
    texts = heard_of(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS, **limits)

    assert texts == [drawn(backend, prompt, key, 9) for prompt, key in zip(PROMPTS, KEYS, strict=True)]


def test_drawn_texts_do_not_depend_on_their_order_or_their_company(backend: Watched) -> None:
    texts = heard_of(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS)

    backwards = heard_of(evaluator_of(backend), PROMPTS[::-1], sampling=WARM, keys=KEYS[::-1])
    alone = heard_of(evaluator_of(backend), PROMPTS[4:5], sampling=WARM, keys=KEYS[4:5])

    assert backwards == texts[::-1]
    assert alone == texts[4:5]


def test_repeats_of_a_prompt_are_drawn_by_their_own_keys(backend: Watched) -> None:
    texts = heard_of(evaluator_of(backend), ["hello"] * 4, sampling=WARM, keys=[1, 2, 3, 1])

    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_drawing_goes_on_where_it_was_after_a_step_without_room(
    backend: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = heard_of(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS)
    decode, calls = JaxDecoding.decode, 0

    def failing(self: JaxDecoding, active: Any) -> NextTokens:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OutOfDeviceMemory("no room")
        return decode(self, active)

    monkeypatch.setattr(JaxDecoding, "decode", failing)

    assert heard_of(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS, notices=["no room"]) == expected


def test_a_model_that_gives_only_logits_draws_the_same_texts(backend: Watched) -> None:
    plain = Model(logits=backend._model.logits or recurrent_logits, params=backend._params)
    evaluator = Evaluator(TokenizerAdapter(Alphabet()), JaxBackend(resolve(plain), MAX_LENGTH), MAX_LENGTH)

    texts = heard_of(evaluator, PROMPTS, sampling=WARM, keys=KEYS, notices=["the model gives no state"])

    assert texts == heard_of(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS)
    # It is said once.
    assert heard_of(evaluator, PROMPTS[:2], max_gen_toks=2) == [backend.continuation(p, 2) for p in PROMPTS[:2]]


def test_first_tokens_come_as_often_as_the_model_has_them(backend: Watched) -> None:
    count, limits = 1500, SamplingParams(temperature=1.5, top_p=0.8)
    tokens = np.array([Alphabet().encode("hello") + [0] * (MAX_LENGTH - 5)], np.int32)
    scaled = np.asarray(backend.direct(tokens)[0, 4], np.float64) / 1.5
    likelihood = np.exp(scaled - scaled.max())
    likelihood /= likelihood.sum()
    order = np.argsort(-likelihood)
    before = np.cumsum(likelihood[order]) - likelihood[order]
    likelihood[order[before >= 0.8]] = 0
    likelihood /= likelihood.sum()

    texts = heard_of(
        evaluator_of(backend), ["hello"] * count, max_gen_toks=1, sampling=limits, keys=range(count), rows=50
    )

    found = np.array([texts.count(letter) for letter in LETTERS])
    assert found.sum() == count
    assert (likelihood > 0).sum() >= 3
    # Five standard deviations: without top_p more than a fifth of the tokens would be others.
    deviations = np.sqrt(count * likelihood * (1 - likelihood))
    assert (np.abs(found - count * likelihood) <= 5 * deviations).all()


def test_lengths_are_told_of_texts_that_go_on_and_of_those_that_have_ended(backend: Watched) -> None:
    """Six prompts, four at once, that all end at five tokens or before."""

    class Following(Heard):
        def answered(self, indices: Sequence[int], answers: Answers) -> None:
            super().answered(indices, answers)
            advances.append(since.since_last())

        def step(self) -> None:
            advances.append(since.since_last())

    advances: list[ProgressDelta] = []
    evaluator = evaluator_of(backend)
    since = ProgressReporter(evaluator)
    how = GenerationParams(max_gen_toks=5)
    evaluator.generate(GenerateWork(prompts=list("abcdef"), settings=how, keys=[]), StepLimits(rows=4), Following())
    finished_lengths = [length for advance in advances for length in advance.finished_lengths]
    assert len(finished_lengths) == 6
    assert max(finished_lengths) <= 5
    assert all(len(advance.active_lengths) <= 4 and max(advance.active_lengths, default=0) < 5 for advance in advances)
    assert max(len(advance.active_lengths) for advance in advances) == 4
    assert {advance.decode_rows for advance in advances if advance.active_lengths} == {
        4 if backend.ability != "rows" else 1
    }
    assert advances[-1].active_lengths == ()
    assert advances[-1].remaining == 0
    assert sum(advance.computed.done for advance in advances) > sum(advance.computed.planned for advance in advances)
