"""The limits of a frame, each attacked; and a sender hears of them before anything is sent."""

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
from birdie_zmq.protocol.codec import MAX_BINARY_BYTES, MAX_ELEMENTS, MAX_MAP_ENTRIES, MAX_TEXT_BYTES, decoder, encode
from birdie_zmq.types import ChatWork, DescribeWork, ErrorReport, LogLikelihoodWork, ModelSpec, RollingWork, Texts, Work

decode = decoder(m.Message)
OPENING = b"\x92" + msgpack.packb(m.WIRE_VERSION)
DEMO = ModelSpec(tag="demo")
SECRET = "correct-horse-battery-staple"


def frame_of(body: object) -> bytes:
    frame: bytes = msgpack.packb([m.WIRE_VERSION, body])
    return frame


def on_the_wire(array: NDArray[Any]) -> dict[bytes, Any]:
    packed: dict[bytes, Any] = msgpack.unpackb(msgpack.packb(pack_array(array)))
    return packed


def submit(work: Work, model: ModelSpec = DEMO) -> m.Submit:
    return m.Submit(batch=1, model=model, work=work)


def answered(**fields: object) -> bytes:
    body = {
        "type": "lease-answered",
        "lease": 1,
        "indices": on_the_wire(np.arange(2, dtype=np.int32)),
        "answers": {
            "type": "scores",
            "loglikelihoods": on_the_wire(np.zeros(2)),
            "greedy": on_the_wire(np.zeros(2, np.bool_)),
            **fields,
        },
    }
    return frame_of(body)


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [OPENING + b"\x82\xa4type\xa4pong\xa4type\xa4ping", OPENING + b"\xde\x10\x00" + b"\xa4type\xa4ping" * 4096],
    ids=["other-values", "many"],
)
def test_a_key_that_comes_twice_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedMessage, match="twice"):
        decode(frame)


@pytest.mark.parametrize("flags", [0, 1, 3])
def test_scores_have_as_many_greedy_flags(flags: int) -> None:
    assert isinstance(decode(answered()), m.LeaseAnswered)
    with pytest.raises(MalformedMessage, match="2 scores come with"):
        decode(answered(greedy=on_the_wire(np.zeros(flags, np.bool_))))


def test_a_truth_value_is_0_or_1() -> None:
    with pytest.raises(MalformedMessage, match="neither 0 nor 1"):
        decode(answered(greedy={**on_the_wire(np.zeros(2, np.bool_)), b"data": b"\x01\x02"}))


def test_a_text_has_a_limit_of_its_own() -> None:
    """One letter that needs four bytes makes all letters of a text take four: 64 MiB would become 256."""
    text = "a" * (MAX_TEXT_BYTES - 4) + "\N{HUGGING FACE}"
    frame = encode(submit(RollingWork(texts=[text])))
    assert isinstance(decode(frame), m.Submit)
    with pytest.raises(MalformedMessage, match="max_str_len"):
        decode(frame.replace(struct.pack(">I", MAX_TEXT_BYTES) + b"aa", struct.pack(">I", MAX_TEXT_BYTES + 1) + b"aaa"))


def test_the_elements_of_an_array_count() -> None:
    """As a list of Python's numbers, 64 MiB of int32 would take 600."""
    fits = m.LeaseAnswered(lease=1, indices=np.zeros(MAX_ELEMENTS - 100, np.int32), answers=Texts(texts=[]))
    decode(encode(fits))
    large = {b"nd": True, b"type": "<i4", b"kind": b"", b"shape": [MAX_ELEMENTS], b"data": bytes(4 * MAX_ELEMENTS)}
    body = {"type": "lease-answered", "lease": 1, "indices": large, "answers": {"type": "texts", "texts": []}}
    with pytest.raises(MalformedMessage, match="elements"):
        decode(frame_of(body))
    with pytest.raises(MalformedMessage, match="max_bin_len"):
        decode(frame_of({**body, "indices": {**large, b"data": bytes(MAX_BINARY_BYTES + 1)}}))


