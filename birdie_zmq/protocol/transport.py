"""What the ZeroMQ sockets of broker, clients and workers share, and the poll loop that waits on them.

The broker has a ROUTER socket (`router`), clients and workers a DEALER socket (`dealer`). Both have a limited linger time and a
limited frame size. With keys, CURVE encrypts both and authenticates each side to the other. Only these three modules and
those of `security` use zmq.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from birdie_zmq.protocol.limits import MAX_FRAME_BYTES

LINGER_MS = 1_000
"""Milliseconds that closing waits for unsent messages, such as CloseSession."""
ZMTP_HEARTBEAT_MS = 5_000
ZMTP_TIMEOUT_MS = 15_000
_MONITOR = "inproc://monitor"


class Transport:
    """A socket with a context of its own, and a monitor of its connections.

    Args:
        kind: The type of the socket, as zmq numbers it.
    """

    def __init__(self, kind: int) -> None:
        # A separate context, so that closing this socket cannot disturb other users of zmq in the process.
        self._context = zmq.Context()
        self._kind = kind
        self._monitor: zmq.Socket[bytes] | None = None
        self._socket = self._open()

    def _open(self) -> zmq.Socket[bytes]:
        opened: zmq.Socket[bytes] = self._context.socket(self._kind)
        opened.linger = LINGER_MS
        opened.maxmsgsize = MAX_FRAME_BYTES
        opened.heartbeat_ivl = ZMTP_HEARTBEAT_MS
        opened.heartbeat_timeout = ZMTP_TIMEOUT_MS
        # Credit and windows already limit our messages in flight; a high-water mark would only block or drop.
        opened.sndhwm = 0
        opened.rcvhwm = 0
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket, waiting at most LINGER_MS for unsent messages."""
        self._stop_monitor()
        self._socket.close()
        self._context.term()

    def _start_monitor(self, events: int) -> None:
        """Monitor the socket's connections; `wait` calls `_on_event` for each event."""
        self._socket.monitor(_MONITOR, events)
        self._monitor = self._context.socket(zmq.PAIR)
        # libzmq's I/O thread would block while a full monitor is not read, for example between two calls of a client.
        self._monitor.rcvhwm = 0
        self._monitor.connect(_MONITOR)

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
            self._monitor = None

    def _before_wait(self) -> tuple[float, Sequence[int]]:
        """Return the seconds after which `_after_wait` is needed at the latest, and the descriptors that it waits for."""
        return math.inf, ()

    def _after_wait(self) -> None:
        self._read_events()

    def _read_events(self) -> None:
        """Read all pending events."""
        while self._monitor is not None:
            try:
                event = recv_monitor_message(self._monitor, zmq.DONTWAIT)
            except zmq.Again:
                return
            self._on_event(event["event"], event["value"], event["endpoint"].decode(errors="replace"))

    def _on_event(self, event: int, value: int, address: str) -> None:
        raise NotImplementedError


def wait(
    transport: Transport, timeout_s: float, readable: Iterable[int] = (), writable: Iterable[int] = ()
) -> frozenset[int]:
    """Wait until the transport has a frame, a descriptor is ready or the timeout is over; return the ready descriptors.

    It may return earlier, after work of the transport itself. The transport is not part of the result: its ``receive`` returns None if there is no frame.
    """
    interest = dict.fromkeys(readable, zmq.POLLIN)
    for descriptor in writable:
        interest[descriptor] = interest.get(descriptor, 0) | zmq.POLLOUT
    limit_s, own_descriptors = transport._before_wait()
    poller = zmq.Poller()
    poller.register(transport._socket, zmq.POLLIN)
    for descriptor in own_descriptors:
        poller.register(descriptor, zmq.POLLIN)
    if transport._monitor is not None:
        poller.register(transport._monitor, zmq.POLLIN)
    for descriptor, events in interest.items():
        poller.register(descriptor, events)
    ready = poller.poll(max(0, math.ceil(min(timeout_s, limit_s) * 1000)))
    transport._after_wait()
    return frozenset(source for source, _ in ready if isinstance(source, int) and source in interest)
