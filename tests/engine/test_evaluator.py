"""The evaluator with planning, padding and a real model, compared with direct calls of the model, one row at a time."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from birdie_zmq import Model
from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.events import Answered, CompilationFinished, Event, ItemFailed, Notice, StepStarting
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import BirdieError, NonFiniteLogits, RequestError, TokenizerError, TokenOutOfVocabulary
from birdie_zmq.types import (
    ChatWork,
    GenerateWork,
    GenerationParams,
    LogLikelihoodWork,
    RollingWork,
    StepLimits,
)

MAX_LENGTH = 48
VOCABULARY = 258
BOS, EOS = 256, 257
TOLERANCE_NATS = 1e-4
AUTOMATIC = StepLimits()


@dataclass
class Letters:
    """One token per character of Latin-1, so that any bytes are a text; "~" is a special token, written <|end|>."""

    bos_token_id: int = BOS
    eos_token_id: int | None = EOS

    def encode(self, text: str) -> list[int]:
        return list(text.encode("latin-1"))

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        text = bytes(i for i in ids if i < 256).decode("latin-1")
        return text.replace("~", "" if skip_special_tokens else "<|end|>")


@dataclass
class Recording:
    """What an evaluator yields; it rejects a second answer to an item, and a compilation without an end."""

    answers: dict[int, Any] = field(default_factory=dict)
    steps: list[list[int]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    calls: int = 0

    def record(self, events: Iterable[Event]) -> Recording:
        """Record all events."""
        for event in events:
            match event:
                case StepStarting(new_shapes=shapes):
                    self.calls += 1
                    self.phases += [f"compiling {', '.join(f'{rows} x {length}' for rows, length in shapes)}"] * bool(
                        shapes
                    )
                case CompilationFinished():
                    self.phases.append("running")
                case Notice(level=level, text=text):
                    self.notices.append(f"{level}: {text}")
                case Answered(indices=indices, answers=answers):
                    assert self.answers.keys().isdisjoint(indices)
                    self.steps.append(sorted(indices))
                    self.answers.update(zip(indices, answers, strict=True))
        return self

    @property
    def in_order(self) -> list[Any]:
        """Return the answers in the order of the items; each item must have one."""
        return [self.answers[index] for index in range(len(self.answers))]


def evaluator_of(
    backend: Backend, tokenizer: object | None = None, max_length: int = MAX_LENGTH, add_bos: bool | None = None
) -> Evaluator:
    return Evaluator(TokenizerAdapter(tokenizer or Letters(), add_bos), backend, max_length)


def evaluator_for(returned: object, tokenizer: object | None = None, max_length: int = MAX_LENGTH) -> Evaluator:
    return evaluator_of(JaxBackend(resolve(returned), max_length), tokenizer, max_length)


def loglikelihood(evaluator: Evaluator, pairs: list[tuple[str, str]], limits: StepLimits = AUTOMATIC) -> Recording:
    return Recording().record(evaluator.answer(LogLikelihoodWork(pairs=pairs), limits))


def rolling(evaluator: Evaluator, texts: list[str], limits: StepLimits = AUTOMATIC) -> Recording:
    return Recording().record(evaluator.answer(RollingWork(texts=texts), limits))


def generate(
    evaluator: Evaluator, prompts: list[str], *until: str, max_gen_toks: int = 16, limits: StepLimits = AUTOMATIC
) -> Recording:
    settings = GenerationParams(until=until, max_gen_toks=max_gen_toks)
    return Recording().record(evaluator.answer(GenerateWork(prompts=prompts, settings=settings), limits))


# --- The decoder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DirectModel:
    """The decoder itself, called directly, one row at a time."""

    logits: Callable[..., Any]
    params: Any

    def logprobs(self, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return log-probabilities float64[n, v] after each token, from a row without padding."""
        logits = np.asarray(self.logits(self.params, jnp.array([tokens], jnp.int32))[0], np.float64)
        highest = logits.max(axis=-1, keepdims=True)
        return np.asarray(logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True)))

    def loglikelihood(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Return the score of a continuation, and whether each of its tokens is the most likely one."""
        tokens = [*context, *continuation]
        logprobs = self.logprobs(tokens[:-1])[-len(continuation) :]
        chosen = logprobs[np.arange(len(continuation)), list(continuation)]
        return float(chosen.sum()), logprobs.argmax(axis=-1).tolist() == list(continuation)

    def continuation(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return the tokens of a plain greedy loop; its rows are padded to one length, so that it compiles once."""
        tokens = list(prompt)
        for _ in range(count):
            padded = jnp.array([tokens + [0] * (MAX_LENGTH - len(tokens))], jnp.int32)
            tokens.append(int(self.logits(self.params, padded)[0, len(tokens) - 1].argmax()))
        return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def letters(model_files: Path) -> Any:
    """Return the model file ``letters.py``."""
    spec = importlib.util.spec_from_file_location("letters", model_files / "letters.py")
    assert spec is not None
    assert spec.loader is not None
    user_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(user_module)
    return user_module


@pytest.fixture(scope="module")
def pair(letters: Any) -> tuple[Callable[..., Any], Any]:
    """Return the small decoder as a function and its params."""
    function, params = letters.load_model("pair")
    return function, params


@pytest.fixture(scope="module")
def backend(pair: object) -> JaxBackend:
    """Return the small decoder, compiled once for all tests."""
    return JaxBackend(resolve(pair), MAX_LENGTH)


@pytest.fixture
def evaluator(backend: JaxBackend) -> Evaluator:
    """Return an evaluator of the small decoder, with all counters at zero."""
    return evaluator_of(backend)


@pytest.fixture(scope="module")
def direct(pair: tuple[Callable[..., Any], Any]) -> DirectModel:
    """Return the small decoder without the engine."""
    function, params = pair
    return DirectModel(jax.jit(function), params)


QUESTION = "Which bird builds no nest?"
PAIRS = [
    (QUESTION, " The cuckoo"),
    (QUESTION, " The wren"),
    (QUESTION, " A"),
    (QUESTION, " B"),
    (QUESTION[:9], QUESTION[9:20]),
    ("", "a robin"),
    ("a", "b"),
    ("", "c"),
    (QUESTION * 3, " The cuckoo"),
    ("a", "b" * MAX_LENGTH),
]


def expected_scores(direct: DirectModel) -> list[tuple[float, bool]]:
    encoded = [([*context.encode()] or [BOS], [*continuation.encode()]) for context, continuation in PAIRS]
    return [
        direct.loglikelihood(context[-(MAX_LENGTH + 1 - len(continuation)) :], continuation)
        for context, continuation in encoded
    ]


@pytest.mark.parametrize("limits", [AUTOMATIC, StepLimits(rows=1), StepLimits(rows=5)])
def test_scores_equal_those_of_each_request_alone(
    evaluator: Evaluator, direct: DirectModel, limits: StepLimits
) -> None:
    scores = loglikelihood(evaluator, PAIRS, limits).in_order

    assert [score for score, _ in scores] == pytest.approx(
        [score for score, _ in expected_scores(direct)], abs=TOLERANCE_NATS
    )


def test_a_continuation_is_greedy_if_all_its_tokens_are(evaluator: Evaluator, direct: DirectModel) -> None:
    likely = bytes(direct.continuation(QUESTION.encode(), 6)).decode("latin-1")
    unlikely = [likely[:i] + "!" + likely[i + 1 :] for i in (0, 5)]
    assert "!" not in likely

    recording = loglikelihood(evaluator, [(QUESTION, text) for text in [likely, likely[:1], *unlikely]])

    assert [greedy for _, greedy in recording.in_order] == [True, True, False, False]


def test_an_empty_continuation_has_probability_one_and_needs_no_step(evaluator: Evaluator) -> None:
    recording = loglikelihood(evaluator, [("a", ""), ("", "")])

    assert recording.in_order == [(0.0, True), (0.0, True)]
    assert (evaluator.report.requests, evaluator.report.steps) == (2, 0)


def test_an_empty_continuation_does_not_shift_the_others(evaluator: Evaluator) -> None:
    with_empty = loglikelihood(evaluator, [("a", "b"), ("a", ""), ("a", "c")]).in_order
    without = loglikelihood(evaluator, [("a", "b"), ("a", "c")]).in_order

    assert with_empty == [without[0], (0.0, True), without[1]]


@pytest.mark.parametrize("add_bos", [False, True])
def test_a_rolling_score_is_the_sum_over_its_windows(backend: JaxBackend, direct: DirectModel, add_bos: bool) -> None:
    texts = [QUESTION * 4, "a", QUESTION, QUESTION * 2 + "or any bird"]

    scores = rolling(evaluator_of(backend, add_bos=add_bos), texts).in_order

    expected = []
    for text in texts:
        tokens = [BOS] * add_bos + [*text.encode()]
        total, _ = direct.loglikelihood([BOS], tokens[:MAX_LENGTH])
        for begin in range(MAX_LENGTH, len(tokens), MAX_LENGTH):
            end = min(begin + MAX_LENGTH, len(tokens))
            total += direct.loglikelihood(tokens[end - MAX_LENGTH - 1 : begin], tokens[begin:end])[0]
        expected.append(total)
    assert scores == pytest.approx(expected, abs=TOLERANCE_NATS)


def test_an_empty_text_scores_zero(evaluator: Evaluator) -> None:
    scores = rolling(evaluator, ["", "a", ""]).in_order

    assert scores[0] == scores[2] == 0.0
    assert scores[1] < 0.0


PROMPTS = [QUESTION, "Which bird", "", "A nest"]


@pytest.mark.parametrize("limits", [AUTOMATIC, StepLimits(rows=1)])
def test_generation_equals_a_plain_greedy_loop(evaluator: Evaluator, direct: DirectModel, limits: StepLimits) -> None:
    texts = generate(evaluator, PROMPTS, max_gen_toks=12, limits=limits).in_order

    assert texts == [
        bytes(direct.continuation([*prompt.encode()] or [BOS], 12)).decode("latin-1") for prompt in PROMPTS
    ]


def test_a_prompt_that_is_too_long_is_truncated_on_the_left(evaluator: Evaluator, direct: DirectModel) -> None:
    (text,) = generate(evaluator, [QUESTION * 3], max_gen_toks=8).in_order

    kept = (QUESTION * 3)[-(MAX_LENGTH - 8) :]
    assert text == bytes(direct.continuation(kept.encode(), 8)).decode("latin-1")


def test_each_row_ends_at_the_eos_token_of_the_tokenizer(backend: JaxBackend, direct: DirectModel) -> None:
    tokens = direct.continuation(QUESTION.encode(), 12)
    eos = tokens[4]

    (text,) = generate(evaluator_of(backend, Letters(eos_token_id=eos)), [QUESTION], max_gen_toks=12).in_order

    assert text == bytes(tokens[: tokens.index(eos)]).decode("latin-1")


# --- The end of generation, with a model that recites -----------------------------------------------------------------


@pytest.fixture(scope="module")
def reciting_evaluator(letters: Any) -> Callable[[str], Evaluator]:
    """Make an evaluator whose model generates a text and then EOS; for a prompt of n letters without its first n - 1."""
    return lambda text: evaluator_for(Model(logits=letters.recite(text), params=0.0))


@pytest.mark.parametrize(
    ("until", "text"),
    [
        (("lo wo",), "hel"),
        (("world", "lo"), "hel"),
        (("lo", "world"), "hel"),
        (("h",), ""),
        (("o world!", "W"), "hello world"),
        (("",), "hello world"),
        ((), "hello world"),
    ],
)
def test_text_ends_before_the_first_stop_string_even_across_tokens(
    reciting_evaluator: Callable[[str], Evaluator], until: tuple[str, ...], text: str
) -> None:
    assert generate(reciting_evaluator("hello world"), [""], *until).in_order == [text]


@pytest.mark.parametrize(
    ("recited_text", "until", "text"),
    [("one~two", "<|end|>", "one"), ("one\n~two", "<|end|>", "one\n"), ("one\n~two", "\n<|end|>", "one")],
)
def test_a_stop_string_may_contain_special_tokens(
    reciting_evaluator: Callable[[str], Evaluator], recited_text: str, until: str, text: str
) -> None:
    assert generate(reciting_evaluator(recited_text), [""], until).in_order == [text]


def test_special_tokens_are_not_part_of_the_text(reciting_evaluator: Callable[[str], Evaluator]) -> None:
    assert generate(reciting_evaluator("one~two"), [""]).in_order == ["onetwo"]


@pytest.mark.parametrize("count", [1, 4])
def test_text_ends_after_max_gen_toks(reciting_evaluator: Callable[[str], Evaluator], count: int) -> None:
    assert generate(reciting_evaluator("hello world"), [""], max_gen_toks=count).in_order == ["hello world"[:count]]


def test_texts_that_end_in_the_same_step_are_answered_together(
    reciting_evaluator: Callable[[str], Evaluator],
) -> None:
    assert generate(reciting_evaluator("hello world"), ["a", "b", "bcd"], max_gen_toks=4).steps == [[0, 1, 2]]


def test_each_row_stops_independently_and_is_not_computed_afterwards(
    reciting_evaluator: Callable[[str], Evaluator],
) -> None:
    evaluator = reciting_evaluator("hello world")

    recording = generate(evaluator, ["a", "bcd", "efghijkl"])

    assert recording.in_order == ["hello world", "llo world", "orld"]
    assert recording.steps == [[2], [1], [0]]
    # Each token, EOS included, computes its whole row once: from the prompt up to the whole text.
    assert evaluator.report.steps == 12
    assert evaluator.report.tokens_requested == sum(map(sum, (range(1, 13), range(3, 13), range(8, 13))))


def test_equal_prompts_have_equal_answers(reciting_evaluator: Callable[[str], Evaluator]) -> None:
    evaluator = reciting_evaluator("hello world")

    assert generate(evaluator, ["a", "b", "a"]).in_order == ["hello world"] * 3


# --- Counters and notices ---------------------------------------------------------------------------------------------


def uniform(tokens: Any) -> Any:
    return jnp.zeros((*tokens.shape, VOCABULARY))


def test_every_shape_is_reported_and_within_the_shape_bound() -> None:
    sent: set[tuple[int, int]] = set()

    def model(tokens: Any) -> Any:
        sent.add(tokens.shape)
        return uniform(tokens)

    evaluator = evaluator_for(model)
    for limits in (AUTOMATIC, StepLimits(rows=3)):
        loglikelihood(evaluator, PAIRS, limits)
        rolling(evaluator, [QUESTION * 5, "a"], limits)
        generate(evaluator, PROMPTS, max_gen_toks=20, limits=limits)

    report = evaluator.report
    assert sent == set(report.shapes)
    assert len(report.shapes) <= report.shape_bound
    # Two numbers of rows for each of the lengths 16, 24, 32 and 48, and the probe when the model was loaded.
    assert report.shape_bound == 2 * 4 + 1


TEXTS = ["a" * 5, "b" * 30, "c" * 20]
"""With two rows per step: the second and third in a step of 32, the first in one of 16."""


def test_the_statistics_count_requests_steps_and_tokens() -> None:
    evaluator = evaluator_for((lambda params, tokens: uniform(tokens), 0.0))

    rolling(evaluator, TEXTS, StepLimits(rows=2))

    report = evaluator.report
    assert (report.requests, report.steps) == (3, 2)
    assert report.shapes == [(2, 16), (2, 32)]
    assert report.tokens_requested == 5 + 30 + 20
    assert report.tokens_computed == 2 * 16 + 2 * 32
    assert report.tokens_padding == report.tokens_computed - report.tokens_requested


def test_requests_that_share_a_row_are_computed_once() -> None:
    evaluator = evaluator_for((lambda params, tokens: uniform(tokens), 0.0))

    loglikelihood(evaluator, [("context", letter) for letter in "abcd"] + [("cont", "ext")], StepLimits(rows=1))

    report = evaluator.report
    assert report.steps == 1
    assert report.tokens_requested == 4 * 7 + 6
    assert report.tokens_distinct == 7
    assert report.tokens_computed - report.tokens_padding == 7


def test_compile_seconds_and_step_seconds_are_separate() -> None:
    evaluator = evaluator_for((lambda params, tokens: uniform(tokens), 0.0))
    started = time.monotonic()
    rolling(evaluator, TEXTS)
    elapsed = time.monotonic() - started

    report = evaluator.report
    assert report.compile_seconds > 0
    assert report.step_seconds > 0
    assert report.step_seconds + report.compile_seconds <= elapsed


def test_live_counts_are_those_of_the_report() -> None:
    started = time.monotonic()
    evaluator = Evaluator(
        TokenizerAdapter(Letters()),
        JaxBackend(resolve((lambda params, tokens: uniform(tokens), 0.0)), MAX_LENGTH),
        MAX_LENGTH,
    )
    rolling(evaluator, TEXTS)
    counts, report, elapsed = evaluator.computed, evaluator.report, time.monotonic() - started
    assert counts.compile_seconds == report.compile_seconds > 0
    assert counts.seconds == report.step_seconds > 0
    assert report.step_seconds + report.compile_seconds + report.idle_seconds <= elapsed
    assert (counts.requested, counts.distinct) == (report.tokens_requested, report.tokens_distinct)


def test_compilation_is_not_idle_time() -> None:
    now = [0.0]

    class SlowCompilation(JaxBackend):
        compile_seconds = property(lambda self: now[0])

    def slow_to_trace(params: Any, tokens: Any) -> Any:
        now[0] += 7.0
        return uniform(tokens)

    evaluator = Evaluator(
        TokenizerAdapter(Letters()),
        SlowCompilation(resolve((slow_to_trace, 0.0)), MAX_LENGTH),
        MAX_LENGTH,
        clock=lambda: now[0],
    )
    rolling(evaluator, TEXTS[:1])
    before = now[0]
    rolling(evaluator, ["a" * (MAX_LENGTH - 2)])

    assert now[0] > before, "the second text has a shape of its own"
    assert evaluator.report.idle_seconds == 0


def test_smaller_steps_after_out_of_memory_are_reported() -> None:
    def out_of_memory(params: Any, tokens: Any) -> Any:
        logits = uniform(tokens)
        if tokens.shape[0] > 32:
            first = tokens[0, 0]
            # The operand of a sort must be in memory as a whole, and no device has as many bytes.
            huge = jax.lax.sort(jax.lax.broadcasted_iota(jnp.uint8, (1, 1 << 25, 1 << 25), 2) + first.astype(jnp.uint8))
            logits = logits + huge[0, first, first]
        return logits

    recording = rolling(evaluator_for((out_of_memory, 0.0)), ["a", "b"])

    (notice,) = recording.notices
    assert notice.startswith("warning: the device is out of memory for ")
    assert notice.endswith("; retrying with steps of at most 512 tokens")
    assert recording.in_order == pytest.approx([-np.log(VOCABULARY)] * 2, abs=1e-5)


def test_answers_arrive_step_by_step_longest_first(evaluator: Evaluator) -> None:
    assert rolling(evaluator, TEXTS, StepLimits(rows=2)).steps == [[1, 2], [0]]


def test_the_next_step_is_submitted_before_the_answers_of_the_last_one(backend: JaxBackend) -> None:
    events = [*evaluator_of(backend).answer(RollingWork(texts=TEXTS), StepLimits(rows=2))]

    kinds = [type(event) for event in events if not isinstance(event, CompilationFinished)]
    assert kinds == [StepStarting, StepStarting, Answered, Answered]


def test_a_closed_stream_computes_no_further_step(backend: JaxBackend) -> None:
    evaluator = evaluator_of(backend)
    events = evaluator.answer(RollingWork(texts=TEXTS), StepLimits(rows=1))
    assert isinstance(next(events), StepStarting)
    assert evaluator.report.steps == 0, "the event comes before the call"
    next(event for event in events if isinstance(event, StepStarting))

    events.close()

    assert evaluator.report.steps == 1
    assert evaluator.report.step_seconds > 0
    assert len(rolling(evaluator, TEXTS).in_order) == len(TEXTS), "the evaluator answers other work"


def test_only_a_new_shape_reports_a_compilation() -> None:
    evaluator = evaluator_for(uniform)

    first = rolling(evaluator, TEXTS, StepLimits(rows=2))
    second = rolling(evaluator, TEXTS, StepLimits(rows=2))

    assert first.phases == ["compiling 2 x 32", "running", "compiling 2 x 16", "running"]
    assert second.phases == []


def test_truncated_requests_are_reported_once_with_numbers(evaluator: Evaluator) -> None:
    (notice,) = loglikelihood(evaluator, [("a" * 60, "b"), ("a", "b"), ("a" * 70, "bc")]).notices

    assert notice == (
        "warning: 2 of 3 requests are longer than the model's max_length of 48 (the longest has 72 tokens); only "
        "the last 49 tokens of each are used"
    )


def test_truncated_prompts_are_reported_once_with_numbers(evaluator: Evaluator) -> None:
    cut, *_ = generate(evaluator, ["a" * 60, "a", "a" * 47], max_gen_toks=2).notices

    assert cut == (
        "warning: 2 of 3 prompts do not leave max_gen_toks=2 tokens of the model's max_length of 48 (the longest has "
        "60 tokens); only the last 46 tokens of each are used"
    )


def test_requests_that_fit_exactly_are_not_truncated(evaluator: Evaluator) -> None:
    scored = loglikelihood(evaluator, [("a" * 47, "bc"), ("", "b" * 48)])
    generated = generate(evaluator, ["a" * 46], max_gen_toks=2)

    assert scored.notices == []
    assert not any("are used" in notice for notice in generated.notices)


# --- Requests that cannot be answered ---------------------------------------------------------------------------------


def failure(function: Callable[..., Recording], *arguments: Any, **keywords: Any) -> tuple[int, BirdieError]:
    """Return the failed item and its error."""
    with pytest.raises(ItemFailed) as caught:
        function(*arguments, **keywords)
    return caught.value.index, caught.value.error


@pytest.fixture(scope="module")
def small_vocabulary() -> Evaluator:
    """Return a model with logits for the first 100 tokens only, which excludes most lower-case letters."""
    return evaluator_for(lambda tokens: jnp.zeros((*tokens.shape, 100)), Letters(bos_token_id=0, eos_token_id=None))


@pytest.mark.parametrize(
    ("function", "items"),
    [
        (loglikelihood, [("A", "B"), ("A", "z")]),
        (loglikelihood, [("A", "B"), ("z", "A")]),
        (rolling, ["A", "z"]),
        (generate, ["A", "z"]),
    ],
)
def test_a_token_out_of_the_vocabulary_fails_its_item(
    small_vocabulary: Evaluator, function: Callable[..., Recording], items: list[Any]
) -> None:
    index, error = failure(function, small_vocabulary, items)

    assert index == 1
    assert isinstance(error, TokenOutOfVocabulary)
    assert "returned the token 122, but the model has logits for 100 tokens" in error.message


@pytest.mark.parametrize(
    ("function", "items"),
    [
        (loglikelihood, [("a", "b"), ("a", "b"), ("a\u0100", "b"), ("c", "d")]),
        (loglikelihood, [("a", "b"), ("", ""), ("", "\u0100")]),
        (rolling, ["a", "b", "\u0100"]),
        (generate, ["a", "b", "\u0100"]),
    ],
)
def test_a_text_that_the_tokenizer_cannot_encode_fails_its_item_with_the_cause(
    evaluator: Evaluator, function: Callable[..., Recording], items: list[Any]
) -> None:
    index, error = failure(function, evaluator, items)

    assert index == 2
    assert isinstance(error, TokenizerError)
    assert "failed to encode a text: UnicodeEncodeError" in error.message
    assert "\u0100" not in error.message
    assert isinstance(error.__cause__, UnicodeEncodeError)


def test_encoding_beforehand_names_the_item_too(evaluator: Evaluator) -> None:
    for work in (RollingWork(texts=["a", "\u0100"]), LogLikelihoodWork(pairs=[("a", "b"), ("a", "\u0100")])):
        with pytest.raises(ItemFailed) as caught:
            evaluator.encode(work)
        assert caught.value.index == 1
        assert isinstance(caught.value.error, TokenizerError)


def test_a_tokenizer_that_fails_on_all_items_together_only_is_reported() -> None:
    class Together(Letters):
        def encode(self, text: Any) -> Any:
            if isinstance(text, str):
                return super().encode(text)
            if "x" in text and len(text) > 1:
                raise RuntimeError("too many")
            return [super(Together, self).encode(one) for one in text]

    with pytest.raises(TokenizerError, match="RuntimeError"):
        rolling(evaluator_for(uniform, Together()), ["a", "x"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("function", "items"),
    [
        (loglikelihood, [("a", "b"), ("a", "bcd"), ("a!", "b")]),
        (rolling, ["ab", "abc", "a!b"]),
        (generate, ["a", "bc", "a!"]),
    ],
)
def test_non_finite_logits_fail_their_item(function: Callable[..., Recording], items: list[Any], value: float) -> None:
    def stumbles(tokens: Any) -> Any:
        return uniform(tokens).at[..., 3].set(jnp.where(tokens == ord("!"), value, 0.0))

    index, error = failure(function, evaluator_for(stumbles), items)

    assert index == 2
    assert isinstance(error, NonFiniteLogits)
    assert "NaN or infinity" in error.message


def test_a_token_that_is_not_scored_may_be_excluded() -> None:
    def excludes(tokens: Any) -> Any:
        return uniform(tokens).at[..., 3].set(-jnp.inf)

    ((score, _),) = loglikelihood(evaluator_for(excludes), [("a", "b")]).in_order

    assert score == pytest.approx(-np.log(VOCABULARY - 1), abs=1e-5)


def test_a_continuation_longer_than_max_length_is_rejected_with_numbers(evaluator: Evaluator) -> None:
    index, error = failure(loglikelihood, evaluator, [("a", "b"), ("a", "b" * 49)])

    assert index == 1
    assert isinstance(error, RequestError)
    assert "a continuation of 49 tokens is longer than the model's max_length of 48" in error.message


@pytest.mark.parametrize("count", [MAX_LENGTH, MAX_LENGTH + 1])
def test_max_gen_toks_without_room_for_a_prompt_is_rejected(evaluator: Evaluator, count: int) -> None:
    index, error = failure(generate, evaluator, ["a"], max_gen_toks=count)

    assert index == 0
    assert isinstance(error, RequestError)
    assert (
        f"max_gen_toks is {count}, which leaves no room for a prompt in the model's max_length of 48" in error.message
    )


def test_answers_before_a_failure_are_kept() -> None:
    def stumbles(tokens: Any) -> Any:
        return jnp.where((tokens == ord("!"))[..., None], jnp.nan, uniform(tokens))

    recording = Recording()
    with pytest.raises(ItemFailed):
        recording.record(evaluator_for(stumbles).answer(RollingWork(texts=["a!b", "c" * 30]), StepLimits(rows=1)))

    assert list(recording.answers) == [1]


# --- Chat -------------------------------------------------------------------------------------------------------------


class Chatty(Letters):
    """A tokenizer that renders conversations itself."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **keywords: Any) -> str:
        return conversation[-1]["content"] + ("|" if keywords["add_generation_prompt"] else "")


def test_each_conversation_is_rendered_by_the_tokenizer(backend: JaxBackend) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("Hi", "Ho")]
    work = ChatWork(conversations=conversations, add_generation_prompt=True)

    rendered = Recording().record(evaluator_of(backend, Chatty()).answer(work, AUTOMATIC))

    assert rendered.in_order == ["Hi|", "Ho|"]


def test_conversations_without_a_chat_template_are_rejected(evaluator: Evaluator) -> None:
    with pytest.raises(TokenizerError, match="the Letters has neither"):
        list(evaluator.answer(ChatWork(conversations=[[]], add_generation_prompt=True), AUTOMATIC))
