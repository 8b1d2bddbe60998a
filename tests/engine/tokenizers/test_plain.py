"""Objects with encode and decode only, and methods that resemble those of a library."""

from __future__ import annotations

from typing import Any

import pytest

from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.engine.tokenizers.plain import PlainTokenizer
from birdie_zmq.engine.tokenizers.recognition import recognise
from birdie_zmq.errors import TokenizerError

WORDS = ["<s>", "</s>", "one", "two"]


class Words:
    bos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) if word in WORDS else 2 for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join([WORDS[id] for id in ids])


class WordsByName(Words):
    def decode(self, ids: list[int]) -> str:
        table = dict(enumerate(WORDS))
        return " ".join([table[id] for id in ids])


class Bytes:
    """Bytes, which raise a ValueError for other ids, and a UnicodeDecodeError for a part of a character."""

    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()


@pytest.mark.parametrize(("make", "ids"), [(Words, [2, 3]), (WordsByName, [2, 3]), (Bytes, list(b"one two"))])
def test_ids_that_the_tokenizer_does_not_have_decode_to_no_text(make: type, ids: list[int]) -> None:
    adapter = TokenizerAdapter(make())

    assert adapter.decode([999, *ids, 999, 2**31 - 1]) == "one two"
    assert adapter.decode([999]) == ""


def test_an_error_for_known_ids_is_reported() -> None:
    class Pairs(Words):
        def decode(self, ids: list[int]) -> str:
            if len(ids) > 1:
                raise KeyError("pair")
            return super().decode(ids)

    with pytest.raises(TokenizerError, match="failed to decode 2 tokens: KeyError"):
        TokenizerAdapter(Pairs()).decode([2, 3])


def test_a_decoder_that_fails_on_its_own_tokens_is_reported() -> None:
    class ByText(Words):
        def decode(self, ids: list[int]) -> str:
            return " ".join([{"2": "one"}[id] for id in ids])  # type: ignore[index]

    with pytest.raises(TokenizerError, match="failed to decode 1 tokens: KeyError"):
        TokenizerAdapter(ByText()).decode([2])


@pytest.mark.parametrize("ids", [[0xE6], [999, 0xE6]])
def test_bytes_of_no_character_are_reported(ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match=r"failed to decode \d tokens: UnicodeDecodeError"):
        TokenizerAdapter(Bytes()).decode(ids)


class EncodesBatches(Words):
    """An object with one method that ``tokenizers.Tokenizer`` also has."""

    def encode_batch(self, texts: list[str]) -> Any:
        raise AssertionError("only encode is called")


class NamesIds(Words):
    """An object with one attribute that a SentencePieceProcessor has as a method."""

    bos_id = 0

    def eos_id(self) -> int:
        raise AssertionError("not a SentencePieceProcessor")


@pytest.mark.parametrize("make", [Words, EncodesBatches, NamesIds])
def test_an_object_that_has_only_some_methods_of_a_library_is_plain(make: type[Words]) -> None:
    assert isinstance(recognise(make()), PlainTokenizer)
    assert TokenizerAdapter(make()).encode(["one two", "two"]) == [[2, 3], [3]]
