"""A line of a journal decodes to exactly the recorded answer, or is rejected."""

from __future__ import annotations

from itertools import combinations
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.client.batching import Prompt, assign_random_keys
from birdie_zmq.client.journal_records import (
    DATE_KEY,
    HEADER,
    RecordedAnswer,
    answer_key,
    complete_lines,
    decode_record,
    encode_record,
    header_error,
    scan,
)
from birdie_zmq.types import GenerationParams, LogitsParams, SamplingParams

numbers = st.floats(allow_nan=False)
texts = st.text(st.characters())  # lone surrogates among them
answers: st.SearchStrategy[RecordedAnswer] = st.one_of(numbers, st.tuples(numbers, st.booleans()), texts)
records = st.lists(st.tuples(st.integers(0, 9).map("{:032x}".format), answers), max_size=8)


def journal_of(records: list[tuple[str, RecordedAnswer]]) -> bytes:
    return HEADER + b"".join(encode_record(key, answer) for key, answer in records)


def in_blocks(content: bytes, size: int) -> list[bytes]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def firsts(records: list[tuple[str, RecordedAnswer]]) -> dict[str, str]:
    """Return the repr of the first answer of each key, so that -0.0 differs from 0.0 and True from 1."""
    return {key: repr(answer) for key, answer in reversed(records)}


def reprs(found: dict[str, RecordedAnswer]) -> dict[str, str]:
    return {key: repr(answer) for key, answer in found.items()}


# --- Lines -----------------------------------------------------------------------------------------------------------


def test_the_line_format_is_stable() -> None:
    line = encode_record("5d41402abc4b2a76b9719d911017c592", (-4.52345, False))

    assert line == b'b10827e5 ["5d41402abc4b2a76b9719d911017c592",[-4.52345,false]]\n'


@given(answers)
def test_an_answer_is_decoded_bit_for_bit(answer: RecordedAnswer) -> None:
    line = encode_record("k" * 32, answer)

    assert line.isascii()
    assert line.count(b"\n") == 1
    assert repr(decode_record(line[:-1])) == repr(("k" * 32, answer))


@given(answers, st.data())
def test_a_line_with_a_changed_byte_is_rejected(answer: RecordedAnswer, data: st.DataObject) -> None:
    line = bytearray(encode_record("0" * 32, answer)[:-1])
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] ^= data.draw(st.integers(1, 255))

    assert decode_record(bytes(line)) is None


@pytest.mark.parametrize("payload", [b"[1", b"7", b'["k"]', b'["k",7]', b'["k",[1.5,1]]', b'["k",null]', b"\xff", b""])
def test_a_valid_line_without_an_answer_is_rejected(payload: bytes) -> None:
    assert decode_record(b"%08x %b" % (crc32(payload), payload)) is None


@given(st.binary(max_size=60).map(lambda content: content.replace(b"\x00", b"\n")), st.integers(1, 70))
def test_lines_do_not_depend_on_the_block_size(content: bytes, size: int) -> None:
    assert list(complete_lines(in_blocks(content, size))) == content.split(b"\n")[:-1]


# --- A file ----------------------------------------------------------------------------------------------------------


@given(records, st.data())
def test_a_truncated_journal_yields_its_complete_lines(
    records: list[tuple[str, RecordedAnswer]], data: st.DataObject
) -> None:
    content = journal_of(records)
    end = data.draw(st.integers(0, len(content)))
    complete = max((n for n in range(len(records) + 1) if len(journal_of(records[:n])) <= end), default=0)

    found = scan(in_blocks(content[:end], data.draw(st.integers(1, 100))), {key for key, _ in records})

    assert reprs(found.answers) == firsts(records[:complete])
    assert (found.damaged, found.total) == (0, complete)


def test_only_requested_keys_are_returned() -> None:
    content = journal_of([("a" * 32, -1.0), ("b" * 32, -2.0)])

    found = scan([content], {"b" * 32, "c" * 32})
    assert found.answers == {"b" * 32: -2.0}
    assert found.total == 2


def test_damaged_lines_are_counted_whether_or_not_their_keys_are_requested() -> None:
    lines = [bytearray(encode_record(letter * 32, -1.0)) for letter in "abcd"]
    lines[0][-3] ^= 1  # in the answer
    lines[2][20] ^= 1  # in the key
    found = scan([HEADER, *map(bytes, lines), b"\n"], {"a" * 32, "b" * 32})

    assert found.answers == {"b" * 32: -1.0}
    assert (found.damaged, found.total) == (3, 2)


@pytest.mark.parametrize("end", [0, 1, 10, len(HEADER) - 1, len(HEADER)])
def test_a_truncated_header_is_accepted(end: int) -> None:
    assert header_error(HEADER[:end]) is None
    assert header_error(journal_of([("a" * 32, 0.0)])[:64]) is None


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (b"hello\n", "is not a birdie-zmq journal"),
        (b"\x00", "is not a birdie-zmq journal"),
        (HEADER[1:], "is not a birdie-zmq journal"),
        (b"birdie_zmq journal 2\n0000", "(format 2; this version reads format 1)"),
        (b"birdie_zmq journal 10", "(format 10; this version reads format 1)"),
        (HEADER[:-1] + b"\r\n", "(format 1\r; this version reads format 1)"),
    ],
)
def test_other_headers_are_rejected(header: bytes, error: str) -> None:
    assert error in (header_error(header) or "")


# --- Keys ------------------------------------------------------------------------------------------------------------


def test_answer_keys_are_stable() -> None:
    prompt = Prompt("a", GenerationParams(until=("x",)))

    assert answer_key("identity", "loglikelihood", ("a", "b")) == "d58aff6c822a5e0588dd03bd2722ee44"
    assert answer_key("identity", "generate_until", prompt) == "4a37f78ffc8acfa22294637669aa6292"


def test_the_key_depends_on_model_kind_text_settings_and_random_key() -> None:
    greedy, short, sampled = (
        GenerationParams(),
        GenerationParams(max_gen_toks=1),
        GenerationParams(sampling=SamplingParams()),
    )
    first, second = assign_random_keys([("a", sampled), ("a", sampled)], seed=0)
    (other_seed,) = assign_random_keys([("a", sampled)], seed=1)
    requests: list[tuple[str, str, object]] = [
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
        ("one", "generate_until", Prompt("a", GenerationParams(logits=LogitsParams(repetition_penalty=1.5)))),
        ("one", "generate_until", Prompt("a", GenerationParams(logits=LogitsParams(suppress_tokens=(1,))))),
        ("one", "generate_until", Prompt("a", GenerationParams(given=("repetition_penalty",)))),
        ("one", "generate_until", first),
        ("one", "generate_until", second),
        ("one", "generate_until", other_seed),
        ("one", "generate_until", Prompt("a", GenerationParams(sampling=SamplingParams(top_k=1)), first.key)),
    ]

    for one, other in combinations(requests, 2):
        assert answer_key(*one) != answer_key(*other), (one, other)


@given(st.tuples(texts, texts))
def test_equal_content_has_the_same_key(pair: tuple[str, str]) -> None:
    assert answer_key("one", "loglikelihood", pair) == answer_key("one", "loglikelihood", [*pair])


def test_the_record_of_a_date_is_found_and_is_no_answer() -> None:
    lines = [HEADER, encode_record(DATE_KEY, "2026-11-28T23:59:00"), encode_record("a" * 32, -1.5)]

    found = scan(lines, [DATE_KEY])

    assert found.answers == {DATE_KEY: "2026-11-28T23:59:00"}
    assert (found.damaged, found.total) == (0, 1)
