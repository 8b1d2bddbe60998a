"""Completions: log-probabilities of each token and continuations, compared with the logits of each text by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pytest

from birdie_zmq import Model
from birdie_zmq.completions import Completion, CompletionParams, CompletionPrompt, CompletionWork, TokenLogprobs
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.events import Answered, ItemFailed, PartlyAnswered
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import UnsupportedRequest
from birdie_zmq.types import GenerateWork, GenerationParams, LogitsParams, SamplingParams, StepLimits
from tests.engine.recurrent import VOCABULARY, recurrent
from tests.engine.recurrent import logits as recurrent_logits
from tests.model_files.numpy_engine import NumpyBackend

MAX_LENGTH = 64
EOS = 1
TOLERANCE_NATS = 2e-4
LETTERS = "".join(chr(ord("a") + number) for number in range(VOCABULARY))
LIMITS = StepLimits(rows=2)
"""Few shapes, so that few executables are compiled."""


class LetterTokenizer:
    """One token per character; the EOS token has no text of its own."""

    eos_token_id = EOS
    bos_token_id = None

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(LETTERS[id] for id in ids if not (skip_special_tokens and id == EOS))


@dataclass(frozen=True)
class Scorer:
    """An evaluator, and the logits of its model without the engine."""

    evaluator: Evaluator
    logits: Any

    def logprobs(self, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return log-probabilities [n, v] after each token."""
        padded = np.zeros((1, MAX_LENGTH), np.int32)
        padded[0, : len(tokens)] = tokens
        found = np.asarray(self.logits(padded), np.float64)[0, : len(tokens)]
        result: npt.NDArray[np.float64] = found - np.log(np.exp(found).sum(axis=-1, keepdims=True))
        return result

    def complete(
        self, prompts: Sequence[CompletionPrompt], parts: list[tuple[int, Completion]] | None = None, **params: Any
    ) -> list[Completion]:
        answers: dict[int, Completion] = {}
        work = CompletionWork(prompts=list(prompts), params=CompletionParams(**params))
        for event in self.evaluator.answer(work, LIMITS):
            match event:
                case Answered(indices=indices, answers=new):
                    assert not answers.keys() & set(indices), "each prompt is answered once"
                    answers.update(zip(indices, new, strict=True))  # type: ignore[arg-type]
                case PartlyAnswered(indices=indices, parts=new):
                    assert parts is not None
                    parts.extend(zip(indices, new, strict=True))  # type: ignore[arg-type]
        return [answers[index] for index in range(len(prompts))]


def rows_of_numpy() -> Scorer:
    """A model that computes whole rows, in NumPy: the next token depends on the last one."""
    table = np.random.default_rng(0).normal(scale=2.0, size=(VOCABULARY, VOCABULARY)).astype(np.float32)
    backend = NumpyBackend(resolve((lambda params, tokens: params[tokens], table)), MAX_LENGTH)
    return Scorer(Evaluator(TokenizerAdapter(LetterTokenizer()), backend, MAX_LENGTH), lambda tokens: table[tokens])


def with_state(model: Model, logits: Any) -> Scorer:
    backend = JaxBackend(resolve(model), MAX_LENGTH)
    # A budget so small that shared prefixes of a dozen tokens become states.
    backend.budget = dataclasses.replace(StepBudget(tokens=16, call_tokens=4), decoding_rows=2)
    evaluator = Evaluator(TokenizerAdapter(LetterTokenizer()), backend, MAX_LENGTH)
    return Scorer(evaluator, jax.jit(partial(logits, model.params)))


def trees() -> Scorer:
    from tests.engine.test_scoring import llama

    model = llama()
    assert model.logits is not None
    return with_state(model, model.logits)


MODELS: dict[str, Callable[[], Scorer]] = {
    "rows": rows_of_numpy,
    "trees": trees,
    "forks": lambda: with_state(recurrent(), recurrent_logits),
}


@pytest.fixture(scope="module")
def scorers() -> dict[str, Scorer]:
    """The models that tests have used so far: each is compiled once."""
    return {}


@pytest.fixture
def scorer(request: pytest.FixtureRequest, scorers: dict[str, Scorer]) -> Scorer:
    name: str = request.param
    if name not in scorers:
        scorers[name] = MODELS[name]()
    return scorers[name]


def models(*names: str) -> pytest.MarkDecorator:
    """Run a test with some models."""
    return pytest.mark.parametrize("scorer", names, indirect=True)


def ids(data: bytes) -> list[int]:
    found: list[int] = np.frombuffer(data, "<i4").tolist()
    return found


def packed(tokens: Sequence[int]) -> bytes:
    return np.array(tokens, "<i4").tobytes()


