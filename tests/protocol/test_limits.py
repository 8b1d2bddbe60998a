"""The limits of a frame: each is enforced in decoding, and in encoding before anything is sent."""

import struct
import tracemalloc
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.errors import MalformedMessage, MessageTooLarge, ModelCallError
from birdie_zmq.protocol import codec
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.arrays import pack_array
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.items import Items
from birdie_zmq.protocol.limits import MAX_ELEMENTS, MAX_FRAME_BYTES, MAX_MAP_ENTRIES, MAX_TEXT_BYTES, unpack
from birdie_zmq.protocol.packing import pack_work
from birdie_zmq.types import DescribeWork, ErrorReport, ModelSpec

decode = decoder(m.Message)
OPENING = b"\x92" + msgpack.packb(m.WIRE_VERSION)
SECRET = "correct-horse-battery-staple"


def frame_of(body: object) -> bytes:
    frame: bytes = msgpack.packb([m.WIRE_VERSION, body])
    return frame


def as_received(array: NDArray[Any]) -> dict[bytes, Any]:
    packed: dict[bytes, Any] = msgpack.unpackb(msgpack.packb(pack_array(array)))
    return packed


def answered(**fields: object) -> bytes:
    body = {
        "type": "lease-answered",
        "lease": 1,
        "indices": as_received(np.arange(2, dtype=np.int32)),
        "answers": {"sizes": as_received(np.array([2, 1], np.int32)), "data": b"abc", **fields},
    }
    return frame_of(body)


# --- Decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [OPENING + b"\x82\xa4type\xa4pong\xa4type\xa4ping", OPENING + b"\xde\x10\x00" + b"\xa4type\xa4ping" * 4096],
    ids=["other-values", "many"],
)
def test_a_duplicate_key_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedMessage, match="twice"):
        decode(frame)


def test_the_sizes_of_the_answers_are_checked() -> None:
    assert isinstance(decode(answered()), m.LeaseAnswered)
    with pytest.raises(MalformedMessage, match=r"do not add up to their data - at `\$\.answers`"):
        decode(answered(data=b"abcd"))


def test_the_length_of_a_text_is_limited() -> None:
    """One character that needs four bytes makes Python use four bytes for each: 64 MiB would become 256 MiB."""
    text = "a" * (MAX_TEXT_BYTES - 4) + "\N{HUGGING FACE}"
    frame = encode(m.Notice(batch=1, level="info", text=text))
    assert isinstance(decode(frame), m.Notice)
    with pytest.raises(MalformedMessage, match="max_str_len"):
        decode(frame.replace(struct.pack(">I", MAX_TEXT_BYTES) + b"aa", struct.pack(">I", MAX_TEXT_BYTES + 1) + b"aaa"))


def test_array_elements_count_towards_the_limit() -> None:
    """As a list of Python integers, 64 MiB of int32 would take 600 MiB."""
    fits = m.LeaseAnswered(lease=1, indices=np.zeros(MAX_ELEMENTS - 100, np.int32), answers=Items.join([]))
    decode(encode(fits))
    large = {b"nd": True, b"type": "<i4", b"kind": b"", b"shape": [MAX_ELEMENTS], b"data": bytes(4 * MAX_ELEMENTS)}
    with pytest.raises(MalformedMessage, match="elements"):
        decode(answered(sizes=large))
    with pytest.raises(MalformedMessage, match="max_bin_len"):
        unpack(msgpack.packb({**large, b"data": bytes(MAX_FRAME_BYTES + 1)}))