def test_a_short_frame_cannot_make_room_for_long_lists() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(OPENING + (b"\xdd" + struct.pack(">I", MAX_ELEMENTS)) * 1_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


# --- What a sender hears ---------------------------------------------------------------------------------------------

LONG_TEXT = "a" * (MAX_TEXT_BYTES + 1)
WIDE = [[{str(number): "" for number in range(MAX_MAP_ENTRIES + 1)}]]
DEEP: Any = "x"
for _ in range(300):
    DEEP = [DEEP]
DEEPER: Any = DEEP
for _ in range(2_000):
    DEEPER = [DEEPER]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (submit(LogLikelihoodWork(pairs=[("", "")] * (MAX_ELEMENTS // 3))), "elements"),
        (submit(RollingWork(texts=[""] * (MAX_ELEMENTS + 1))), "max_array_len"),
        (submit(RollingWork(texts=[LONG_TEXT])), "max_str_len"),
        (submit(RollingWork(texts=DEEP)), r"\$\.work\.texts"),
        (submit(RollingWork(texts=DEEPER)), "recursion"),
        (submit(ChatWork(conversations=WIDE, add_generation_prompt=True)), "max_map_len"),
        (submit(DescribeWork(), ModelSpec(tag="x" * 5_000)), r"length <= 4096 - at `\$\.model\.tag"),
        (m.Heartbeat(phase="x" * 5_000), "length <= 4096"),
        (m.LeaseDone(lease=-1), r"\$\.lease"),
        (m.ModelLoaded(seconds=float("nan")), r"\$\.seconds"),
        (m.LeaseAnswered(lease=1, indices=np.zeros((2, 1), np.int32), answers=Texts(texts=[])), "one dimension"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, msgspec.Struct) else value,
)
def test_what_a_receiver_would_refuse_is_not_sent(message: m.Message, words: str) -> None:
    with pytest.raises(MalformedMessage, match=rf"^this {type(message).__name__} cannot be sent: .*{words}"):
        encode(message)


def test_what_is_over_the_limit_of_a_frame_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", 1_000)
    with pytest.raises(MessageTooLarge):
        encode(submit(RollingWork(texts=["x" * 1_000])))


def test_an_error_of_any_text_can_be_sent() -> None:
    cause = ModelCallError("\ud800" + "x" * 20_000_000, remote_traceback="\udfff")
    report = ErrorReport.of(cause)
    received = decode(encode(m.LeaseFailed(lease=1, error=report)))
    assert received.error == report
    assert len(report.message) < 200_000
    assert report.message.startswith("\\ud800x")


# --- What is said of a frame -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        frame_of({"type": SECRET}),
        frame_of({"type": "ping", SECRET: 1}),
        frame_of({"type": "notice", "batch": 1, "level": SECRET, "text": ""}),
        frame_of({"type": "notice", "batch": 1, "level": f"x' - at `$.{SECRET}", "text": ""}),
        frame_of({"type": f"x'\n2026-01-01 WARNING {SECRET}"}),
        frame_of({"type": "submit", "batch": 1, "model": {"tag": "a"}, "work": {"type": SECRET}}),
        frame_of({"type": "submit", "batch": 1, "model": {"tag": "a"}, "work": {"type": "describe", SECRET: SECRET}}),
        frame_of({"type": "submit", "batch": SECRET, "model": {"tag": "a"}, "work": {"type": "describe"}}),
        answered(greedy={**on_the_wire(np.zeros(2)), b"type": SECRET}),
        answered(greedy={**on_the_wire(np.zeros(2)), b"shape": [SECRET]}),
        answered(greedy={**on_the_wire(np.zeros(2)), b"data": SECRET}),
        answered(greedy={**on_the_wire(np.zeros(2)), SECRET.encode(): SECRET}),
        OPENING + b"\xd9\x40" + SECRET.encode() + b"\xff" * 40,
        frame_of({"type": "ping"}) + SECRET.encode(),
        msgpack.packb([SECRET, SECRET]),
    ],
)
def test_a_refusal_quotes_nothing_of_the_frame(frame: bytes) -> None:
    with pytest.raises(MalformedMessage) as refused:
        decode(frame)
    report = ErrorReport.of(refused.value)
    assert SECRET not in f"{report.message} {report.traceback}"
    assert "\n" not in report.message
    assert report.traceback is None


def test_a_refusal_quotes_words_of_the_protocol() -> None:
    with pytest.raises(MalformedMessage, match=r"'lease-done' - at `\$\.type`"):
        decoder(m.ClientMessage)(encode(m.LeaseDone(lease=1)))


def test_what_cannot_be_sent_is_not_quoted() -> None:
    with pytest.raises(MalformedMessage) as refused:
        encode(submit(RollingWork(texts=[SECRET + "\ud800"])))
    report = ErrorReport.of(refused.value)
    assert SECRET not in f"{report.message} {report.traceback}"
