"""The channel: messages come whole and in order however the stream is cut, and a deaf peer blocks nobody."""

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import MAX_FRAME_BYTES, decoder, encode
from birdie_zmq.types import ErrorReport
from birdie_zmq.worker.channel import Channel, Frames

decode = decoder(m.Message)
LARGE = m.PhaseChanged(phase="running", detail="x" * 4_000)


def stream_of(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


# --- Frames ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(1, 30)))
def test_frames_come_whole_however_the_stream_is_cut(frames: list[bytes], cuts: list[int]) -> None:
    stream = stream_of(*frames)
    cutter = Frames()
    received = []
    for length in cuts:
        received += cutter.feed(stream[:length])
        stream = stream[length:]
    received += cutter.feed(stream)
    assert received == frames


def test_a_frame_is_given_out_with_its_last_byte() -> None:
    cutter = Frames()
    *most, last = stream_of(b"frame")
    for byte in most:
        assert cutter.feed(bytes([byte])) == []
    assert cutter.feed(bytes([last])) == [b"frame"]


def test_a_length_over_the_limit_is_refused_before_its_frame_is_there() -> None:
    assert Frames().feed(MAX_FRAME_BYTES.to_bytes(4, "big")) == []
    with pytest.raises(MalformedMessage, match="channel"):
        Frames().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


# --- Channels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a socket pair, neither of which blocks."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


StopConditions = tuple[socket.socket, socket.socket]


def test_messages_travel_both_ways_and_in_order(ends: StopConditions) -> None:
    ours, theirs = (Channel(end, decode) for end in ends)
    ours.send(m.LeaseDone(lease=1))
    ours.send(m.LeaseDone(lease=2))
    theirs.send(m.PhaseChanged(phase="compiling"))
    assert theirs.receive() == [m.LeaseDone(lease=1), m.LeaseDone(lease=2)]
    assert ours.receive() == [m.PhaseChanged(phase="compiling")]


def test_the_last_words_of_a_peer_are_heard_however_long_they_are(ends: StopConditions) -> None:
    ours, theirs = (Channel(end, decode) for end in ends)
    last = m.ModelLoadFailed(error=ErrorReport(code="model-load", message="x" * 500_000))
    theirs.send(LARGE)
    theirs.send(last)
    heard = ours.receive_rest()
    while theirs.has_unsent:
        theirs.flush()
        heard += ours.receive_rest()
    theirs.close()
    assert [*heard, *ours.receive_rest()] == [LARGE, last]
    assert ours.receive() is None


def test_receiving_does_not_wait(ends: StopConditions) -> None:
    assert Channel(ends[0], decode).receive() == []


def test_a_message_is_received_once_it_is_complete(ends: StopConditions) -> None:
    ours, theirs = ends
    channel = Channel(ours, decode)
    stream = stream_of(encode(m.LeaseDone(lease=1)))
    theirs.send(stream[:-1])
    assert channel.receive() == []
    theirs.send(stream[-1:])
    assert channel.receive() == [m.LeaseDone(lease=1)]


def test_a_frame_that_is_no_message_is_malformed(ends: StopConditions) -> None:
    ours, theirs = ends
    theirs.send(stream_of(b"\xff\xff"))
    with pytest.raises(MalformedMessage):
        Channel(ours, decode).receive()


def test_a_peer_that_does_not_read_blocks_nobody(ends: StopConditions) -> None:
    ours, theirs = (Channel(end, decode) for end in ends)
    for _ in range(1_000):
        ours.send(LARGE)
    assert ours.has_unsent
    received: list[object] = []
    while len(received) < 1_000:
        messages = theirs.receive()
        assert messages is not None
        received += messages
        ours.flush()
    assert received == [LARGE] * 1_000
    assert not ours.has_unsent


def test_a_blocking_end_sends_everything(ends: StopConditions) -> None:
    ours, theirs = ends
    ours.setblocking(True)
    theirs.setblocking(True)
    sender, receiver = Channel(ours, decode), Channel(theirs, decode)
    received: list[m.Message] = []

    def read() -> None:
        while (messages := receiver.receive()) is not None:
            received.extend(messages)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(1_000):
        sender.send(LARGE)
        assert not sender.has_unsent
    sender.close()
    reader.join()
    assert received == [LARGE] * 1_000


def test_what_a_peer_said_last_is_heard_before_its_end(ends: StopConditions) -> None:
    ours, theirs = (Channel(end, decode) for end in ends)
    theirs.send(m.LeaseDone(lease=1))
    theirs.close()
    assert ours.receive() == [m.LeaseDone(lease=1)]
    assert ours.receive() is None


def test_a_peer_that_leaves_with_unread_messages_is_gone(ends: StopConditions) -> None:
    ours, theirs = (Channel(end, decode) for end in ends)
    ours.send(m.LeaseDone(lease=1))
    theirs.close()
    assert ours.receive() is None


def test_sending_to_a_peer_that_is_gone_is_no_error(ends: StopConditions) -> None:
    ours, theirs = (Channel(end, decode) for end in ends)
    theirs.close()
    ours.send(m.LeaseDone(lease=1))
    assert not ours.has_unsent


def test_a_channel_is_waited_for_by_its_sockets_descriptor(ends: StopConditions) -> None:
    assert Channel(ends[0], decode).fileno() == ends[0].fileno()
