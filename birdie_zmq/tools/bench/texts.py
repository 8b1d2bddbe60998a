"""Generates English-like texts from a seed, without reading from disk or network.

The texts are ordinary words in ordinary sentences, so that every tokenizer produces about as many tokens as for English.
Their meaning does not matter: the time that a model takes depends only on the number of tokens.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_NAMES = _split("""Una Tom Mira Anselm Jora Lorin Nevin Zelda Edith Hugo Clara Victor Martha Samuel Ruth Daniel Ida Conrad Alma
Felix Greta Oscar Nora Walter""")
_PLACES = _split("""Greywater Fernley Ashdown Millford Highfell Oldbrook Saltmere Duskport Thornby Wexcombe Northgate
Larkhill""")
_NOUNS = _split("""lantern bridge kettle ladder garden harbour letter engine window orchard basket mirror compass hammer
blanket candle river mountain cellar market newspaper telescope barrel carriage violin chimney meadow library machine
island village pepper thunder glacier pendulum satellite bacteria parliament equation""")
_ADJECTIVES = _split("""old narrow silver broken heavy distant wooden quiet bright frozen hollow painted ancient careful ordinary
enormous invisible northern electric temporary""")
_VERBS = _split("""carried repaired painted measured weighed described borrowed buried counted explained followed examined
promised inherited discovered abandoned translated photographed""")
_TRADES = _split("""miller baker weaver doctor sailor teacher farmer printer surveyor chemist historian carpenter""")
_TIMES = (
    "before the first snow",
    "after the long winter",
    "in the early morning",
    "during the great storm",
    "at the end of the century",
    "without any warning",
    "on the second day of the fair",
    "while the others were asleep",
)
_QUESTION_TEMPLATES = (
    "What was the reason that {name} {verb} the {noun}?",
    "Which of these is true of the {adjective} {noun}?",
    "Where would you look for the {noun} that the {trade} {verb}?",
    "Who most likely {verb} the {adjective} {noun} of {place}?",
    "What would the {trade} of {place} have seen next?",
)


@dataclass(frozen=True)
class Question:
    """A question with four answers, and the index of the correct answer."""

    text: str
    answers: tuple[str, str, str, str]
    correct: int


class TextGenerator:
    """A generator of a sequence of texts.

    Args:
        seed: Equal seeds give equal sequences.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - the seed matters, not the secrecy

    def question(self) -> Question:
        """Return a question of about 25 words, with four answers of a few words each."""
        text = f"{_capitalize(self._sentence())}. {self._random.choice(_QUESTION_TEMPLATES).format(**self._words())}"
        answers = tuple(self._answer() for _ in range(4))
        assert len(answers) == 4
        return Question(text, answers, self._random.randrange(4))

    def text(self, words: int) -> str:
        """Return whole sentences with at least this number of words in total."""
        sentences: list[str] = []
        written = 0
        while written < words:
            sentence = self._sentence()
            written += sentence.count(" ") + 1
            sentences.append(f"{_capitalize(sentence)}.")
        return " ".join(sentences)

    def length(self, minimum: int, maximum: int) -> int:
        """Return a length between two bounds, sampled log-uniformly, as real texts are distributed."""
        return round(math.exp(self._random.uniform(math.log(minimum), math.log(maximum))))

    def _sentence(self) -> str:
        words = self._words()
        template = self._random.choice(
            (
                "the {trade} of {place} {verb} {number} {adjective} {noun}s {time}",
                "{name}, who {verb} the {adjective} {noun}, went to {place} {time}",
                "{name} {verb} the {noun} and the {adjective} {other} {time}",
                "the {adjective} {noun} near {place} was never {verb} again",
            )
        )
        return template.format(**words)

    def _answer(self) -> str:
        return self._random.choice(
            ("the {adjective} {noun}", "{name} of {place}", "one {noun} {time}", "{place}")
        ).format(**self._words())

    def _words(self) -> dict[str, str]:
        choose = self._random.choice
        return {
            "name": choose(_NAMES),
            "place": choose(_PLACES),
            "noun": choose(_NOUNS),
            "other": choose(_NOUNS),
            "adjective": choose(_ADJECTIVES),
            "verb": choose(_VERBS),
            "trade": choose(_TRADES),
            "time": choose(_TIMES),
            "number": str(self._random.randrange(2, 2_000)),
        }


def _capitalize(sentence: str) -> str:
    """Capitalize the first letter of a sentence."""
    return sentence[:1].upper() + sentence[1:]
