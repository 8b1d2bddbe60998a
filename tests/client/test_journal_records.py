"""A journal's lines say exactly what was written, or nothing."""

from __future__ import annotations

from itertools import combinations
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.client.batching import Prompt, keyed
from birdie_zmq.client.journal_records import (
    HEADER,
    Recorded,
    answer_key,
    decode_record,
    encode_record,
    fault_of_beginning,
    scan,
    whole_lines,
)
from birdie_zmq.types import GenerationParams, SamplingParams

numbers = st.floats(allow_nan=False)
texts = st.text(st.characters())  # lone surrogates among them
answers: st.SearchStrategy[Recorded] = st.one_of(numbers, st.tuples(numbers, st.booleans()), texts)
records = st.lists(st.tuples(st.integers(0, 9).map("{:032x}".format), answers), max_size=8)


def journal_of(records: list[tuple[str, Recorded]]) -> bytes:
    return HEADER + b"".join(encode_record(key, answer) for key, answer in records)


def in_blocks(content: bytes, size: int) -> list[bytes]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def firsts(records: list[tuple[str, Recorded]]) -> dict[str, str]:
    """The first answer under each key, written so that -0.0 is not 0.0 and True is not 1."""
    return {key: repr(answer) for key, answer in reversed(records)}


def shown(found: dict[str, Recorded]) -> dict[str, str]:
    return {key: repr(answer) for key, answer in found.items()}


# --- Lines -----------------------------------------------------------------------------------------------------------


def test_the_form_of_a_line_stays_since_files_hold_it() -> None:
    line = encode_record("5d41402abc4b2a76b9719d911017c592", (-4.52345, False))

    assert line == b'b10827e5 ["5d41402abc4b2a76b9719d911017c592",[-4.52345,false]]\n'


@given(answers)
def test_an_answer_is_read_back_to_the_last_bit(answer: Recorded) -> None:
    line = encode_record("k" * 32, answer)

    assert line.isascii()
    assert line.count(b"\n") == 1
    assert repr(decode_record(line[:-1])) == repr(("k" * 32, answer))


@given(answers, st.data())
def test_a_line_with_any_byte_changed_is_no_answer(answer: Recorded, data: st.DataObject) -> None:
    line = bytearray(encode_record("0" * 32, answer)[:-1])
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] ^= data.draw(st.integers(1, 255))

    assert decode_record(bytes(line)) is None


@pytest.mark.parametrize("payload", [b"[1", b"7", b'["k"]', b'["k",7]', b'["k",[1.5,1]]', b'["k",null]', b"\xff", b""])
def test_a_line_that_is_sound_and_holds_no_answer_is_none(payload: bytes) -> None:
    assert decode_record(b"%08x %b" % (crc32(payload), payload)) is None


@given(st.binary(max_size=60).map(lambda content: content.replace(b"\x00", b"\n")), st.integers(1, 70))
def test_lines_are_the_same_however_the_bytes_come(content: bytes, size: int) -> None:
    assert list(whole_lines(in_blocks(content, size))) == content.split(b"\n")[:-1]


# --- A file ----------------------------------------------------------------------------------------------------------


@given(records, st.data())
def test_what_is_read_is_what_stands_wholly_before_the_end(
    records: list[tuple[str, Recorded]], data: st.DataObject
) -> None:
    content = journal_of(records)
    end = data.draw(st.integers(0, len(content)))
    whole = max((n for n in range(len(records) + 1) if len(journal_of(records[:n])) <= end), default=0)

    found = scan(in_blocks(content[:end], data.draw(st.integers(1, 100))), {key for key, _ in records})

    assert shown(found.answers) == firsts(records[:whole])
    assert found.damaged == 0


def test_only_what_is_wanted_is_kept() -> None:
    content = journal_of([("a" * 32, -1.0), ("b" * 32, -2.0)])

    assert scan([content], {"b" * 32, "c" * 32}).answers == {"b" * 32: -2.0}


def test_damaged_lines_are_counted_whether_they_were_wanted_or_not() -> None:
    lines = [bytearray(encode_record(letter * 32, -1.0)) for letter in "abcd"]
    lines[0][-3] ^= 1  # in the answer
    lines[2][20] ^= 1  # in the key
    found = scan([HEADER, *map(bytes, lines), b"\n"], {"a" * 32, "b" * 32})

    assert found.answers == {"b" * 32: -1.0}
    assert found.damaged == 3


@pytest.mark.parametrize("end", [0, 1, 10, len(HEADER) - 1, len(HEADER)])
def test_a_beginning_that_may_be_torn_is_a_journals(end: int) -> None:
    assert fault_of_beginning(HEADER[:end]) is None
    assert fault_of_beginning(journal_of([("a" * 32, 0.0)])[:64]) is None


@pytest.mark.parametrize(
    ("beginning", "fault"),
    [
        (b"hello\n", "is no journal"),
        (b"\x00", "is no journal"),
        (HEADER[1:], "is no journal"),
        (b"birdie_zmq journal 2\n0000", "its format is 2, and 1 is read here"),
        (b"birdie_zmq journal 10", "its format is 10, and 1 is read here"),
        (HEADER[:-1] + b"\r\n", "its format is 1\r, and 1 is read here"),
    ],
)
def test_other_beginnings_are_told_apart(beginning: bytes, fault: str) -> None:
    assert fault in (fault_of_beginning(beginning) or "")


# --- Keys ------------------------------------------------------------------------------------------------------------


def test_the_keys_stay_since_files_hold_them() -> None:
    prompt = Prompt("a", GenerationParams(until=("x",)))

    assert answer_key("identity", "loglikelihood", ("a", "b")) == "d58aff6c822a5e0588dd03bd2722ee44"
    assert answer_key("identity", "generate_until", prompt) == "4a37f78ffc8acfa22294637669aa6292"


def test_another_model_kind_text_setting_or_random_key_is_another_key() -> None:
    greedy, short, drawn = (
        GenerationParams(),
        GenerationParams(max_gen_toks=1),
        GenerationParams(sampling=SamplingParams()),
    )
    first, second = keyed([("a", drawn), ("a", drawn)], seed=0)
    (other_seed,) = keyed([("a", drawn)], seed=1)
    asked: list[tuple[str, str, object]] = [
        ("one", "loglikelihood", ("a", "bc")),
        ("two", "loglikelihood", ("a", "bc")),
        ("one", "loglikelihood", ("ab", "c")),
        ("one", "loglikelihood_rolling", "a"),
        ("one", "generate_until", "a"),
        ("one", "generate_until", Prompt("a", greedy)),
        ("one", "generate_until", Prompt("b", greedy)),
        ("one", "generate_until", Prompt("a", short)),
        ("one", "generate_until", Prompt("a", GenerationParams(until=("x",)))),
        ("one", "generate_until", Prompt("a", GenerationParams(until=("x", "y")))),
        ("one", "generate_until", first),
        ("one", "generate_until", second),
        ("one", "generate_until", other_seed),
        ("one", "generate_until", Prompt("a", GenerationParams(sampling=SamplingParams(top_k=1)), first.key)),
    ]

    for one, other in combinations(asked, 2):
        assert answer_key(*one) != answer_key(*other), (one, other)


@given(st.tuples(texts, texts))
def test_equal_content_has_one_key_whatever_its_characters(pair: tuple[str, str]) -> None:
    assert answer_key("one", "loglikelihood", pair) == answer_key("one", "loglikelihood", [*pair])
