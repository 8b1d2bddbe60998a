"""The limits of a frame: each is enforced in decoding, and in encoding before anything is sent."""

import struct
import tracemalloc
from typing import Any

import msgpack
import msgspec
import pytest

from birdie_zmq.errors import MalformedMessage, MessageTooLarge, ModelCallError
from birdie_zmq.protocol import codec
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.items import MAX_ITEMS, PackedAnswers
from birdie_zmq.protocol.limits import MAX_TEXT_BYTES
from birdie_zmq.protocol.packing import pack_work
from birdie_zmq.types import DescribeWork, ErrorReport, ModelSpec

decode = decoder(m.Message)
OPENING = b"\x92" + msgpack.packb(m.WIRE_VERSION)
SECRET = "correct-horse-battery-staple"


def frame_of(body: object) -> bytes:
    frame: bytes = msgpack.packb([m.WIRE_VERSION, body])
    return frame


def answered(**fields: object) -> bytes:
    body = {
        "type": "lease-answered",
        "lease": 1,
        "indices": [0, 1],
        "answers": {"count": 2, "data": b"abc", **fields},
    }
    return frame_of(body)


# --- Decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        encode(m.Notice(batch=1, level="info", text="a")).replace(b"\x85", b"\x86") + b"\xa4once\xc2",
        OPENING + b"\xde\x10\x00" + b"\xa4type\xa4ping" * 4096,
    ],
    ids=["other-values", "many"],
)
def test_a_duplicate_key_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedMessage, match="twice"):
        decode(frame)


def test_the_number_of_the_answers_is_checked() -> None:
    assert isinstance(decode(answered()), m.LeaseAnswered)
    with pytest.raises(MalformedMessage, match=r"Expected `int` <= \d+ - at `\$\.answers\.count`"):
        decode(answered(count=MAX_ITEMS + 1))


def test_the_length_of_a_text_is_limited() -> None:
    """One character that needs four bytes makes Python use four bytes for each: 64 MiB would become 256 MiB."""
    text = "a" * (MAX_TEXT_BYTES - 4) + "\N{HUGGING FACE}"
    frame = encode(notice(text))
    assert isinstance(decode(frame), m.Notice)
    with pytest.raises(MalformedMessage, match="max_str_len"):
        decode(frame.replace(struct.pack(">I", MAX_TEXT_BYTES) + b"aa", struct.pack(">I", MAX_TEXT_BYTES + 1) + b"aaa"))


def test_a_text_over_the_limit_is_not_decoded() -> None:
    frame = encode(notice("")).replace(b"\xa4text\xa0", b"\xa4text\xdb" + struct.pack(">I", 2**25) + b"a" * 2**25)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage, match="max_str_len"):
            decode(frame)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize("index", [-1, MAX_ITEMS, 2**31, 1.0, True, None, "0"])
def test_indices_are_integers_below_the_number_of_items(index: object) -> None:
    body = msgpack.unpackb(answered())[1]
    with pytest.raises(MalformedMessage, match=r"\$\.indices\[1\]"):
        decode(frame_of({**body, "indices": [0, index]}))


@pytest.mark.parametrize("item", [0, []], ids=["integers", "lists"])
def test_long_lists_of_indices_and_of_sizes_are_malformed_before_they_are_built(item: object) -> None:
    body = msgpack.unpackb(answered())[1]
    submit = msgpack.unpackb(encode(m.Submit(batch=1, model=ModelSpec(tag="demo"), work=pack_work(DescribeWork()))))[1]
    sizes = {"sizes": [item] * 2**22, "data": b""}
    for long in ({**body, "indices": [item] * 2**22}, {**submit, "work": {**submit["work"], "items": sizes}}):
        frame = frame_of(long)
        tracemalloc.start()
        try:
            with pytest.raises(MalformedMessage, match=rf"length <= {MAX_ITEMS}"):
                decode(frame)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 2**20


@pytest.mark.parametrize(
    "frame",
    [
        encode(m.LeaseDone(lease=1)).replace(b"lease\x01", b"lease\xcd\x00\x01"),
        OPENING + b"\x82\xa5lease\x01\xa4type\xaalease-done",
        OPENING + b"\xde\x00\x01\xa4type\xa4ping",
        b"\xdc\x00\x02" + OPENING[1:] + b"\x81\xa4type\xa4ping",
        b"\x92\xcc" + OPENING[1:] + b"\x81\xa4type\xa4ping",
        frame_of({"type": "session-opened", "package_version": "1", "timeout_s": 1}),
    ],
    ids=["long-integer", "other-order", "long-map", "long-envelope", "long-version", "integer-for-a-float"],
)
def test_another_form_of_a_valid_message_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedMessage, match="another form"):
        decode(frame)


def test_a_short_frame_cannot_allocate_long_lists() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(OPENING + (b"\xdd" + struct.pack(">I", 2**20)) * 1_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


# --- Encoding --------------------------------------------------------------------------------------------------------

LONG_TEXT = "a" * (MAX_TEXT_BYTES + 1)
NO_ITEMS = PackedAnswers(count=0, data=b"")
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
        (m.Answered(batch=1, indices=[0] * (MAX_ITEMS + 1), answers=NO_ITEMS), rf"length <= {MAX_ITEMS}"),
        (m.Answered(batch=1, indices=[MAX_ITEMS], answers=NO_ITEMS), r"\$\.indices\[0\]"),
        (notice(LONG_TEXT), "max_str_len"),
        (notice(DEEP), r"\$\.text"),
        (notice(DEEPER), r"(recursion|\$\.text)"),  # Python 3.13 encodes deeper nesting, which the check then finds
        (notice({"a": "b"}), r"\$\.text"),
        (notice(msgspec.msgpack.Ext(1, b"a")), "got `ext`"),
        (
            m.Submit(batch=1, model=ModelSpec(tag="x" * 5_000), work=pack_work(DescribeWork())),
            r"length <= 4096 - at `\$\.model\.tag",
        ),
        (m.Heartbeat(phase="x" * 5_000), "length <= 4096"),
        (m.LeaseDone(lease=-1), r"\$\.lease"),
        (m.ModelLoaded(seconds=float("nan")), r"\$\.seconds"),
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
        answered(count=SECRET),
        answered(count={SECRET.encode(): SECRET}),
        answered(data=SECRET),
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