def check_logprobs(found: TokenLogprobs | None, expected: npt.NDArray[np.float64], tokens: Sequence[int]) -> None:
    """Compare log-probabilities of tokens with those [n, v] of the model."""
    assert found is not None
    own = np.frombuffer(found.logprobs, "<f4")
    np.testing.assert_allclose(own, expected[np.arange(len(tokens)), tokens], atol=TOLERANCE_NATS, rtol=0)
    top = np.frombuffer(found.top_logprobs, "<f4").reshape(len(tokens), found.top)
    np.testing.assert_allclose(top, -np.sort(-expected, axis=-1)[:, : found.top], atol=TOLERANCE_NATS, rtol=0)
    top_ids = np.frombuffer(found.top_ids, "<i4").reshape(top.shape)
    at_ids = np.take_along_axis(expected, top_ids, axis=-1)
    np.testing.assert_allclose(top, at_ids, atol=TOLERANCE_NATS, rtol=0)


SHARED = list(np.random.default_rng(3).integers(2, VOCABULARY, 14))
TEXTS = [[*SHARED, 5, 6], [*SHARED, 5, 7, 8], [*SHARED, 9], SHARED, [4], [4, 3, 2]]


@models("rows", "trees")
def test_each_token_of_a_prompt_is_scored_and_followed_by_the_likeliest(scorer: Scorer) -> None:
    prompts = [CompletionPrompt(ids=packed(text), max_tokens=1) for text in TEXTS]

    # The second time, states of shared prefixes may be cached.
    for _ in range(2):
        answers = scorer.complete(prompts, prompt_logprobs=3, logprobs=2)

        for text, answer in zip(TEXTS, answers, strict=True):
            expected = scorer.logprobs(text)
            assert ids(answer.prompt_ids) == text
            check_logprobs(answer.prompt_logprobs, expected[:-1], text[1:])
            (following,) = ids(answer.ids)
            assert expected[-1, following] >= expected[-1].max() - TOLERANCE_NATS
            check_logprobs(answer.logprobs, expected[-1:], [following])


@models("rows", "trees")
def test_scores_of_a_prompt_alone_generate_nothing(scorer: Scorer) -> None:
    answers = scorer.complete([CompletionPrompt(ids=packed(text)) for text in TEXTS], prompt_logprobs=2)

    for text, answer in zip(TEXTS, answers, strict=True):
        assert (answer.ids, answer.text, answer.finish_reason, answer.logprobs) == (b"", "", "length", None)
        check_logprobs(answer.prompt_logprobs, scorer.logprobs(text)[:-1], text[1:])


@models("rows", "forks")
def test_generated_tokens_are_those_of_generate_with_their_logprobs(scorer: Scorer) -> None:
    texts = ["".join(LETTERS[id] for id in text) for text in TEXTS]
    generated: dict[int, Any] = {}
    for event in scorer.evaluator.answer(
        GenerateWork(prompts=texts, settings=GenerationParams(max_gen_toks=6)), LIMITS
    ):
        if isinstance(event, Answered):
            generated.update(zip(event.indices, event.answers, strict=True))

    answers = scorer.complete([CompletionPrompt(text=text, max_tokens=6) for text in texts], logprobs=2)

    for index, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        assert answer.text == generated[index]
        tokens = ids(answer.ids)
        assert answer.finish_reason == ("stop" if tokens[-1] == EOS else "length")
        assert EOS not in tokens[:-1]
        check_logprobs(answer.logprobs, scorer.logprobs([*text, *tokens])[len(text) - 1 : -1], tokens)


@models("rows", "forks")
@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0.7)], ids=["sampled"])
def test_an_interrupted_generation_continues_with_the_same_tokens(scorer: Scorer, sampling: Any) -> None:
    generation = GenerationParams(sampling=sampling, logits=LogitsParams(ignore_eos=True))
    whole = [CompletionPrompt(ids=packed(text), max_tokens=6, key=index + 1) for index, text in enumerate(TEXTS)]
    answers = scorer.complete(whole, generation=generation, logprobs=2)

    begun = [
        CompletionPrompt(ids=prompt.ids, generated=answer.ids[:8], max_tokens=4, key=prompt.key)
        for prompt, answer in zip(whole, answers, strict=True)
    ]
    continued = scorer.complete(begun, generation=generation, logprobs=2)

    for answer, rest in zip(answers, continued, strict=True):
        assert rest.ids == answer.ids[8:]
        assert rest.text == answer.text


