"""What counts as the answer, with and without thoughts before it."""

from __future__ import annotations

from typing import Any

import pytest

from birdie_zmq.engine.answer_text import AnswerText
from birdie_zmq.engine.tokenizer import TextTokenizer
from birdie_zmq.wire.messages import GenerationSettings

END = 256
"""A special token, which decoding leaves out, written </think>."""


class Letters:
    """One token a byte, and a special one."""

    eos_token_id = 257

    def encode(self, text: str) -> list[int]:
        parts = [list(part.encode()) for part in text.split("</think>")]
        return [token for part in parts[:-1] for token in (*part, END)] + parts[-1]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        written = [chr(id) if id < 256 else "" if skip_special_tokens else "</think>" for id in ids]
        return "".join(written)


def read(text: str, *until: str, end: str | int | None = None) -> tuple[str, bool]:
    tokenizer = TextTokenizer(Letters())
    answer = AnswerText(tokenizer, GenerationSettings(until=until, think_end_token=end))
    generated = tokenizer.encode([text])[0]
    return answer.text(generated), answer.is_over(generated)


def test_text_ends_before_the_first_stop_string() -> None:
    assert read(" 12 plums.\nQuestion", "\n", "Q") == (" 12 plums.", True)
    assert read(" 12 plums", "\n") == (" 12 plums", False)


@pytest.mark.parametrize("end", ["</think>", END])
def test_a_special_token_ends_the_thoughts(end: Any) -> None:
    assert read("3 and\n\n9 </think>\n\n 12\nQuestion", "\n", end=end) == ("12", True)


@pytest.mark.parametrize("end", ["so:", ord(":")])
def test_a_text_or_an_ordinary_token_ends_the_thoughts(end: Any) -> None:
    assert read("3 and\n\n9 so:\n 12\nQuestion", "\n", end=end) == ("12", True)


@pytest.mark.parametrize("end", ["</think>", END, "so:", ord("!")])
def test_a_stop_string_among_thoughts_stops_nothing(end: Any) -> None:
    assert read("3 and\n\n9", "\n", end=end)[1] is False


@pytest.mark.parametrize("end", ["</think>", END, "so:", ord("!")])
def test_thoughts_that_never_end_are_the_answer(end: Any) -> None:
    assert read(" 3 and\n\n9", "\n", end=end)[0] == "3 and"


@pytest.mark.parametrize("end", ["so:", ord(":")])
def test_the_last_end_counts(end: Any) -> None:
    assert read("a so: b\n so: c\n d", "\n", end=end) == ("c", True)


def test_white_space_stays_where_nothing_thinks() -> None:
    assert read("  12 ") == ("  12 ", False)
