"""The workloads of the bench: requests of the forms that lm_eval sends, generated from a seed. Pure.

A *document* corresponds to a line of a task: a question with four answers, which is four requests, or one text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from birdie_zmq.client.batching import assign_random_keys, generate_jobs, loglikelihood_jobs, rolling_jobs
from birdie_zmq.client.job import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.bench.texts import Question, TextGenerator
from birdie_zmq.types import GenerationParams

Workload = Literal["choice", "fewshot", "rolling", "generation", "long"]
WORKLOADS: tuple[Workload, ...] = ("choice", "fewshot", "rolling", "generation", "long")
DEFAULT_WORKLOADS: tuple[Workload, ...] = ("choice", "fewshot", "rolling", "generation")

_LETTERS = "ABCD"
_MAX_SHOTS = 5
_MAX_GENERATED = 64
_MAX_LONG_TOKENS = 16_384
_QUESTION_CHARACTERS = 235
"""Approximate length of a few-shot example: question, answers and separators."""
_EXAMPLE_CANDIDATES = 64
_WORD_CHARACTERS = 6.0
_TEXT_WORDS = (40, 400)
_PROMPT_WORDS = (20, 60)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the requests, fitted to a model.

    Attributes:
        shots: Number of examples before a ``fewshot`` question; 0 if none fits into the model's maximum length.
        max_gen_toks: Maximum number of generated tokens of a ``generation`` request.
        long_words: Number of words of a ``long`` text.
    """

    shots: int = _MAX_SHOTS
    max_gen_toks: int = _MAX_GENERATED
    long_words: int = 1_000


@dataclass(frozen=True)
class RequestSet:
    """The requests of one pass.

    Attributes:
        documents: Number of documents.
        pairs: Contexts with continuations, for ``choice`` and ``fewshot``.
        texts: Whole texts for ``rolling`` and ``long``, prompts for ``generation``.
    """

    documents: int
    pairs: tuple[tuple[str, str], ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """Number of requests."""
        return len(self.pairs) + len(self.texts)

    @property
    def characters(self) -> int:
        """Total number of characters; shared ones count for each request."""
        return sum(len(context) + len(answer) for context, answer in self.pairs) + sum(map(len, self.texts))


def fit_sizes(max_length: int, tokens_per_character: float) -> Sizes:
    """Return sizes for which no request is truncated.

    Args:
        max_length: The model's maximum length in tokens.
        tokens_per_character: Tokens per character of such texts, with the model's tokenizer.
    """
    example = _QUESTION_CHARACTERS * tokens_per_character
    # The question is as long as an example, and half an example is reserved for examples of more than average length.
    shots = int(max_length / example - 1.5)
    tokens = min(max_length, _MAX_LONG_TOKENS)
    return Sizes(
        shots=max(0, min(_MAX_SHOTS, shots)),
        max_gen_toks=max(1, min(_MAX_GENERATED, max_length // 4)),
        # Slightly less than fits: a few excess tokens would need a rolling window of their own.
        long_words=max(1, int(0.95 * tokens / (tokens_per_character * _WORD_CHARACTERS))),
    )


def make_requests(workload: Workload, documents: int, seed: int, sizes: Sizes) -> RequestSet:
    """Generate the requests of a number of documents; different seeds give different texts.

    Args:
        workload: The form of the requests: ``choice`` as in ARC, ``fewshot`` as in MMLU with examples, ``rolling`` as in
            WikiText, ``generation`` as in GSM8K, ``long`` as one document of the model's maximum length.
        documents: Number of documents.
        seed: Seed of the texts.
        sizes: Sizes of the requests.
    """
    writer = TextGenerator(seed)
    if workload == "generation":
        return RequestSet(documents, texts=tuple(_prompt(writer) for _ in range(documents)))
    if workload in ("rolling", "long"):
        lengths = [sizes.long_words if workload == "long" else writer.length(*_TEXT_WORDS) for _ in range(documents)]
        return RequestSet(documents, texts=tuple(writer.text(words) for words in lengths))
    if workload == "fewshot":
        examples = _examples(writer, sizes.shots)
        stems = [examples + _lettered(writer.question()) for _ in range(documents)]
        return RequestSet(documents, pairs=tuple((stem, f" {letter}") for stem in stems for letter in _LETTERS))
    questions = [writer.question() for _ in range(documents)]
    pairs = [(f"Question: {each.text}\nAnswer:", f" {answer}") for each in questions for answer in each.answers]
    return RequestSet(documents, pairs=tuple(pairs))


def make_jobs(workload: Workload, requests: RequestSet, sizes: Sizes, settings: ClientSettings) -> Iterator[Job]:
    """Return the jobs that the model class would send for these requests."""
    if requests.pairs:
        return loglikelihood_jobs(requests.pairs, settings)
    if workload == "generation":
        params = GenerationParams(until=("\n\n",), max_gen_toks=sizes.max_gen_toks)
        return generate_jobs(assign_random_keys([(text, params) for text in requests.texts], 0), settings)
    return rolling_jobs(requests.texts, settings)


def title(workload: Workload, sizes: Sizes) -> str:
    """Return the name of a workload for people."""
    return {
        "choice": "choice, 0-shot",
        "fewshot": f"choice, {sizes.shots}-shot",
        "rolling": "rolling",
        "generation": "generation",
        "long": "long text",
    }[workload]


def _lettered(question: Question) -> str:
    answers = "".join(f"{letter}. {answer}\n" for letter, answer in zip(_LETTERS, question.answers, strict=True))
    return f"{question.text}\n{answers}Answer:"


def _examples(writer: TextGenerator, shots: int) -> str:
    """Return few-shot examples of nearly equal length for every seed, since their length decides the shapes of steps."""
    candidates = ["".join(_example(writer) for _ in range(shots)) for _ in range(_EXAMPLE_CANDIDATES)]
    return min(candidates, key=lambda examples: abs(len(examples) - shots * _QUESTION_CHARACTERS))


def _example(writer: TextGenerator) -> str:
    question = writer.question()
    return f"{_lettered(question)} {_LETTERS[question.correct]}\n\n"


def _prompt(writer: TextGenerator) -> str:
    return f"Question: {writer.text(writer.length(*_PROMPT_WORDS))} How many are left?\nAnswer:"