@models("rows", "forks")
def test_parts_grow_to_the_answer(scorer: Scorer) -> None:
    parts: list[tuple[int, Completion]] = []
    generation = GenerationParams(logits=LogitsParams(ignore_eos=True))
    prompts = [CompletionPrompt(ids=packed(text), max_tokens=6) for text in TEXTS[:2]]

    answers = scorer.complete(prompts, parts, generation=generation, part_tokens=2, logprobs=2)

    for index, answer in enumerate(answers):
        lengths = [len(part.ids) // 4 for number, part in parts if number == index]
        assert lengths
        assert all(later - earlier >= 2 for earlier, later in pairwise(lengths))
        for number, part in parts:
            if number == index:
                assert part.finish_reason is None
                assert answer.ids.startswith(part.ids)
                assert answer.text.startswith(part.text)
                assert part.logprobs is not None


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it() -> None:
    scorer = rows_of_numpy()
    (whole,) = scorer.complete([CompletionPrompt(text="dcb", max_tokens=8)])
    stop = whole.text[3:5]
    at = whole.text.find(stop)

    parts: list[tuple[int, Completion]] = []
    generation = GenerationParams(until=(stop,))
    (cut,) = scorer.complete([CompletionPrompt(text="dcb", max_tokens=8)], parts, generation=generation, part_tokens=1)

    assert (cut.text, cut.finish_reason) == (whole.text[:at], "stop")
    assert all(cut.text.startswith(part.text) for _, part in parts)


def test_texts_of_tokens_are_given_where_they_are_wanted() -> None:
    (answer,) = rows_of_numpy().complete(
        [CompletionPrompt(ids=packed([2, 3, EOS]), max_tokens=1)], prompt_logprobs=2, logprobs=0, with_texts=True
    )

    assert answer.prompt_text == "cdb"
    assert answer.prompt_logprobs is not None
    named = dict(zip(ids(answer.token_ids), answer.token_texts, strict=True))
    assert set(named) == {2, 3, EOS, *ids(answer.ids), *ids(answer.prompt_logprobs.top_ids)}
    assert all(text == LETTERS[id] for id, text in named.items())


def test_a_prompt_that_cannot_be_answered_says_why_and_others_are_answered() -> None:
    prompts = [
        CompletionPrompt(ids=packed([2] * MAX_LENGTH), max_tokens=1),
        CompletionPrompt(ids=packed([2] * MAX_LENGTH), max_tokens=2),
        CompletionPrompt(ids=packed([VOCABULARY]), max_tokens=1),
        CompletionPrompt(text="no such letters", max_tokens=1),
        CompletionPrompt(ids=b"", max_tokens=1),
    ]

    answers = rows_of_numpy().complete(prompts, prompt_logprobs=1, logprobs=1)

    assert answers[0].error is None
    assert answers[0].finish_reason is not None
    assert "maximum context length is 64 tokens" in (answers[1].error or "")
    assert f"has the token {VOCABULARY}" in (answers[2].error or "")
    assert "failed to encode a text" in (answers[3].error or "")
    assert ids(answers[4].prompt_ids) == [EOS]  # the prefix token


def test_max_tokens_is_lowered_to_the_context_where_that_is_wanted() -> None:
    generation = GenerationParams(logits=LogitsParams(ignore_eos=True))
    prompt = CompletionPrompt(ids=packed([2] * (MAX_LENGTH - 3)), max_tokens=99)

    (answer,) = rows_of_numpy().complete([prompt], generation=generation, fits_context=True)

    assert (len(answer.ids) // 4, answer.finish_reason) == (4, "length")


def test_parameters_that_name_an_unknown_token_fail_each_prompt() -> None:
    generation = GenerationParams(logits=LogitsParams(suppress_tokens=(VOCABULARY,)))

    answers = rows_of_numpy().complete([CompletionPrompt(text="dcb", max_tokens=2)] * 2, generation=generation)

    assert all("tokens only" in (answer.error or "") for answer in answers)


def test_logits_that_are_not_finite_fail_the_prompt_that_has_them() -> None:
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    table[7] = np.nan
    backend = NumpyBackend(resolve((lambda params, tokens: params[tokens], table)), MAX_LENGTH)
    evaluator = Evaluator(TokenizerAdapter(LetterTokenizer()), backend, MAX_LENGTH)
    work = CompletionWork(
        prompts=[CompletionPrompt(ids=packed([2, 3])), CompletionPrompt(ids=packed([2, 7, 3]))],
        params=CompletionParams(prompt_logprobs=1),
    )

    with pytest.raises(ItemFailed) as failed:
        list(evaluator.answer(work, LIMITS))

    assert failed.value.index == 1


def test_a_model_that_only_scores_pairs_is_refused_by_name() -> None:
    def score(params: Any, input_ids: Any, label_ids: Any, loss_mask: Any) -> Any:
        del params, label_ids, loss_mask
        return np.zeros(len(input_ids), np.float32), np.zeros(len(input_ids), np.bool_)

    backend = NumpyBackend(resolve(Model(params=(), score=score)), MAX_LENGTH)
    evaluator = Evaluator(TokenizerAdapter(LetterTokenizer()), backend, MAX_LENGTH)

    with pytest.raises(UnsupportedRequest, match="log-probabilities of each token"):
        list(evaluator.answer(CompletionWork(prompts=[CompletionPrompt(text="b")]), LIMITS))
