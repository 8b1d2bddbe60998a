"""What counts as the answer, with and without thoughts before it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from birdie_zmq.engine.detokenizer import AnswerExtractor
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.types import GenerationParams

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
    tokenizer = TokenizerAdapter(Letters())
    answer = AnswerExtractor(tokenizer, GenerationParams(until=until, think_end_token=end))
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


# --- Answers as their tokens come ------------------------------------------------------------------------------------

PIECES = ["a", "b", "ab", "ba", "aa", " a", "\n", "\n\n", " ", ".", "é", "日", "so:", "<end>"]


@functools.cache
def byte_level() -> TokenizerAdapter:
    """Tokens of a byte, and of some that often stand together: a token may hold half a character, or two words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    together = [spell.pre_tokenize_str(piece)[0][0] for piece in PIECES]
    words = dict.fromkeys([*alphabet, *together])
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="a"))
    tokenizer.decoder = decoders.ByteLevel()
    return TokenizerAdapter(tokenizer, prefix_token_id=0)


class JoinedWords:
    """A decoder that leaves out the space at the very beginning, as many do; its tokens are words."""

    eos_token_id = None

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        return "".join((" a", "b", " .", "\n")[number] for number in ids).removeprefix(" ")


def naive(answer: AnswerExtractor, tokens: list[int]) -> int | None:
    """After how many tokens the answer is over, by reading all of it after each."""
    return next((count for count in range(1, len(tokens) + 1) if answer.is_over(tokens[:count])), None)


def grown(answer: AnswerExtractor, tokens: list[int]) -> int | None:
    growing = answer.begin()
    for count, token in enumerate(tokens, 1):
        if growing.add(token):
            assert growing.tokens == tokens[:count]
            return count
    assert growing.text() == answer.text(tokens)
    return None


def tokens_of(tokenizer: TokenizerAdapter) -> st.SearchStrategy[list[int]]:
    size = 256 + len(PIECES)
    # Bytes of characters that need several, and whole pieces, come often.
    return st.lists(st.one_of(st.integers(250, size - 8), st.integers(0, 255)), max_size=40)


stops = st.lists(st.text(st.sampled_from("ab \n.é日"), max_size=4), max_size=3).map(tuple)


@given(tokens_of(byte_level()), stops, st.sampled_from([None, "so:", "<end>", 97]))
@example([195, 195, 195, 168], ("é",), None)
def test_an_answer_ends_with_the_token_with_which_its_whole_text_ends(
    tokens: list[int], until: tuple[str, ...], end: str | int | None
) -> None:
    answer = AnswerExtractor(byte_level(), GenerationParams(until=until, think_end_token=end))

    assert grown(answer, tokens) == naive(answer, tokens)


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.text("ab .\n", max_size=4), max_size=3).map(tuple))
def test_a_decoder_that_drops_the_first_space_moves_no_end(tokens: list[int], until: tuple[str, ...]) -> None:
    answer = AnswerExtractor(TokenizerAdapter(JoinedWords(), prefix_token_id=0), GenerationParams(until=until))

    assert grown(answer, tokens) == naive(answer, tokens)


def test_a_long_answer_is_not_read_anew_for_each_token() -> None:
    read = 0

    class Counting(Letters):
        def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
            nonlocal read
            read += len(ids)
            return super().decode(ids, skip_special_tokens)

    growing = AnswerExtractor(TokenizerAdapter(Counting()), GenerationParams(until=("!",))).begin()

    assert not any(growing.add(ord("a")) for _ in range(1000))
    assert read < 5 * 1000
