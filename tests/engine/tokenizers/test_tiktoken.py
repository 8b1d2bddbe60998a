"""A real ``tiktoken.Encoding``, built from a small table without network."""

from __future__ import annotations

from typing import Any

import pytest
import tiktoken

from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import TokenizerError

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abab": 257}
END, CALL = 260, 262


def encoding(special: dict[str, int] | None = None) -> Any:
    """Return an encoding of bytes with two merges; the ids 258, 259 and 261 are not used."""
    special = {"<|endoftext|>": END, "<|call|>": CALL} if special is None else special
    return tiktoken.Encoding("tiny", pat_str=r"\w+|\W", mergeable_ranks=RANKS, special_tokens=special)


def test_texts_are_encoded_with_merges() -> None:
    assert TokenizerAdapter(encoding()).encode(["abc", "", "ababab"]) == [[256, 99], [], [257, 256]]


def test_text_that_spells_a_special_token_is_ordinary_text() -> None:
    adapter = TokenizerAdapter(encoding())

    assert adapter.encode(["<|endoftext|>ab"]) == [[*b"<|endoftext|>", 256]]
    assert adapter.encode_token("<|endoftext|>") == [END]
    assert adapter.encode_token("ab") == [256]


def test_eot_token_is_eos_and_the_prefix_token() -> None:
    adapter = TokenizerAdapter(encoding())

    assert (adapter.bos_token_id, adapter.eos_token_id, adapter.prefix_token_id) == (None, END, END)
    assert adapter.eos_token_ids == {END}


def test_attributes_take_precedence_over_eot_token() -> None:
    given = encoding()
    given.eos_token_id, given.bos_token_id, given.eos_token_ids = CALL, END, [3]
    adapter = TokenizerAdapter(given, add_bos=True)

    assert (adapter.eos_token_id, adapter.prefix_token_id) == (CALL, END)
    assert adapter.eos_token_ids == {CALL, 3}
    assert adapter.encode(["ab"]) == [[END, 256]]


def test_an_encoding_without_endoftext_is_rejected_with_the_attribute_to_set() -> None:
    with pytest.raises(
        TokenizerError, match=r"the Encoding has neither .* set tokenizer.eos_token_id = N in load_token"
    ):
        TokenizerAdapter(encoding({}))
    assert TokenizerAdapter(encoding({}), prefix_token_id=0).eos_token_ids == frozenset()


def test_add_bos_without_a_bos_token_is_rejected_with_the_attribute_to_set() -> None:
    with pytest.raises(TokenizerError, match=r"has no BOS token; set tokenizer.bos_token_id = N"):
        TokenizerAdapter(encoding(), add_bos=True)


@pytest.mark.parametrize("beyond", [258, 261, 263, 5000, 2**31 - 1])
def test_ids_that_the_encoding_does_not_have_decode_to_no_text(beyond: int) -> None:
    adapter = TokenizerAdapter(encoding())

    assert adapter.decode([beyond, 256, beyond, 99]) == "abc"
    assert adapter.decode([beyond], skip_special=False) == ""


def test_special_tokens_are_skipped_unless_requested() -> None:
    adapter = TokenizerAdapter(encoding())

    assert adapter.decode([256, CALL, END]) == "ab"
    assert adapter.decode([256, CALL, END], skip_special=False) == "ab<|call|><|endoftext|>"


def test_a_partial_character_is_the_replacement_character() -> None:
    adapter = TokenizerAdapter(encoding())

    assert adapter.decode(list("日".encode())[:2]) == "\N{REPLACEMENT CHARACTER}"
    assert adapter.decode(list("日".encode())) == "日"
