"""The extraction of answers, with and without reasoning before them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from birdie_zmq.engine.detokenizer import AnswerExtractor, StopConditions, cut_at_first
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.types import GenerationParams

END = 256
"""A special token, which decoding leaves out, written </think>."""


class Letters:
    """One token per byte, and a special one."""

    eos_token_id = 257

    def encode(self, text: str) -> list[int]:
        parts = [list(part.encode()) for part in text.split("</think>")]
        return [token for part in parts[:-1] for token in (*part, END)] + parts[-1]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        written = [chr(id) if id < 256 else "" if skip_special_tokens else "</think>" for id in ids]
        return "".join(written)


def extract(text: str, *until: str, end: str | int | None = None) -> tuple[str, bool]:
    tokenizer = TokenizerAdapter(Letters())
    answer = AnswerExtractor(tokenizer, GenerationParams(until=until, think_end_token=end))
    generated = tokenizer.encode([text])[0]
    return answer.text(generated), answer.is_finished(generated)


def test_text_ends_before_the_first_stop_string() -> None:
    assert extract(" 12 plums.\nQuestion", "\n", "Q") == (" 12 plums.", True)
    assert extract(" 12 plums", "\n") == (" 12 plums", False)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("ab</think>cd", "think", "ab"),  # inside the name of the special token
        ("ab</think>cd", "k>c", "ab"),
        ("ab</think>cd", "</think>c", "ab"),
        ("ab</think>cd", "b</th", "a"),
        ("ab</think>c</think>d", "c</", "ab"),
        ("ab</think>cd", "d", "abc"),
    ],
)
def test_a_stop_string_inside_a_special_token_leaves_no_part_of_its_name(text: str, stop: str, expected: str) -> None:
    assert extract(text, stop) == (expected, True)


@pytest.mark.parametrize("end", ["</think>", END])
def test_a_special_token_ends_the_reasoning(end: Any) -> None:
    assert extract("3 and\n\n9 </think>\n\n 12\nQuestion", "\n", end=end) == ("12", True)


@pytest.mark.parametrize("end", ["so:", ord(":")])
def test_a_text_or_an_ordinary_token_ends_the_reasoning(end: Any) -> None:
    assert extract("3 and\n\n9 so:\n 12\nQuestion", "\n", end=end) == ("12", True)


@pytest.mark.parametrize("end", ["</think>", END, "so:", ord("!")])
def test_a_stop_string_within_the_reasoning_is_ignored(end: Any) -> None:
    assert extract("3 and\n\n9", "\n", end=end)[1] is False


@pytest.mark.parametrize("end", ["</think>", END, "so:", ord("!")])
def test_reasoning_that_never_ends_is_the_answer(end: Any) -> None:
    assert extract(" 3 and\n\n9", "\n", end=end)[0] == "3 and"


@pytest.mark.parametrize("end", ["so:", ord(":")])
def test_the_last_end_of_reasoning_counts(end: Any) -> None:
    assert extract("a so: b\n so: c\n d", "\n", end=end) == ("c", True)


def test_white_space_is_kept_without_reasoning() -> None:
    assert extract("  12 ") == ("  12 ", False)


# --- Incremental detokenization ---------------------------------------------------------------------------------------

FREQUENT = ["a", "b", "ab", "ba", "aa", " a", "\n", "\n\n", " ", ".", "é", "日", "so:", "<end>"]


@functools.cache
def byte_level() -> TokenizerAdapter:
    """Tokens of one byte, and of frequent strings: a token may hold half a character, or two words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    frequent = [spell.pre_tokenize_str(text)[0][0] for text in FREQUENT]
    words = dict.fromkeys([*alphabet, *frequent])
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="a"))
    tokenizer.decoder = decoders.ByteLevel()
    return TokenizerAdapter(tokenizer, prefix_token_id=0)


class JoinedWords:
    """A decoder that drops a leading space, as many do; its tokens are words."""

    eos_token_id = None

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        return "".join((" a", "b", " .", "\n")[number] for number in ids).removeprefix(" ")


def finished_naively(answer: AnswerExtractor, tokens: list[int]) -> int | None:
    """Return after how many tokens the answer is finished; detokenize all of it after each token."""
    return next((count for count in range(1, len(tokens) + 1) if answer.is_finished(tokens[:count])), None)


