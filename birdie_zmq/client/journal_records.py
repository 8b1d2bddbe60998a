"""The record format of a journal of answers: encoding and decoding of lines, and detection of damaged lines.

A journal begins with a header line that names its format. Each line after it is one answer: the CRC-32 of its payload in eight
hexadecimal digits, a space, and the payload, which is the JSON ``[key, answer]`` in ASCII::

    birdie_zmq journal 1
    b10827e5 ["5d41402abc4b2a76b9719d911017c592",[-4.52345,false]]

Floats are written as by Python's ``repr``, so the decoded value is equal to the last bit. A record with the key `DATE_KEY`
holds the date of prompts instead of an answer. This module does no I/O.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from zlib import crc32

import msgspec

from birdie_zmq.types import GenerationParams

HEADER = b"birdie_zmq journal 1\n"
_ANY_VERSION = b"birdie_zmq journal "

_KEY_DIGITS = 32
_PAYLOAD_AT = 9
_KEY_AT = slice(_PAYLOAD_AT + 2, _PAYLOAD_AT + 2 + _KEY_DIGITS)

DATE_KEY = hashlib.sha256(b"birdie_zmq: date of prompts").hexdigest()[:_KEY_DIGITS]
"""The key of the record with the date and time, in ISO 8601, that chat templates write into the prompts of this journal."""

RecordedAnswer = tuple[float, bool] | float | str
"""The types of answers that a journal holds: of a log-likelihood, a rolling log-likelihood, and a prompt."""


def answer_key(identity: str, kind: str, content: object) -> str:
    """Return a hash of everything that an answer depends on, as 32 hexadecimal digits; different models have different keys.

    Args:
        identity: The model's identity from its description.
        kind: lm_eval's name for the request type.
        content: The request: texts, or a prompt with its generation parameters and, if it is sampled, its random key.
    """
    plain = msgspec.to_builtins(content)
    settings = getattr(content, "settings", None)
    if isinstance(settings, GenerationParams):
        plain["settings"] = settings.key_content()
    canonical = json.dumps([identity, kind, plain], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_KEY_DIGITS]


def encode_record(key: str, answer: RecordedAnswer) -> bytes:
    """Return the line of one answer, newline included."""
    payload = json.dumps([key, answer], separators=(",", ":")).encode()
    return b"%08x %b\n" % (crc32(payload), payload)


def decode_record(line: bytes) -> tuple[str, RecordedAnswer] | None:
    """Return the key and the answer of a line without its newline, or None if the line is damaged."""
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


def header_error(header: bytes) -> str | None:
    """Return why a file is not a readable journal, or None for a journal, including one with an incomplete header line.

    Args:
        header: The first 64 bytes of the file, or all if it is shorter.
    """
    if header.startswith(HEADER) or HEADER.startswith(header):
        return None
    if header.startswith(_ANY_VERSION):
        version = header.removeprefix(_ANY_VERSION).split(b"\n")[0].decode("ascii", "replace")
        return f"is a journal of another version of birdie-zmq (format {version}; this version reads format 1)"
    return "is not a birdie-zmq journal"


def complete_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of blocks of bytes without their newlines; an incomplete last line is left out."""
    incomplete = b""
    for block in blocks:
        *lines, incomplete = (incomplete + block).split(b"\n")
        yield from lines


@dataclass(frozen=True)
class ScanResult:
    """The result of scanning a journal.

    Attributes:
        answers: The first answer for each requested key.
        damaged: The number of damaged lines.
        total: The number of undamaged answers, whatever their keys.
    """

    answers: dict[str, RecordedAnswer]
    damaged: int
    total: int


def scan(blocks: Iterable[bytes], keys: Collection[str]) -> ScanResult:
    """Find the answers for some keys in a journal's bytes, which begin with its header line.

    The checksum of every line is verified; only the lines with a requested key are decoded.
    """
    encoded_keys = {key.encode() for key in keys}
    answers: dict[str, RecordedAnswer] = {}
    count = damaged = dates = 0
    lines = complete_lines(blocks)
    next(lines, None)  # the header line
    for count, line in enumerate(lines, 1):  # noqa: B007 - used after the loop
        dates += line[_KEY_AT] == DATE_KEY.encode()
        if line[_KEY_AT] not in encoded_keys:
            damaged += not _is_intact(line)
        elif (record := decode_record(line)) is not None:
            answers.setdefault(*record)
        else:
            damaged += 1
    return ScanResult(answers, damaged, count - damaged - dates)
