"""The socket pair between the agent and its model process, which carries length-prefixed messages.

A socket pair has no name that another process could connect to, it ends with its processes, and each side learns at once
that the other is gone. The agent's side never blocks: a model process that does not read must not block the agent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol.codec import encode
from birdie_zmq.protocol.limits import MAX_FRAME_BYTES
from birdie_zmq.protocol.messages import Message

_LENGTH_BYTES = 4
_READ_BYTES = 1 << 16


class Received(NamedTuple):
    """A received message, and the frame that it was decoded from."""

    message: Any
    frame: bytes


class FrameDecoder:
    """A splitter of a byte stream into frames, each prefixed by its length in 4 bytes, big-endian."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes and return the frames that are now complete.

        Raises:
            MalformedMessage: A length is over the limit of a frame.
        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise MalformedMessage(f"a frame of {length:,} bytes on the channel of the model process")
            end = _LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[_LENGTH_BYTES:end]))
            del self._buffer[:end]
        return frames


class Channel:
    """One end of the socket pair.

    Args:
        sock: A connected stream socket, which the channel owns from now on.
        decode: Decodes a frame into a message, as returned by `birdie_zmq.protocol.codec.decoder`.
    """

    def __init__(self, sock: socket.socket, decode: Callable[[bytes], Any]) -> None:
        self._sock = sock
        self._decode = decode
        self._frames = FrameDecoder()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._sock.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` must be called once the descriptor is writable."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """Queue a message, and send as much as possible. A closed peer is reported by `receive` only."""
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> None:
        """Queue an encoded message as `send` does."""
        self._unsent += len(frame).to_bytes(_LENGTH_BYTES, "big") + frame
        self.flush()

    def flush(self) -> None:
        """Send as much as possible without blocking; on a blocking socket, send everything."""
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._unsent.clear()
                return
            del self._unsent[:sent]

    def receive(self) -> list[Received] | None:
        """Return the messages that have arrived, possibly none; None once the peer has closed its end.

        A blocking socket waits for the first bytes.
        """
        data = self._read()
        if data is None:
            return []
        return self._received(data) if data else None

    def receive_rest(self) -> list[Received]:
        """Return all messages that are still unread, on a non-blocking socket."""
        messages = []
        while data := self._read():
            messages += self._received(data)
        return messages

    def _received(self, data: bytes) -> list[Received]:
        return [Received(self._decode(frame), frame) for frame in self._frames.feed(data)]

    def _read(self) -> bytes | None:
        """Read some bytes: empty at the end of the stream, None where the socket would block."""
        try:
            return self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        """Close this end, which the peer notices."""
        self._sock.close()