def finished_incrementally(answer: AnswerExtractor, tokens: list[int]) -> int | None:
    detokenizer = answer.begin()
    for count, token in enumerate(tokens, 1):
        if detokenizer.add(token):
            assert detokenizer.tokens == tokens[:count]
            return count
    assert detokenizer.text() == answer.text(tokens)
    return None


def tokens_of(tokenizer: TokenizerAdapter) -> st.SearchStrategy[list[int]]:
    size = 256 + len(FREQUENT)
    # Bytes of multi-byte characters, and frequent strings, are likely.
    return st.lists(st.one_of(st.integers(250, size - 8), st.integers(0, 255)), max_size=40)


stops = st.lists(st.text(st.sampled_from("ab \n.é日"), max_size=4), max_size=3).map(tuple)


@given(tokens_of(byte_level()), stops, st.sampled_from([None, "so:", "<end>", 97]))
@example([195, 195, 195, 168], ("é",), None)
def test_incremental_detokenization_ends_at_the_same_token_as_the_whole_text(
    tokens: list[int], until: tuple[str, ...], end: str | int | None
) -> None:
    answer = AnswerExtractor(byte_level(), GenerationParams(until=until, think_end_token=end))

    assert finished_incrementally(answer, tokens) == finished_naively(answer, tokens)


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.text("ab .\n", max_size=4), max_size=3).map(tuple))
def test_a_decoder_that_drops_the_first_space_does_not_move_the_end(tokens: list[int], until: tuple[str, ...]) -> None:
    answer = AnswerExtractor(TokenizerAdapter(JoinedWords(), prefix_token_id=0), GenerationParams(until=until))

    assert finished_incrementally(answer, tokens) == finished_naively(answer, tokens)


def test_a_long_answer_is_not_decoded_again_for_each_token() -> None:
    decoded = 0

    class Counting(Letters):
        def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
            nonlocal decoded
            decoded += len(ids)
            return super().decode(ids, skip_special_tokens)

    detokenizer = AnswerExtractor(TokenizerAdapter(Counting()), GenerationParams(until=("!",))).begin()

    assert not any(detokenizer.add(ord("a")) for _ in range(1000))
    assert decoded < 5 * 1000


# --- Stop strings and other ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stops", "cut"),
    [
        ("one\ntwo", ["\n"], "one"),
        ("one. two\n", ["\n", ". "], "one"),
        ("one. two\n", [". ", "\n"], "one"),
        ("aab", ["ab", "aab"], ""),
        ("a stop, a stop", ["stop"], "a "),
        ("stop", ["stop"], ""),
    ],
)
def test_text_is_cut_before_the_earliest_stop_string(text: str, stops: list[str], cut: str) -> None:
    assert cut_at_first(text, stops) == (cut, True)


@pytest.mark.parametrize("stops", [[], ["x"], ["onee"], ["One"], [""]])
def test_text_without_a_stop_string_is_kept_whole(stops: list[str]) -> None:
    assert cut_at_first("one", stops) == ("one", False)


def test_an_empty_stop_string_does_not_hide_another() -> None:
    assert cut_at_first("one two", ["", " "]) == ("one", True)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=4))
def test_the_cut_text_is_the_longest_prefix_before_any_stop_string(text: str, stops: list[str]) -> None:
    cut, stopped = cut_at_first(text, stops)

    assert text.startswith(cut)
    assert stopped is any(stop in text for stop in stops)
    assert stopped is any(text[len(cut) :].startswith(stop) for stop in stops)
    assert not any(stop in cut for stop in stops)


@pytest.mark.parametrize(
    ("tokens", "text", "is_finished"),
    [([97, 98], "ab", False), ([97, 1], "a", True), ([97, 98, 99], "abc", True), ([97, 33], "a!", True)],
)
def test_an_end_token_or_the_maximum_ends_an_answer(tokens: list[int], text: str, is_finished: bool) -> None:
    stop = StopConditions({1, 33}, max_gen_toks=3, kept_token_ids={33})
    answer = AnswerExtractor(TokenizerAdapter(Letters()), GenerationParams()).begin()

    finished = [stop.add_token(answer, token) for token in tokens]

    assert finished == [False] * (len(tokens) - 1) + [is_finished]
    assert answer.text() == text
