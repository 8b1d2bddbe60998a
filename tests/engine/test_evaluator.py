"""Whole work through planning, padding and a real model, against the same model asked directly, one row at a time."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
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
from birdie_zmq.engine.evaluator import Evaluator, ItemFailed
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import BirdieError, NonFiniteLogits, RequestError, TokenizerError, TokenOutOfVocabulary
from birdie_zmq.types import (
    Answers,
    ChatWork,
    GenerateWork,
    GenerationParams,
    Level,
    LogLikelihoodWork,
    RollingScores,
    RollingWork,
    Scores,
    StepLimits,
    Texts,
)

MAX_LENGTH = 48
VOCABULARY = 258
BOS, EOS = 256, 257
TOLERANCE_NATS = 1e-4
AUTOMATIC = StepLimits()


@dataclass
class Letters:
    """One token a letter of Latin-1, so that any bytes are a text; "~" is a special token that is written <|end|>."""

    bos_token_id: int = BOS
    eos_token_id: int | None = EOS

    def encode(self, text: str) -> list[int]:
        return list(text.encode("latin-1"))

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        text = bytes(i for i in ids if i < 256).decode("latin-1")
        return text.replace("~", "" if skip_special_tokens else "<|end|>")


@dataclass
class Heard:
    """A listener that remembers, and takes no second answer to an item."""

    answers: dict[int, Any] = field(default_factory=dict)
    steps: list[list[int]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    calls: int = 0

    def answered(self, indices: Sequence[int], answers: Answers) -> None:
        assert len(indices) == len(answers)
        assert self.answers.keys().isdisjoint(indices)
        self.steps.append(sorted(indices))
        match answers:
            case Scores(loglikelihoods=loglikelihoods, greedy=greedy):
                values: list[Any] = list(zip(loglikelihoods.tolist(), greedy.tolist(), strict=True))
            case RollingScores(loglikelihoods=loglikelihoods):
                values = loglikelihoods.tolist()
            case Texts(texts=texts):
                values = texts
            case other:
                raise AssertionError(f"an evaluator does not give a {type(other).__name__}")
        self.answers.update(zip(indices, values, strict=True))

    def notice(self, level: Level, text: str) -> None:
        self.notices.append(f"{level}: {text}")

    def compiling(self, detail: str) -> None:
        self.phases.append(f"compiling {detail}")

    def running(self) -> None:
        self.phases.append("running")

    def step(self) -> None:
        self.calls += 1

    @property
    def in_order(self) -> list[Any]:
        """The answers, of which there must be one for each item."""
        return [self.answers[index] for index in range(len(self.answers))]


def evaluator_of(
    backend: Backend, tokenizer: object | None = None, max_length: int = MAX_LENGTH, add_bos: bool | None = None
) -> Evaluator:
    return Evaluator(TokenizerAdapter(tokenizer or Letters(), add_bos), backend, max_length)


def evaluator_for(returned: object, tokenizer: object | None = None, max_length: int = MAX_LENGTH) -> Evaluator:
    return evaluator_of(JaxBackend(resolve(returned), max_length), tokenizer, max_length)


def loglikelihood(evaluator: Evaluator, pairs: list[tuple[str, str]], limits: StepLimits = AUTOMATIC) -> Heard:
    heard = Heard()
    evaluator.loglikelihood(LogLikelihoodWork(pairs=pairs), limits, heard)
    return heard


def rolling(evaluator: Evaluator, texts: list[str], limits: StepLimits = AUTOMATIC) -> Heard:
    heard = Heard()
    evaluator.rolling(RollingWork(texts=texts), limits, heard)
    return heard


def generate(
    evaluator: Evaluator, prompts: list[str], *until: str, max_gen_toks: int = 16, limits: StepLimits = AUTOMATIC
) -> Heard:
    heard = Heard()
    settings = GenerationParams(until=until, max_gen_toks=max_gen_toks)
    evaluator.generate(GenerateWork(prompts=prompts, settings=settings), limits, heard)
    return heard


# --- The decoder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Direct:
    """The decoder itself, one row at a time, with nothing of the engine between."""

    logits: Callable[..., Any]
    params: Any

    def logprobs(self, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        """Log-probabilities float64[n, v] of what follows each token, from a row without padding."""
        logits = np.asarray(self.logits(self.params, jnp.array([tokens], jnp.int32))[0], np.float64)
        highest = logits.max(axis=-1, keepdims=True)
        return np.asarray(logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True)))

    def loglikelihood(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """The score of a continuation and whether each of its tokens is the most likely one."""
        tokens = [*context, *continuation]
        logprobs = self.logprobs(tokens[:-1])[-len(continuation) :]
        chosen = logprobs[np.arange(len(continuation)), list(continuation)]
        return float(chosen.sum()), logprobs.argmax(axis=-1).tolist() == list(continuation)

    def continuation(self, prompt: Sequence[int], count: int) -> list[int]:
        """The plain greedy loop; its rows are padded to one length, so that it compiles once."""
        tokens = list(prompt)
        for _ in range(count):
            padded = jnp.array([tokens + [0] * (MAX_LENGTH - len(tokens))], jnp.int32)
            tokens.append(int(self.logits(self.params, padded)[0, len(tokens) - 1].argmax()))
        return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def letters(pages: Path) -> Any:
    """The page ``letters.py``."""
    spec = importlib.util.spec_from_file_location("letters", pages / "letters.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    return page


@pytest.fixture(scope="module")
def pair(letters: Any) -> tuple[Callable[..., Any], Any]:
    """The small decoder as a function and its params."""
    function, params = letters.load_model("pair")
    return function, params


@pytest.fixture(scope="module")
def backend(pair: object) -> JaxBackend:
    """The small decoder, compiled once for all tests."""
    return JaxBackend(resolve(pair), MAX_LENGTH)


@pytest.fixture
def evaluator(backend: JaxBackend) -> Evaluator:
    """The small decoder, with nothing counted yet."""
    return evaluator_of(backend)


@pytest.fixture(scope="module")
def direct(pair: tuple[Callable[..., Any], Any]) -> Direct:
    """The small decoder without the engine."""
    function, params = pair
    return Direct(jax.jit(function), params)


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


def expected_scores(direct: Direct) -> list[tuple[float, bool]]:
    encoded = [([*context.encode()] or [BOS], [*continuation.encode()]) for context, continuation in PAIRS]
    return [
        direct.loglikelihood(context[-(MAX_LENGTH + 1 - len(continuation)) :], continuation)
        for context, continuation in encoded
    ]


@pytest.mark.parametrize("limits", [AUTOMATIC, StepLimits(rows=1), StepLimits(rows=5)])
def test_scores_are_those_of_each_request_alone(evaluator: Evaluator, direct: Direct, limits: StepLimits) -> None:
    scores = loglikelihood(evaluator, PAIRS, limits).in_order

    assert [score for score, _ in scores] == pytest.approx(
        [score for score, _ in expected_scores(direct)], abs=TOLERANCE_NATS
    )


def test_a_continuation_is_greedy_if_every_token_of_it_is(evaluator: Evaluator, direct: Direct) -> None:
    likely = bytes(direct.continuation(QUESTION.encode(), 6)).decode("latin-1")
    unlikely = [likely[:i] + "!" + likely[i + 1 :] for i in (0, 5)]
    assert "!" not in likely

    heard = loglikelihood(evaluator, [(QUESTION, text) for text in [likely, likely[:1], *unlikely]])

    assert [greedy for _, greedy in heard.in_order] == [True, True, False, False]


def test_an_empty_continuation_is_certain_and_needs_no_step(evaluator: Evaluator) -> None:
    heard = loglikelihood(evaluator, [("a", ""), ("", "")])

    assert heard.in_order == [(0.0, True), (0.0, True)]
    assert (evaluator.report.requests, evaluator.report.steps) == (2, 0)


def test_an_empty_continuation_does_not_shift_the_others(evaluator: Evaluator) -> None:
    with_empty = loglikelihood(evaluator, [("a", "b"), ("a", ""), ("a", "c")]).in_order
    without = loglikelihood(evaluator, [("a", "b"), ("a", "c")]).in_order

    assert with_empty == [without[0], (0.0, True), without[1]]


@pytest.mark.parametrize("add_bos", [False, True])
def test_a_rolling_score_is_the_sum_of_its_windows(backend: JaxBackend, direct: Direct, add_bos: bool) -> None:
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
def test_generation_is_the_plain_greedy_loop(evaluator: Evaluator, direct: Direct, limits: StepLimits) -> None:
    texts = generate(evaluator, PROMPTS, max_gen_toks=12, limits=limits).in_order

    assert texts == [
        bytes(direct.continuation([*prompt.encode()] or [BOS], 12)).decode("latin-1") for prompt in PROMPTS
    ]


def test_a_prompt_that_is_too_long_keeps_its_end(evaluator: Evaluator, direct: Direct) -> None:
    (text,) = generate(evaluator, [QUESTION * 3], max_gen_toks=8).in_order

    kept = (QUESTION * 3)[-(MAX_LENGTH - 8) :]
    assert text == bytes(direct.continuation(kept.encode(), 8)).decode("latin-1")


def test_each_row_ends_at_the_token_that_the_tokenizer_names_eos(backend: JaxBackend, direct: Direct) -> None:
    tokens = direct.continuation(QUESTION.encode(), 12)
    eos = tokens[4]

    (text,) = generate(evaluator_of(backend, Letters(eos_token_id=eos)), [QUESTION], max_gen_toks=12).in_order

    assert text == bytes(tokens[: tokens.index(eos)]).decode("latin-1")


# --- Where generation ends, with a model that recites ----------------------------------------------------------------


@pytest.fixture(scope="module")
def recites(letters: Any) -> Callable[[str], Evaluator]:
    """Make an evaluator whose model writes a text and then EOS; a prompt of n letters leaves out its first n - 1."""
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
def test_text_ends_before_the_first_stop_string_whatever_tokens_it_spans(
    recites: Callable[[str], Evaluator], until: tuple[str, ...], text: str
) -> None:
    assert generate(recites("hello world"), [""], *until).in_order == [text]


@pytest.mark.parametrize(
    ("recited", "until", "text"),
    [("one~two", "<|end|>", "one"), ("one\n~two", "<|end|>", "one\n"), ("one\n~two", "\n<|end|>", "one")],
)
def test_a_stop_string_may_be_written_with_special_tokens(
    recites: Callable[[str], Evaluator], recited: str, until: str, text: str
) -> None:
    assert generate(recites(recited), [""], until).in_order == [text]


def test_special_tokens_are_no_part_of_the_text(recites: Callable[[str], Evaluator]) -> None:
    assert generate(recites("one~two"), [""]).in_order == ["onetwo"]


@pytest.mark.parametrize("count", [1, 4])
def test_text_ends_after_max_gen_toks(recites: Callable[[str], Evaluator], count: int) -> None:
    assert generate(recites("hello world"), [""], max_gen_toks=count).in_order == ["hello world"[:count]]


def test_each_row_stops_by_itself_and_costs_nothing_afterwards(recites: Callable[[str], Evaluator]) -> None:
    evaluator = recites("hello world")

    heard = generate(evaluator, ["a", "bcd", "efghijkl"])

    assert heard.in_order == ["hello world", "llo world", "orld"]
    assert heard.steps == [[2], [1], [0]]
    # Each is read once a token, EOS included, from its prompt up to the whole text.
    assert evaluator.report.steps == 12
    assert evaluator.report.tokens_requested == sum(map(sum, (range(1, 13), range(3, 13), range(8, 13))))


def test_equal_prompts_are_answered_alike(recites: Callable[[str], Evaluator]) -> None:
    evaluator = recites("hello world")

    assert generate(evaluator, ["a", "b", "a"]).in_order == ["hello world"] * 3


# --- What is counted and said ----------------------------------------------------------------------------------------


def uniform(tokens: Any) -> Any:
    return jnp.zeros((*tokens.shape, VOCABULARY))


def test_no_shape_is_sent_that_is_not_reported_and_foreseen() -> None:
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
    # Two numbers of rows for each of the lengths 16, 24, 32 and 48, and the trial of loading.
    assert report.shape_bound == 2 * 4 + 1


TEXTS = ["a" * 5, "b" * 30, "c" * 20]
"""With two rows a step: the second and third in a step of 32, the first in one of 16."""


def test_the_report_counts_requests_steps_and_tokens() -> None:
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


def test_seconds_of_compiling_are_told_apart_from_those_of_steps() -> None:
    evaluator = evaluator_for((lambda params, tokens: uniform(tokens), 0.0))
    began = time.monotonic()
    rolling(evaluator, TEXTS)
    elapsed = time.monotonic() - began

    report = evaluator.report
    assert report.compile_seconds > 0
    assert report.step_seconds > 0
    assert report.step_seconds + report.compile_seconds <= elapsed


def test_the_device_is_idle_between_works_but_not_when_there_are_none() -> None:
    now = [0.0]
    backend = JaxBackend(resolve((lambda params, tokens: uniform(tokens), 0.0)), MAX_LENGTH)
    evaluator = Evaluator(TokenizerAdapter(Letters()), backend, MAX_LENGTH, clock=lambda: now[0])
    rolling(evaluator, TEXTS[:1])
    now[0] += 3.0
    rolling(evaluator, TEXTS[:1])
    waited = evaluator.report.idle_seconds
    assert waited == pytest.approx(3), "between two works that follow each other the device waits for the host"
    evaluator.rest()
    now[0] += 5.0
    rolling(evaluator, TEXTS[:1])
    assert evaluator.report.idle_seconds == waited


def test_what_is_told_meanwhile_counts_tracing_as_compiling() -> None:
    began = time.monotonic()
    evaluator = Evaluator(
        TokenizerAdapter(Letters()),
        JaxBackend(resolve((lambda params, tokens: uniform(tokens), 0.0)), MAX_LENGTH),
        MAX_LENGTH,
    )
    rolling(evaluator, TEXTS)
    told, report, elapsed = evaluator.computed, evaluator.report, time.monotonic() - began
    assert told.compile_seconds > report.compile_seconds > 0
    assert told.seconds < report.step_seconds
    assert 0 < told.seconds + told.compile_seconds <= elapsed
    assert (told.requested, told.distinct) == (report.tokens_requested, report.tokens_distinct)


def test_a_device_whose_program_is_compiled_is_not_idle() -> None:
    now = [0.0]

    class Slow(JaxBackend):
        compile_seconds = property(lambda self: now[0])

    def traced(params: Any, tokens: Any) -> Any:
        now[0] += 7.0
        return uniform(tokens)

    evaluator = Evaluator(
        TokenizerAdapter(Letters()), Slow(resolve((traced, 0.0)), MAX_LENGTH), MAX_LENGTH, clock=lambda: now[0]
    )
    rolling(evaluator, TEXTS[:1])
    before = now[0]
    rolling(evaluator, ["a" * (MAX_LENGTH - 2)])

    assert now[0] > before, "the second text has a shape of its own"
    assert evaluator.report.idle_seconds == 0


def test_that_steps_are_made_smaller_for_want_of_memory_is_told() -> None:
    def hungry(params: Any, tokens: Any) -> Any:
        logits = uniform(tokens)
        if tokens.shape[0] > 32:
            first = tokens[0, 0]
            # What is sorted must be there as a whole, and no device has so many bytes.
            huge = jax.lax.sort(jax.lax.broadcasted_iota(jnp.uint8, (1, 1 << 25, 1 << 25), 2) + first.astype(jnp.uint8))
            logits = logits + huge[0, first, first]
        return logits

    heard = rolling(evaluator_for((hungry, 0.0)), ["a", "b"])

    (notice,) = heard.notices
    assert notice.startswith("warning: the device has no room for ")
    assert notice.endswith("; steps are made smaller, of 512 tokens at most")
    assert heard.in_order == pytest.approx([-np.log(VOCABULARY)] * 2, abs=1e-5)


def test_answers_are_given_step_by_step_the_longest_first(evaluator: Evaluator) -> None:
    assert rolling(evaluator, TEXTS, StepLimits(rows=2)).steps == [[1, 2], [0]]


def test_a_new_shape_is_a_phase_and_a_known_one_is_not() -> None:
    evaluator = evaluator_for(uniform)

    first = rolling(evaluator, TEXTS, StepLimits(rows=2))
    second = rolling(evaluator, TEXTS, StepLimits(rows=2))

    assert first.phases == ["compiling 2 x 32", "running", "compiling 2 x 16", "running"]
    assert second.phases == []


def test_a_cut_of_requests_is_told_once_with_its_numbers(evaluator: Evaluator) -> None:
    (notice,) = loglikelihood(evaluator, [("a" * 60, "b"), ("a", "b"), ("a" * 70, "bc")]).notices

    assert notice == (
        "warning: 2 of 3 requests are longer than the model's max_length of 48 (the longest has 72 tokens): of each "
        "the last 49 tokens were kept"
    )


def test_a_cut_of_prompts_is_told_once_with_its_numbers(evaluator: Evaluator) -> None:
    cut, *_ = generate(evaluator, ["a" * 60, "a", "a" * 47], max_gen_toks=2).notices

    assert cut == (
        "warning: 2 of 3 prompts do not leave max_gen_toks=2 tokens of the model's max_length of 48 (the longest has "
        "60 tokens): of each the last 46 tokens were kept"
    )


def test_what_fits_exactly_is_not_cut(evaluator: Evaluator) -> None:
    scored = loglikelihood(evaluator, [("a" * 47, "bc"), ("", "b" * 48)])
    generated = generate(evaluator, ["a" * 46], max_gen_toks=2)

    assert scored.notices == []
    assert not any("were kept" in notice for notice in generated.notices)


# --- What cannot be answered -----------------------------------------------------------------------------------------


def failure(function: Callable[..., Heard], *arguments: Any, **keywords: Any) -> tuple[int, BirdieError]:
    """The item at fault, and its error."""
    with pytest.raises(ItemFailed) as caught:
        function(*arguments, **keywords)
    return caught.value.index, caught.value.error


@pytest.fixture(scope="module")
def narrow() -> Evaluator:
    """A model that has logits for the first 100 tokens only, which leaves out most small letters."""
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
def test_a_token_out_of_the_vocabulary_is_named_with_its_item(
    narrow: Evaluator, function: Callable[..., Heard], items: list[Any]
) -> None:
    index, error = failure(function, narrow, items)

    assert index == 1
    assert isinstance(error, TokenOutOfVocabulary)
    assert "made the token 122, but the model has logits for 100 tokens" in error.message


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("function", "items"),
    [
        (loglikelihood, [("a", "b"), ("a", "bcd"), ("a!", "b")]),
        (rolling, ["ab", "abc", "a!b"]),
        (generate, ["a", "bc", "a!"]),
    ],
)
def test_logits_that_are_not_finite_are_laid_to_their_item(
    function: Callable[..., Heard], items: list[Any], value: float
) -> None:
    def stumbles(tokens: Any) -> Any:
        return uniform(tokens).at[..., 3].set(jnp.where(tokens == ord("!"), value, 0.0))

    index, error = failure(function, evaluator_for(stumbles), items)

    assert index == 2
    assert isinstance(error, NonFiniteLogits)
    assert "NaN or infinity" in error.message


def test_a_token_that_is_not_asked_about_may_be_excluded() -> None:
    def excludes(tokens: Any) -> Any:
        return uniform(tokens).at[..., 3].set(-jnp.inf)

    ((score, _),) = loglikelihood(evaluator_for(excludes), [("a", "b")]).in_order

    assert score == pytest.approx(-np.log(VOCABULARY - 1), abs=1e-5)


def test_a_continuation_that_no_row_holds_is_refused_with_the_numbers(evaluator: Evaluator) -> None:
    index, error = failure(loglikelihood, evaluator, [("a", "b"), ("a", "b" * 49)])

    assert index == 1
    assert isinstance(error, RequestError)
    assert "a continuation of 49 tokens is longer than the model's max_length of 48" in error.message


@pytest.mark.parametrize("count", [MAX_LENGTH, MAX_LENGTH + 1])
def test_max_gen_toks_that_leaves_no_room_for_a_prompt_is_refused(evaluator: Evaluator, count: int) -> None:
    index, error = failure(generate, evaluator, ["a"], max_gen_toks=count)

    assert index == 0
    assert isinstance(error, RequestError)
    assert (
        f"max_gen_toks is {count}, which leaves no room for a prompt in the model's max_length of 48" in error.message
    )


def test_what_was_answered_before_a_failure_stays_answered() -> None:
    def stumbles(tokens: Any) -> Any:
        return jnp.where((tokens == ord("!"))[..., None], jnp.nan, uniform(tokens))

    heard = Heard()
    with pytest.raises(ItemFailed):
        evaluator_for(stumbles).rolling(RollingWork(texts=["a!b", "c" * 30]), StepLimits(rows=1), heard)

    assert list(heard.answers) == [1]


# --- Chat ------------------------------------------------------------------------------------------------------------


class Chatty(Letters):
    """A tokenizer that renders conversations itself."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **keywords: Any) -> str:
        return conversation[-1]["content"] + ("|" if keywords["add_generation_prompt"] else "")


def test_each_conversation_is_rendered_by_the_tokenizer(backend: JaxBackend) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("Hi", "Ho")]
    heard = Heard()

    work = ChatWork(conversations=conversations, add_generation_prompt=True)
    evaluator_of(backend, Chatty()).render_chat(work, heard)

    assert heard.in_order == ["Hi|", "Ho|"]


def test_conversations_for_a_tokenizer_without_chat_are_refused(evaluator: Evaluator) -> None:
    with pytest.raises(TokenizerError, match="the Letters has neither"):
        evaluator.render_chat(ChatWork(conversations=[[]], add_generation_prompt=True), Heard())
