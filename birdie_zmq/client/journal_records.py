"""The lines of a journal of answers, as bytes: written, read back, and told from what a killed writer left.

A journal begins with a line that names its format. Each line after it is one answer: the CRC-32 of its payload in eight
hexadecimal digits, a space, and the payload, which is the JSON ``[key, answer]`` in ASCII::

    birdie_zmq journal 1
    b10827e5 ["5d41402abc4b2a76b9719d911017c592",[-4.52345,false]]

Floats are written as Python's ``repr`` has them, so what is read back is equal to the last bit. Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from zlib import crc32

import msgspec

HEADER = b"birdie_zmq journal 1\n"
_ANY_VERSION = b"birdie_zmq journal "

_KEY_DIGITS = 32
_PAYLOAD_AT = 9
_KEY_AT = slice(_PAYLOAD_AT + 2, _PAYLOAD_AT + 2 + _KEY_DIGITS)

Recorded = tuple[float, bool] | float | str
"""What a journal can hold: the answer to a log-likelihood, to a rolling one, and to a prompt."""


def answer_key(identity: str, kind: str, content: object) -> str:
    """What an answer depends on, as 32 hexadecimal digits: two models never have the same key.

    Args:
        identity: The model's, as its description gives it.
        kind: lm_eval's name for the kind of request.
        content: What is asked: texts, or a prompt with its settings and, where tokens are drawn, its random key.
    """
    canonical = json.dumps([identity, kind, msgspec.to_builtins(content)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_KEY_DIGITS]


def encode_record(key: str, answer: Recorded) -> bytes:
    """The line of one answer, newline included."""
    payload = json.dumps([key, answer], separators=(",", ":")).encode()
    return b"%08x %b\n" % (crc32(payload), payload)


def decode_record(line: bytes) -> tuple[str, Recorded] | None:
    """The key and the answer of a line without its newline; None where it is not what was once written."""
    if not _is_intact(line):
        return None
    try:
        payload = json.loads(line[_PAYLOAD_AT:])
    except ValueError:
        return None
    match payload:
        case [str(key), [float(loglikelihood), bool(is_greedy)]]:
            return key, (loglikelihood, is_greedy)
        case [str(key), float(answer) | str(answer)]:
            return key, answer
    return None


def _is_intact(line: bytes) -> bool:
    return line[:_PAYLOAD_AT] == b"%08x " % crc32(line[_PAYLOAD_AT:])


def fault_of_beginning(beginning: bytes) -> str | None:
    """Why a file that begins so is no journal to be read here; None for a journal, also one whose first line is torn.

    Args:
        beginning: The first 64 bytes, or all that there are.
    """
    if beginning.startswith(HEADER) or HEADER.startswith(beginning):
        return None
    if beginning.startswith(_ANY_VERSION):
        version = beginning.removeprefix(_ANY_VERSION).split(b"\n")[0].decode("ascii", "replace")
        return f"is a journal of another version of birdie-zmq (its format is {version}, and 1 is read here)"
    return "is no journal of birdie-zmq's"


def whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines in blocks of bytes, without their newlines; what follows the last newline is left out."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines


@dataclass(frozen=True)
class Scan:
    """What was found in a journal.

    Attributes:
        answers: The first answer under each key that was wanted.
        damaged: How many lines are not what was once written.
    """

    answers: dict[str, Recorded]
    damaged: int


def scan(blocks: Iterable[bytes], wanted: Collection[str]) -> Scan:
    """Look for answers in a journal's bytes, which begin with its first line.

    Every line is held against its checksum; only those that are wanted are decoded and kept.
    """
    keys = {key.encode() for key in wanted}
    answers: dict[str, Recorded] = {}
    damaged = 0
    lines = whole_lines(blocks)
    next(lines, None)  # the line that names the format
    for line in lines:
        if line[_KEY_AT] not in keys:
            damaged += not _is_intact(line)
        elif (record := decode_record(line)) is not None:
            answers.setdefault(*record)
        else:
            damaged += 1
    return Scan(answers, damaged)