def test_a_short_frame_cannot_allocate_long_lists() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(OPENING + (b"\xdd" + struct.pack(">I", MAX_ELEMENTS)) * 1_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


# --- Encoding --------------------------------------------------------------------------------------------------------

LONG_TEXT = "a" * (MAX_TEXT_BYTES + 1)
NO_ITEMS = Items.join([])
DEEP: Any = "x"
for _ in range(300):
    DEEP = [DEEP]
DEEPER: Any = DEEP
for _ in range(2_000):
    DEEPER = [DEEPER]


def notice(text: Any) -> m.Notice:
    return m.Notice(batch=1, level="info", text=text)


@pytest.mark.parametrize(
    ("message", "pattern"),
    [
        (m.Answered(batch=1, indices=np.zeros(MAX_ELEMENTS, np.int32), answers=NO_ITEMS), "elements"),
        (notice([""] * (MAX_ELEMENTS + 1)), "max_array_len"),
        (notice(LONG_TEXT), "max_str_len"),
        (notice(DEEP), r"\$\.text"),
        (notice(DEEPER), "recursion"),
        (notice({str(number): "" for number in range(MAX_MAP_ENTRIES + 1)}), "max_map_len"),
        (notice({1: ""}), "int is not allowed for map key"),
        (notice(msgpack.ExtType(1, b"a")), "max_ext_len"),
        (
            m.Submit(batch=1, model=ModelSpec(tag="x" * 5_000), work=pack_work(DescribeWork())),
            r"length <= 4096 - at `\$\.model\.tag",
        ),
        (m.Heartbeat(phase="x" * 5_000), "length <= 4096"),
        (m.LeaseDone(lease=-1), r"\$\.lease"),
        (m.ModelLoaded(seconds=float("nan")), r"\$\.seconds"),
        (m.LeaseAnswered(lease=1, indices=np.zeros((2, 1), np.int32), answers=NO_ITEMS), "one dimension"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, msgspec.Struct) else value,
)
def test_invalid_messages_are_not_encoded(message: m.Message, pattern: str) -> None:
    with pytest.raises(MalformedMessage, match=rf"^this {type(message).__name__} cannot be sent: .*{pattern}"):
        encode(message)


def test_a_message_above_the_frame_limit_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", 1_000)
    with pytest.raises(MessageTooLarge):
        encode(notice("x" * 1_000))


def test_an_error_with_any_text_can_be_encoded() -> None:
    cause = ModelCallError("\ud800" + "x" * 20_000_000, remote_traceback="\udfff")
    report = ErrorReport.of(cause)
    received = decode(encode(m.LeaseFailed(lease=1, error=report)))
    assert received.error == report
    assert len(report.message) < 200_000
    assert report.message.startswith("\\ud800x")


# --- Error messages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        frame_of({"type": SECRET}),
        frame_of({"type": "ping", SECRET: 1}),
        frame_of({"type": "notice", "batch": 1, "level": SECRET, "text": ""}),
        frame_of({"type": "notice", "batch": 1, "level": f"x' - at `$.{SECRET}", "text": ""}),
        frame_of({"type": f"x'\n2026-01-01 WARNING {SECRET}"}),
        frame_of({"type": "submit", "batch": 1, "model": {"tag": "a"}, "work": {"kind": SECRET}}),
        frame_of({"type": "submit", "batch": 1, "model": {"tag": "a"}, "work": {"kind": "describe", SECRET: SECRET}}),
        frame_of({"type": "submit", "batch": SECRET, "model": {"tag": "a"}, "work": {"kind": "describe"}}),
        answered(sizes={**as_received(np.zeros(2)), b"type": SECRET}),
        answered(sizes={**as_received(np.zeros(2)), b"shape": [SECRET]}),
        answered(sizes={**as_received(np.zeros(2)), b"data": SECRET}),
        answered(sizes={**as_received(np.zeros(2)), SECRET.encode(): SECRET}),
        answered(data=SECRET),
        answered(data=SECRET.encode()),
        OPENING + b"\xd9\x40" + SECRET.encode() + b"\xff" * 40,
        frame_of({"type": "ping"}) + SECRET.encode(),
        msgpack.packb([SECRET, SECRET]),
    ],
)
def test_decoding_errors_quote_nothing_of_the_frame(frame: bytes) -> None:
    with pytest.raises(MalformedMessage) as raised:
        decode(frame)
    report = ErrorReport.of(raised.value)
    assert SECRET not in f"{report.message} {report.traceback}"
    assert "\n" not in report.message
    assert report.traceback is None


def test_decoding_errors_quote_names_of_the_protocol() -> None:
    with pytest.raises(MalformedMessage, match=r"'lease-done' - at `\$\.type`"):
        decoder(m.ClientMessage)(encode(m.LeaseDone(lease=1)))


def test_encoding_errors_quote_nothing_of_the_message() -> None:
    with pytest.raises(MalformedMessage) as raised:
        encode(notice(SECRET + "\ud800"))
    report = ErrorReport.of(raised.value)
    assert SECRET not in f"{report.message} {report.traceback}"
