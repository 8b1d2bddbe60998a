"""What is asked: requests in the forms in which lm_eval asks, as many as are wanted, other ones for each seed. Pure.

A *document* is what a task has one line for: a question with four answers, which is four requests, or one text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from birdie_zmq.client.batching import generate_jobs, keyed, loglikelihood_jobs, rolling_jobs
from birdie_zmq.client.core import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.bench.texts import Question, Writer
from birdie_zmq.types import GenerationParams

Kind = Literal["choice", "fewshot", "rolling", "generation", "long"]
KINDS: tuple[Kind, ...] = ("choice", "fewshot", "rolling", "generation", "long")
USUAL: tuple[Kind, ...] = ("choice", "fewshot", "rolling", "generation")

_LETTERS = "ABCD"
_MOST_SHOTS = 5
_MOST_GENERATED = 64
_MOST_LONG_TOKENS = 16_384
_QUESTION_CHARACTERS = 235
"""About what an example of a few-shot prompt has: the question, its answer and what stands between them."""
_DRAWN = 64
_WORD_CHARACTERS = 6.0
_TEXT_WORDS = (40, 400)
_PROMPT_WORDS = (20, 60)


@dataclass(frozen=True)
class Sizes:
    """How long requests are, fitted to a model.

    Attributes:
        shots: The examples before a question of ``fewshot``; 0 where the model has no room for one.
        max_gen_toks: The most tokens that a prompt of ``generation`` is continued by.
        long_words: The words of a text of ``long``.
    """

    shots: int = _MOST_SHOTS
    max_gen_toks: int = _MOST_GENERATED
    long_words: int = 1_000


@dataclass(frozen=True)
class Asked:
    """The requests of one pass.

    Attributes:
        documents: How many documents they are of.
        pairs: Contexts with continuations, for ``choice`` and ``fewshot``.
        texts: Whole texts, for ``rolling`` and ``long``, or prompts, for ``generation``.
    """

    documents: int
    pairs: tuple[tuple[str, str], ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.pairs) + len(self.texts)

    @property
    def characters(self) -> int:
        """How many they have together, counting shared ones for each request."""
        return sum(len(context) + len(answer) for context, answer in self.pairs) + sum(map(len, self.texts))


def fit(max_length: int, tokens_per_character: float) -> Sizes:
    """Sizes for which requests are not cut.

    Args:
        max_length: The most tokens that the model reads at once.
        tokens_per_character: What its tokenizer makes of such texts.
    """
    example = _QUESTION_CHARACTERS * tokens_per_character
    # The question itself is as long as an example, and some are longer than most.
    shots = int(max_length / example - 1.5)
    tokens = min(max_length, _MOST_LONG_TOKENS)
    return Sizes(
        shots=max(0, min(_MOST_SHOTS, shots)),
        max_gen_toks=max(1, min(_MOST_GENERATED, max_length // 4)),
        # Slightly less than there is room for, or a few tokens would be read in a window of their own.
        long_words=max(1, int(0.95 * tokens / (tokens_per_character * _WORD_CHARACTERS))),
    )


def draw(kind: Kind, documents: int, seed: int, sizes: Sizes) -> Asked:
    """The requests of so many documents; other seeds give other texts of the same kind.

    Args:
        kind: What lm_eval would ask: ``choice`` as ARC does, ``fewshot`` as MMLU does behind examples, ``rolling`` as
            WikiText, ``generation`` as GSM8K, ``long`` as one document that fills the model's length.
        documents: How many there are.
        seed: Chooses the texts.
        sizes: How long they are.
    """
    writer = Writer(seed)
    if kind == "generation":
        return Asked(documents, texts=tuple(_prompt(writer) for _ in range(documents)))
    if kind in ("rolling", "long"):
        lengths = [sizes.long_words if kind == "long" else writer.length(*_TEXT_WORDS) for _ in range(documents)]
        return Asked(documents, texts=tuple(writer.text(words) for words in lengths))
    if kind == "fewshot":
        examples = _examples(writer, sizes.shots)
        stems = [examples + _lettered(writer.question()) for _ in range(documents)]
        return Asked(documents, pairs=tuple((stem, f" {letter}") for stem in stems for letter in _LETTERS))
    questions = [writer.question() for _ in range(documents)]
    pairs = [(f"Question: {each.text}\nAnswer:", f" {answer}") for each in questions for answer in each.answers]
    return Asked(documents, pairs=tuple(pairs))


def jobs_of(kind: Kind, asked: Asked, sizes: Sizes, settings: ClientSettings) -> Iterator[Job]:
    """The requests as lm_eval's model class sends them."""
    if asked.pairs:
        return loglikelihood_jobs(asked.pairs, settings)
    if kind == "generation":
        how = GenerationParams(until=("\n\n",), max_gen_toks=sizes.max_gen_toks)
        return generate_jobs(keyed([(text, how) for text in asked.texts], 0), settings)
    return rolling_jobs(asked.texts, settings)


def title(kind: Kind, sizes: Sizes) -> str:
    """What a person calls it."""
    return {
        "choice": "choice, 0-shot",
        "fewshot": f"choice, {sizes.shots}-shot",
        "rolling": "rolling",
        "generation": "generation",
        "long": "long text",
    }[kind]


def _lettered(question: Question) -> str:
    answers = "".join(f"{letter}. {answer}\n" for letter, answer in zip(_LETTERS, question.answers, strict=True))
    return f"{question.text}\n{answers}Answer:"


def _examples(writer: Writer, shots: int) -> str:
    """So many examples, about as long for every seed: their length decides the shapes in which they are read."""
    drawn = ["".join(_example(writer) for _ in range(shots)) for _ in range(_DRAWN)]
    return min(drawn, key=lambda examples: abs(len(examples) - shots * _QUESTION_CHARACTERS))


def _example(writer: Writer) -> str:
    question = writer.question()
    return f"{_lettered(question)} {_LETTERS[question.right]}\n\n"


def _prompt(writer: Writer) -> str:
    return f"Question: {writer.text(writer.length(*_PROMPT_WORDS))} How many are left?\nAnswer:"
