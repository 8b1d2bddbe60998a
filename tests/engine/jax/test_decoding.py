"""Decoding with a cache: results equal a plain greedy loop for any prompts, row counts and stop criteria."""

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
from birdie_zmq.engine import decoding_memory, generation, plan_states
from birdie_zmq.engine.backend import GREEDY, Decoding, NextTokens, TokenChoice
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.events import Answered, Notice
from birdie_zmq.engine.generation import narrowed_row_counts
from birdie_zmq.engine.jax import memory
from birdie_zmq.engine.jax import states as jax_states
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.jax.decoding import JaxDecoding
from birdie_zmq.engine.jax.sampling import SamplingKeys, key_data, sample, sampling_arrays
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.execution_mode import TREES
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.models.decoder import build_model
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, SamplingParams, StepLimits
from tests.engine.recurrent import VOCABULARY, recurrent
from tests.engine.recurrent import logits as recurrent_logits

MAX_LENGTH = 252
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
assert len(LETTERS) == VOCABULARY


class Alphabet:
    """A tokenizer with one token per letter; the prefix token is the first letter."""

    bos_token_id = 0

    def __init__(self, eos_token_id: int | None = None) -> None:
        self.eos_token_id = eos_token_id

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(LETTERS[i] for i in ids)


class RecordingBackend(JaxBackend):
    """The real backend, which records the rows of its decode batches, their capacity and the tokens they share."""

    def __init__(self, model: Model) -> None:
        super().__init__(resolve(model), MAX_LENGTH)
        self.direct = jax.jit(partial(model.logits or recurrent_logits, model.params))
        self.decoded_rows: list[int] = []
        self.capacities: list[int] = []
        self.shared_tokens: list[int] = []

    def decoding(self, rows: int, capacity: int, choice: TokenChoice = GREEDY, shared: bytes = b"") -> Decoding:
        self.decoded_rows.append(rows)
        self.capacities.append(capacity)
        self.shared_tokens.append(len(shared) // 4)
        return super().decoding(rows, capacity, choice, shared)

    def continuation(self, prompt: str, count: int) -> str:
        """Run the plain greedy loop: every token from the whole row, padded to one length."""
        tokens = Alphabet().encode(prompt) or [Alphabet.bos_token_id]
        begin = len(tokens)
        for _ in range(count):
            padded = np.array([tokens + [0] * (MAX_LENGTH - len(tokens))], np.int32)
            tokens.append(int(self.direct(padded)[0, len(tokens) - 1].argmax()))
        return Alphabet().decode(tokens[begin:])


def llama() -> Model:
    architecture = plain_llama(
        vocab_size=VOCABULARY, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=32, max_length=MAX_LENGTH
    )
    return build_model(architecture, architecture.init_params(jax.random.key(1)))


MODELS: dict[str, Callable[[], Model]] = {"llama": llama, "recurrent": recurrent}


@pytest.fixture(scope="module", params=MODELS)
def backend(request: pytest.FixtureRequest) -> RecordingBackend:
    """Return a backend of each model; its executables are compiled once for all tests."""
    backend = RecordingBackend(MODELS[request.param]())
    backend.budget = dataclasses.replace(backend.budget, decoding_rows=4)
    return backend


def evaluator_of(backend: RecordingBackend, eos_token_id: int | None = None) -> Evaluator:
    return Evaluator(TokenizerAdapter(Alphabet(eos_token_id)), backend, MAX_LENGTH)


def texts_and_notices(evaluator: Evaluator, work: GenerateWork, **limits: Any) -> tuple[list[str], list[str]]:
    """Return the texts in the order of their prompts, and the texts of all notices."""
    texts: dict[int, Any] = {}
    notices = []
    for event in evaluator.answer(work, StepLimits(**limits)):
        match event:
            case Answered(indices=indices, answers=answers):
                assert texts.keys().isdisjoint(indices)
                texts.update(zip(indices, answers, strict=True))
            case Notice(text=text):
                notices.append(text)
    return [texts[index] for index in range(len(work))], notices


def score(evaluator: Evaluator, pairs: list[tuple[str, str]], **limits: Any) -> None:
    for _ in evaluator.answer(LogLikelihoodWork(pairs=pairs), StepLimits(**limits)):
        pass


def generate(
    evaluator: Evaluator, prompts: Sequence[str], *until: str, max_gen_toks: int = 9, **limits: Any
) -> list[str]:
    return generate_texts(evaluator, prompts, *until, max_gen_toks=max_gen_toks, notices=(), **limits)


def generate_texts(
    evaluator: Evaluator,
    prompts: Sequence[str],
    *until: str,
    max_gen_toks: int = 9,
    sampling: SamplingParams | None = None,
    keys: Sequence[int] = (),
    notices: Sequence[str] = (),
    **limits: Any,
) -> list[str]:
    """Return the texts in the order of their prompts; `notices` are fragments of the expected notices."""
    settings = GenerationParams(until=until, max_gen_toks=max_gen_toks, sampling=sampling)
    work = GenerateWork(prompts=list(prompts), settings=settings, keys=list(keys))
    texts, found = texts_and_notices(evaluator, work, **limits)
    found = [notice for notice in found if "has no EOS token" not in notice]
    assert len(found) == len(notices)
    assert all(part in notice for part, notice in zip(notices, found, strict=True))
    return texts


PROMPTS = ["abc", "a", "", "xyzABCxyzABCxyzABCxyzABC", "hello", "hell", "qqqqqqqqqqqqqqqqq"]


@pytest.mark.parametrize(
    ("limits", "most"), [({}, 4), ({"rows": 1}, 1), ({"rows": 2}, 2), ({"max_rows": 3}, 3), ({"max_rows": 100}, 4)]
)
def test_texts_equal_the_plain_greedy_loop(backend: RecordingBackend, limits: dict[str, int], most: int) -> None:
    texts = generate(evaluator_of(backend), PROMPTS, **limits)

    assert texts == [backend.continuation(prompt, 9) for prompt in PROMPTS]
    assert backend.decoded_rows[-1] <= most


@pytest.mark.parametrize("count", [1, 2, 7])
def test_texts_end_after_max_gen_toks(backend: RecordingBackend, count: int) -> None:
    texts = generate(evaluator_of(backend), PROMPTS, max_gen_toks=count)

    assert texts == [backend.continuation(prompt, count) for prompt in PROMPTS]


def test_each_text_ends_at_its_eos_and_frees_its_row(backend: RecordingBackend) -> None:
    whole = [backend.continuation(prompt, 12) for prompt in PROMPTS]
    letter = whole[0][4]

    texts = generate(evaluator_of(backend, LETTERS.index(letter)), PROMPTS, max_gen_toks=12)

    assert texts == [text.split(letter)[0] for text in whole]
    assert len({len(text) for text in texts}) > 1


def test_each_text_ends_before_its_first_stop_string(backend: RecordingBackend) -> None:
    whole = [backend.continuation(prompt, 12) for prompt in PROMPTS]
    stop, other = whole[1][3:5], whole[3][7]

    texts = generate(evaluator_of(backend), PROMPTS, stop, other, max_gen_toks=12)

    assert texts == [text.split(stop)[0].split(other)[0] for text in whole]


def test_surplus_tokens_of_a_decode_call_are_dropped(backend: RecordingBackend) -> None:
    before, evaluator = backend.budget, evaluator_of(backend)
    backend.budget = dataclasses.replace(before, tokens_per_call=5)
    try:
        texts = generate(evaluator, PROMPTS[:3], max_gen_toks=7)
    finally:
        backend.budget = before

    assert texts == [backend.continuation(prompt, 7) for prompt in PROMPTS[:3]]
    # The prefill gives the first token, and two calls of five tokens each the other six.
    assert evaluator.report.tokens_generated == 3 * 7
    assert evaluator.report.tokens_thrown_away == 3 * 4


def test_long_prompts_with_a_cached_prefix_are_continued_correctly(backend: RecordingBackend) -> None:
    prefix = (LETTERS * 3)[:100]
    before = backend.budget
    backend.budget = StepBudget(tokens=32, call_tokens=4)
    evaluator = evaluator_of(backend)
    pairs = [(prefix + letter, "ab") for letter in "abcd"]
    try:
        score(evaluator, pairs, rows=2)
        # The longest prompt has 246 tokens to prefill, and a state holds 256: no chunk may be written beyond it.
        prompts = [prefix + "x", *(prefix + (letter * 7 + LETTERS * 4)[:147] for letter in "abcdef")]
        texts = generate(evaluator, prompts, max_gen_toks=4)
    finally:
        backend.budget = before

    assert texts == [backend.continuation(prompt, 4) for prompt in prompts]


def test_steps_and_tokens_are_counted(backend: RecordingBackend) -> None:
    evaluator = evaluator_of(backend)
    generate(evaluator, ["abc", "ab"], max_gen_toks=4)

    report = evaluator.report
    # Both prompts are prefilled together: in a row of trees, or a stem and a leaf. This gives the first token of each
    # answer; then one token per call is decoded for both rows.
    steps, length = (1, 16) if backend.generation_mode is TREES else (2, 4)
    assert report.requests == 2
    assert report.steps == steps + 3
    assert report.tokens_requested == (3 + 2) + 2 * 3
    assert report.tokens_computed == steps * length + 2 * 3
    assert report.tokens_padding == steps * length - 3
    assert report.shapes == [(1, length), (2, 1)]
    assert len(report.shapes) <= report.shape_bound


# --- Shared prefixes of prompts ---------------------------------------------------------------------------------------


def test_shared_prefix_of_prompts_is_prefilled_once(backend: RecordingBackend) -> None:
    shots = (LETTERS[::-1] * 3)[:96]  # not cached by another test
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


SHARED = (LETTERS * 3)[:100]
"""A prefix of prompts that is long enough to be held once."""


@pytest.mark.parametrize("limits", [{}, {"rows": 1}, {"max_rows": 3}])
def test_prefix_that_all_prompts_share_is_held_once(backend: RecordingBackend, limits: dict[str, int]) -> None:
    prompts = [SHARED + prompt for prompt in PROMPTS if prompt]

    texts = generate(evaluator_of(backend), prompts, **limits)

    assert texts == [backend.continuation(prompt, 9) for prompt in prompts]
    if backend.shares_prefixes:
        longest = max(map(len, PROMPTS))
        assert backend.shared_tokens[-1] == len(SHARED)
        assert backend.capacities[-1] == longest + 9 + backend.budget.tokens_per_call


def test_whole_shortest_prompt_is_not_shared(backend: RecordingBackend) -> None:
    prompts = [SHARED, SHARED + "x", SHARED]

    assert generate(evaluator_of(backend), prompts) == [backend.continuation(prompt, 9) for prompt in prompts]
    assert backend.shared_tokens[-1] == (len(SHARED) - 1) * backend.shares_prefixes


def test_shared_prefix_is_computed_once_for_several_calls(backend: RecordingBackend) -> None:
    first, second = ([SHARED[::-1] + letter + end for end in ("", "a", "bc")] for letter in "xy")
    generate(evaluator_of(backend), first)
    evaluator = evaluator_of(backend)

    texts = generate(evaluator, second)

    assert texts == [backend.continuation(prompt, 9) for prompt in second]
    if backend.shares_prefixes:
        assert evaluator.report.tokens_computed < len(SHARED)


def test_rows_hold_prefixes_that_only_some_of_them_share(backend: RecordingBackend) -> None:
    """Prompts do not all come directly after what all share: some come after a longer prefix with a state of its own."""
    halves = [SHARED[:70] + "x" + SHARED[:60], SHARED[:70] + "y" + SHARED[:60]]
    prompts = [half + letter for half in halves for letter in LETTERS[:12]]
    before = backend.budget
    backend.budget = dataclasses.replace(before, tokens=64, call_tokens=4)
    try:
        texts = generate(evaluator_of(backend), prompts)
    finally:
        backend.budget = before

    assert texts == [backend.continuation(prompt, 9) for prompt in prompts]
    assert backend.shared_tokens[-1] == 0


def test_sampled_texts_do_not_depend_on_what_prompts_share(backend: RecordingBackend) -> None:
    sampling, prompt = SamplingParams(temperature=0.8), SHARED + "xyz"
    texts = {
        generate_texts(evaluator_of(backend), [prompt, *others], sampling=sampling, keys=[7, 8, 9][: 1 + len(others)])[
            0
        ]
        for others in ([], [SHARED + "abc"], ["a"])
    }
    assert len(texts) == 1


def test_evicted_prefix_is_prefilled_again(backend: RecordingBackend) -> None:
    shots = (LETTERS * 3)[:96]
    prompts = [shots + letter * 10 for letter in "abcdef"]
    before, limit = backend.budget, backend._prefix_cache._limit_bytes
    backend.budget = dataclasses.replace(before, call_tokens=4)
    try:
        backend._prefix_cache._limit_bytes = 0
        first = generate(evaluator_of(backend), prompts, max_gen_toks=4)
        scored = [(shots + "xyz" * 9 + letter, "ab") for letter in "abcd"]
        score(evaluator_of(backend), scored)
        again = generate(evaluator_of(backend), prompts, max_gen_toks=4)
    finally:
        backend.budget, backend._prefix_cache._limit_bytes = before, limit

    assert first == again == [backend.continuation(prompt, 4) for prompt in prompts]


# --- Narrowing the batch ----------------------------------------------------------------------------------------------


def test_finished_rows_are_not_computed_when_few_are_left(backend: RecordingBackend) -> None:
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
    ("count", "capacity", "budget", "widths"),
    [
        (16, 512, StepBudget(tokens=1024), (16, 8, 4, 1)),
        (3, 512, StepBudget(tokens=1024), (3,)),
        (1, 512, StepBudget(tokens=1024), (1,)),
        (64, 512, StepBudget(tokens=16_384, call_tokens=1024, row_tokens=1), (64,)),
        (64, 65_536, StepBudget(tokens=16_384, call_tokens=1024, row_tokens=1), (64, 32, 8)),
    ],
)
def test_narrower_batch_is_compiled_where_it_makes_a_decode_step_much_cheaper(
    count: int, capacity: int, budget: StepBudget, widths: tuple[int, ...]
) -> None:
    assert narrowed_row_counts(count, capacity, 1, budget) == widths
    assert narrowed_row_counts(count, capacity, None, budget) == (count,), "with a row count forced by the user"


