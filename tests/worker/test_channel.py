"""The channel: messages arrive complete and in order however the stream is cut, and a peer that does not read never blocks."""

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.limits import MAX_FRAME_BYTES
from birdie_zmq.types import ErrorReport
from birdie_zmq.worker.channel import Channel, FrameDecoder

decode = decoder(m.Message)
LARGE = m.PhaseChanged(phase="running", detail="x" * 4_000)


def stream_of(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


# --- Frames ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(1, 30)))
def test_frames_are_complete_however_the_stream_is_cut(frames: list[bytes], cuts: list[int]) -> None:
    stream = stream_of(*frames)
    frame_decoder = FrameDecoder()
    received = []
    for length in cuts:
        received += frame_decoder.feed(stream[:length])
        stream = stream[length:]
    received += frame_decoder.feed(stream)
    assert received == frames


def test_frame_is_returned_with_its_last_byte() -> None:
    frame_decoder = FrameDecoder()
    *most, last = stream_of(b"frame")
    for byte in most:
        assert frame_decoder.feed(bytes([byte])) == []
    assert frame_decoder.feed(bytes([last])) == [b"frame"]


def test_length_over_the_limit_is_refused_before_the_frame_arrives() -> None:
    assert FrameDecoder().feed(MAX_FRAME_BYTES.to_bytes(4, "big")) == []
    with pytest.raises(MalformedMessage, match="channel"):
        FrameDecoder().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


# --- Channels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a socket pair, both non-blocking."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


SocketPair = tuple[socket.socket, socket.socket]


def test_messages_arrive_in_order_in_both_directions(pair: SocketPair) -> None:
    ours, theirs = (Channel(end, decode) for end in pair)
    ours.send(m.LeaseDone(lease=1))
    ours.send(m.LeaseDone(lease=2))
    theirs.send(m.PhaseChanged(phase="compiling"))
    assert theirs.receive() == [m.LeaseDone(lease=1), m.LeaseDone(lease=2)]
    assert ours.receive() == [m.PhaseChanged(phase="compiling")]


def test_receive_rest_reads_long_last_messages(pair: SocketPair) -> None:
    ours, theirs = (Channel(end, decode) for end in pair)
    last = m.ModelLoadFailed(error=ErrorReport(code="model-load", message="x" * 500_000))
    theirs.send(LARGE)
    theirs.send(last)
    received = ours.receive_rest()
    while theirs.has_unsent:
        theirs.flush()
        received += ours.receive_rest()
    theirs.close()
    assert [*received, *ours.receive_rest()] == [LARGE, last]
    assert ours.receive() is None


def test_receive_does_not_block(pair: SocketPair) -> None:
    assert Channel(pair[0], decode).receive() == []


def test_message_is_received_once_it_is_complete(pair: SocketPair) -> None:
    ours, theirs = pair
    channel = Channel(ours, decode)
    stream = stream_of(encode(m.LeaseDone(lease=1)))
    theirs.send(stream[:-1])
    assert channel.receive() == []
    theirs.send(stream[-1:])
    assert channel.receive() == [m.LeaseDone(lease=1)]


def test_frame_that_is_not_a_message_is_malformed(pair: SocketPair) -> None:
    ours, theirs = pair
    theirs.send(stream_of(b"\xff\xff"))
    with pytest.raises(MalformedMessage):
        Channel(ours, decode).receive()


def test_peer_that_does_not_read_does_not_block_send(pair: SocketPair) -> None:
    ours, theirs = (Channel(end, decode) for end in pair)
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


def test_blocking_socket_sends_everything(pair: SocketPair) -> None:
    ours, theirs = pair
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


def test_last_messages_are_received_before_the_end_of_the_stream(pair: SocketPair) -> None:
    ours, theirs = (Channel(end, decode) for end in pair)
    theirs.send(m.LeaseDone(lease=1))
    theirs.close()
    assert ours.receive() == [m.LeaseDone(lease=1)]
    assert ours.receive() is None


def test_peer_that_closes_with_unread_messages_is_reported_closed(pair: SocketPair) -> None:
    ours, theirs = (Channel(end, decode) for end in pair)
    ours.send(m.LeaseDone(lease=1))
    theirs.close()
    assert ours.receive() is None


def test_send_to_a_closed_peer_does_not_raise(pair: SocketPair) -> None:
    ours, theirs = (Channel(end, decode) for end in pair)
    theirs.close()
    ours.send(m.LeaseDone(lease=1))
    assert not ours.has_unsent


def test_fileno_is_the_sockets_descriptor(pair: SocketPair) -> None:
    assert Channel(pair[0], decode).fileno() == pair[0].fileno()
