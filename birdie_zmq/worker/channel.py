"""The socket pair between the agent and its model process: messages with a length before them.

A socket pair has no name that a stranger could connect to, ends with its processes, and tells each side at once when
the other is gone. The agent's side never blocks: a model process that does not read must not silence the agent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol.codec import MAX_FRAME_BYTES, encode
from birdie_zmq.protocol.messages import Message

_LENGTH_BYTES = 4
_READ_BYTES = 1 << 16


class Frames:
    """Cuts a stream of bytes into frames; each stands behind its length, 4 bytes, big-endian."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes in; the frames that are complete now.

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
        end: A connected stream socket, owned by the channel from now on.
        decode: Makes a message of a frame, as `birdie_zmq.protocol.codec.decoder` gives it.
    """

    def __init__(self, end: socket.socket, decode: Callable[[bytes], Any]) -> None:
        self._end = end
        self._decode = decode
        self._frames = Frames()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._end.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` has something to do once the descriptor is writable."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """Queue a message, and send what can be sent. A peer that is gone is not noticed here but by `receive`."""
        frame = encode(message)
        self._unsent += len(frame).to_bytes(_LENGTH_BYTES, "big") + frame
        self.flush()

    def flush(self) -> None:
        """Send what can be sent now; everything, on a blocking socket."""
        while self._unsent:
            try:
                sent = self._end.send(self._unsent)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._unsent.clear()
                return
            del self._unsent[:sent]

    def receive(self) -> list[Any] | None:
        """The messages that have come, perhaps none; None once the peer is gone.

        A blocking socket waits for the first bytes.
        """
        data = self._read()
        if data is None:
            return []
        return [self._decode(frame) for frame in self._frames.feed(data)] if data else None

    def receive_rest(self) -> list[Any]:
        """All messages that are still to be read, on a socket that does not block."""
        messages = []
        while data := self._read():
            messages += [self._decode(frame) for frame in self._frames.feed(data)]
        return messages

    def _read(self) -> bytes | None:
        """Some bytes; none at the end of the stream, and None where a socket would block."""
        try:
            return self._end.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        """Close this end; the peer sees it."""
        self._end.close()