def test_narrowed_row_counts_are_multiples_of_the_row_unit() -> None:
    assert narrowed_row_counts(32, 512, 8, StepBudget(tokens=1024, row_unit=8)) == (32, 16, 8)


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_rows_are_limited_by_free_memory_and_prompt_length(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [*PROMPTS, (LETTERS * 6)[:230]]
    small, large = (state_bytes(backend, capacity) for capacity in (256, 512))
    monkeypatch.setattr(decoding_memory, "_SHARE_OF_FREE", 1.0)
    for module in (jax_states, plan_states, generation):
        monkeypatch.setattr(module, "capacity_for", lambda capacity: 512 if capacity > 100 else 256)
    monkeypatch.setattr(memory, "free_bytes", lambda _devices: max(3 * large, 6 * small))
    backend.decoded_rows.clear()

    texts = generate(evaluator_of(backend), prompts)

    assert texts == [backend.continuation(prompt, 9) for prompt in prompts]
    # A recurrent state takes the same memory for any number of tokens.
    assert backend.decoded_rows == ([4] if small == large else [1, 4])


def test_more_than_16_rows_are_limited_by_the_memory_of_their_states(backend: RecordingBackend) -> None:
    prompts, before = [letter * length for length in (3, 80) for letter in LETTERS[:10]], backend.budget
    texts, rows = [], []
    for most in (None, 1):
        backend.budget = dataclasses.replace(before, decoding_rows=32, decoding_bytes=most)
        backend.decoded_rows.clear()
        try:
            texts.append(generate(evaluator_of(backend), prompts, max_gen_toks=3))
        finally:
            backend.budget = before
        rows.append(list(backend.decoded_rows))

    assert texts == [[backend.continuation(prompt, 3) for prompt in prompts]] * 2
    assert rows == [[24], [16]]


def test_error_for_one_row_that_does_not_fit_names_the_fitting_length(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _devices: 2 * state_bytes(backend, 256))

    named = r"a prompt and its answer of \d+ tokens .* about \d+ tokens would fit"
    if state_bytes(backend, 256) == state_bytes(backend, 512):
        named = r"generation needs 3 states of .* shorter texts do not help"
    with pytest.raises(OutOfDeviceMemory, match=named):
        generate(evaluator_of(backend), PROMPTS)


def state_bytes(backend: RecordingBackend, capacity: int) -> int:
    assert backend._model.functions.init_state is not None
    state = backend._model.functions.init_state(backend._model.params, 1, capacity)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_decode_step_out_of_memory_is_retried_with_fewer_rows(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    decode = JaxDecoding.decode

    def failing(self: JaxDecoding, active: Any) -> NextTokens:
        nonlocal calls
        calls += 1
        if calls in (3, 5):
            raise OutOfDeviceMemory("out of memory")
        return decode(self, active)

    monkeypatch.setattr(JaxDecoding, "decode", failing)
    backend.decoded_rows.clear()

    texts = generate_texts(
        evaluator_of(backend), PROMPTS, notices=["out of memory; at most 2 prompts", "out of memory; at most 1 prompts"]
    )

    assert texts == [backend.continuation(prompt, 9) for prompt in PROMPTS]
    assert backend.decoded_rows == [4, 2, 1]


# --- Sampling ---------------------------------------------------------------------------------------------------------

WARM = SamplingParams(temperature=1.3, top_p=0.9, top_k=30)
KEYS = [11, 22, 2**61 + 3, 44, 55, 66, 77]


def sample_text(backend: RecordingBackend, prompt: str, key: int, count: int) -> str:
    """Run the plain loop with sampling: every token from the whole row."""
    tokens = Alphabet().encode(prompt) or [Alphabet.bos_token_id]
    begin = len(tokens)
    for number in range(count):
        padded = np.array([tokens + [0] * (MAX_LENGTH - len(tokens))], np.int32)
        logits = backend.direct(padded)[0, len(tokens) - 1][None]
        by = SamplingKeys(jnp.array([key_data(key)], jnp.uint32), jnp.array([number], jnp.int32))
        tokens.append(int(_sample(logits, sampling_arrays(WARM), by)[0][0]))
    return Alphabet().decode(tokens[begin:])


_sample = jax.jit(sample)


@pytest.mark.parametrize("limits", [{}, {"rows": 1}, {"rows": 3}])
def test_sampled_texts_equal_the_plain_loop_for_any_number_of_rows(
    backend: RecordingBackend, limits: dict[str, Any]
) -> None:
    texts = generate_texts(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS, **limits)

    assert texts == [sample_text(backend, prompt, key, 9) for prompt, key in zip(PROMPTS, KEYS, strict=True)]


def test_sampled_texts_do_not_depend_on_the_batch(backend: RecordingBackend) -> None:
    texts = generate_texts(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS)

    backwards = generate_texts(evaluator_of(backend), PROMPTS[::-1], sampling=WARM, keys=KEYS[::-1])
    alone = generate_texts(evaluator_of(backend), PROMPTS[4:5], sampling=WARM, keys=KEYS[4:5])

    assert backwards == texts[::-1]
    assert alone == texts[4:5]


def test_repeats_of_a_prompt_use_their_own_keys(backend: RecordingBackend) -> None:
    texts = generate_texts(evaluator_of(backend), ["hello"] * 4, sampling=WARM, keys=[1, 2, 3, 1])

    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_sampling_resumes_after_an_out_of_memory_step(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate_texts(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS)
    decode, calls = JaxDecoding.decode, 0

    def failing(self: JaxDecoding, active: Any) -> NextTokens:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OutOfDeviceMemory("out of memory")
        return decode(self, active)

    monkeypatch.setattr(JaxDecoding, "decode", failing)

    assert (
        generate_texts(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS, notices=["out of memory"]) == expected
    )


def test_model_with_logits_alone_samples_the_same_texts(backend: RecordingBackend) -> None:
    plain = Model(logits=backend._model.functions.logits or recurrent_logits, params=backend._model.params)
    evaluator = Evaluator(TokenizerAdapter(Alphabet()), JaxBackend(resolve(plain), MAX_LENGTH), MAX_LENGTH)

    texts = generate_texts(evaluator, PROMPTS, sampling=WARM, keys=KEYS, notices=["the model has no state"])

    assert texts == generate_texts(evaluator_of(backend), PROMPTS, sampling=WARM, keys=KEYS)


def test_first_tokens_follow_the_distribution_of_the_model(backend: RecordingBackend) -> None:
    count, limits = 1500, SamplingParams(temperature=1.5, top_p=0.8)
    tokens = np.array([Alphabet().encode("hello") + [0] * (MAX_LENGTH - 5)], np.int32)
    scaled = np.asarray(backend.direct(tokens)[0, 4], np.float64) / 1.5
    likelihood = np.exp(scaled - scaled.max())
    likelihood /= likelihood.sum()
    order = np.argsort(-likelihood)
    before = np.cumsum(likelihood[order]) - likelihood[order]
    likelihood[order[before >= 0.8]] = 0
    likelihood /= likelihood.sum()

    texts = generate_texts(
        evaluator_of(backend), ["hello"] * count, max_gen_toks=1, sampling=limits, keys=range(count), rows=50
    )

    found = np.array([texts.count(letter) for letter in LETTERS])
    assert found.sum() == count
    assert (likelihood > 0).sum() >= 3
    # Five standard deviations: without top_p more than a fifth of the tokens would be others.
    deviations = np.sqrt(count * likelihood * (1 - likelihood))
    assert (np.abs(found - count * likelihood) <= 5 * deviations).all()
