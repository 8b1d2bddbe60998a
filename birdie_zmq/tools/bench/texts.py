"""English-like texts, drawn from a seed: nothing is read from disk or from the network.

They are plain words in plain sentences, so that tokenizers of all kinds make of them about as many tokens as they make
of English. What they say is of no account: how long a model takes depends on its tokens' number alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


def _each(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_NAMES = _each("""Una Tom Mira Anselm Jora Lorin Nevin Zelda Edith Hugo Clara Victor Martha Samuel Ruth Daniel Ida Conrad Alma
Felix Greta Oscar Nora Walter""")
_PLACES = _each("""Greywater Fernley Ashdown Millford Highfell Oldbrook Saltmere Duskport Thornby Wexcombe Northgate
Larkhill""")
_THINGS = _each("""lantern bridge kettle ladder garden harbour letter engine window orchard basket mirror compass hammer
blanket candle river mountain cellar market newspaper telescope barrel carriage violin chimney meadow library machine
island village pepper thunder glacier pendulum satellite bacteria parliament equation""")
_KINDS = _each("""old narrow silver broken heavy distant wooden quiet bright frozen hollow painted ancient careful ordinary
enormous invisible northern electric temporary""")
_DEEDS = _each("""carried repaired painted measured weighed described borrowed buried counted explained followed examined
promised inherited discovered abandoned translated photographed""")
_TRADES = _each("""miller baker weaver doctor sailor teacher farmer printer surveyor chemist historian carpenter""")
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
_ASKED = (
    "What was the reason that {name} {deed} the {thing}?",
    "Which of these is true of the {kind} {thing}?",
    "Where would you look for the {thing} that the {trade} {deed}?",
    "Who most likely {deed} the {kind} {thing} of {place}?",
    "What would the {trade} of {place} have seen next?",
)


@dataclass(frozen=True)
class Question:
    """A question, what may be answered, and which answer counts as right."""

    text: str
    answers: tuple[str, str, str, str]
    right: int


class Writer:
    """Writes one text after another.

    Args:
        seed: Equal seeds give equal texts.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - the seed matters, not the secrecy

    def question(self) -> Question:
        """A question of about twenty-five words with four answers of a few words each."""
        text = f"{_begin(self._sentence())}. {self._random.choice(_ASKED).format(**self._words())}"
        answers = tuple(self._answer() for _ in range(4))
        assert len(answers) == 4
        return Question(text, answers, self._random.randrange(4))

    def text(self, words: int) -> str:
        """Whole sentences of at least this many words together."""
        sentences: list[str] = []
        written = 0
        while written < words:
            sentence = self._sentence()
            written += sentence.count(" ") + 1
            sentences.append(f"{_begin(sentence)}.")
        return " ".join(sentences)

    def length(self, least: int, most: int) -> int:
        """A length between two, the short ones as often as the long ones by their logarithm, as texts are."""
        return round(math.exp(self._random.uniform(math.log(least), math.log(most))))

    def _sentence(self) -> str:
        chosen = self._words()
        form = self._random.choice(
            (
                "the {trade} of {place} {deed} {number} {kind} {thing}s {time}",
                "{name}, who {deed} the {kind} {thing}, went to {place} {time}",
                "{name} {deed} the {thing} and the {kind} {other} {time}",
                "the {kind} {thing} near {place} was never {deed} again",
            )
        )
        return form.format(**chosen)

    def _answer(self) -> str:
        return self._random.choice(("the {kind} {thing}", "{name} of {place}", "one {thing} {time}", "{place}")).format(
            **self._words()
        )

    def _words(self) -> dict[str, str]:
        choose = self._random.choice
        return {
            "name": choose(_NAMES),
            "place": choose(_PLACES),
            "thing": choose(_THINGS),
            "other": choose(_THINGS),
            "kind": choose(_KINDS),
            "deed": choose(_DEEDS),
            "trade": choose(_TRADES),
            "time": choose(_TIMES),
            "number": str(self._random.randrange(2, 2_000)),
        }


def _begin(sentence: str) -> str:
    """The sentence with a capital at its beginning."""
    return sentence[:1].upper() + sentence[1:]
