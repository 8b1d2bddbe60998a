"""The ZeroMQ sockets, and the one place that waits on them.

A ROUTER serves the broker, a DEALER everybody else. Both have bounded linger, a bounded frame size and ZMTP heartbeats
that notice a vanished host. Nothing above this module sees zmq.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Self, cast

import zmq

from birdie_zmq.errors import UsageError
from birdie_zmq.wire.codec import MAX_FRAME_BYTES
from birdie_zmq.wire.endpoints import Endpoint, IpcEndpoint, TcpEndpoint, check_bindable

LINGER_MS = 1_000
"""How long closing waits for what was just sent, such as a goodbye."""
ZMTP_HEARTBEAT_MS = 5_000
ZMTP_TIMEOUT_MS = 15_000


class _Transport:
    def __init__(self, kind: int) -> None:
        # A context of its own, so that closing this socket cannot disturb another user of zmq in the process.
        self._context = zmq.Context()
        self._kind = kind
        self._socket = self._open()

    def _open(self) -> zmq.Socket[bytes]:
        opened: zmq.Socket[bytes] = self._context.socket(self._kind)
        opened.linger = LINGER_MS
        opened.maxmsgsize = MAX_FRAME_BYTES
        opened.heartbeat_ivl = ZMTP_HEARTBEAT_MS
        opened.heartbeat_timeout = ZMTP_TIMEOUT_MS
        # What is in flight is bounded by credit and windows; a high-water mark would only block or drop.
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
        """Close the socket, waiting at most LINGER_MS for what was sent."""
        self._socket.close()
        self._context.term()


class Router(_Transport):
    """The broker's socket: bound, and addressing each peer by its routing id.

    Args:
        endpoint: Where to bind; port 0 takes any free port.

    Raises:
        UsageError: The address is in use, not this machine's, or open to others.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        check_bindable(endpoint)
        super().__init__(zmq.ROUTER)
        self._socket.router_mandatory = True
        # With IPv6 switched on, an IPv4 address would be reported back as an IPv6 one.
        self._socket.ipv6 = isinstance(endpoint, TcpEndpoint) and endpoint.host.startswith("[")
        self._lock: int | None = None
        try:
            if isinstance(endpoint, IpcEndpoint):
                self._lock = _lock_ipc_path(endpoint)
            self._socket.bind(str(endpoint))
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(_why_not_bound(endpoint, error)) from error
        except UsageError:
            self.close()
            raise
        self.endpoint: str = cast(bytes, self._socket.last_endpoint).decode().rstrip("\0")

    def send(self, peer: bytes, frame: bytes) -> bool:
        """Send one frame to a peer; False where there is no such peer any more."""
        try:
            self._socket.send_multipart([peer, frame], flags=zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (errno.EHOSTUNREACH, errno.EAGAIN):
                return False
            raise
        return True

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next frame and who sent it, None if there is none; an empty frame stands for a wrong number of frames."""
        try:
            peer, *frames = self._socket.recv_multipart(flags=zmq.DONTWAIT)
        except zmq.Again:
            return None
        return peer, frames[0] if len(frames) == 1 else b""

    def close(self) -> None:
        """Close the socket, and give up the lock of an ipc path."""
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Dealer(_Transport):
    """A client's or worker's socket: it connects, now or whenever the broker appears."""

    def __init__(self, endpoint: Endpoint) -> None:
        if isinstance(endpoint, TcpEndpoint) and not endpoint.port:
            raise UsageError(f"{endpoint} names no port to connect to")
        super().__init__(zmq.DEALER)
        self._endpoint = endpoint
        self._connect()

    def _connect(self) -> None:
        # Fast enough for a broker that is just starting, slow enough to be no load while there is none.
        self._socket.ipv6 = True
        self._socket.reconnect_ivl = 50
        self._socket.reconnect_ivl_max = 2_000
        self._socket.connect(str(self._endpoint))

    def reconnect(self) -> None:
        """Begin again as a new peer, dropping what was not delivered: it was meant for a broker that is gone."""
        self._socket.close(linger=0)
        self._socket = self._open()
        self._connect()

    def send(self, frame: bytes) -> None:
        """Queue one frame; it leaves as soon as there is a broker."""
        self._socket.send(frame, flags=zmq.DONTWAIT)

    def receive(self) -> bytes | None:
        """The next frame, None if there is none; an empty frame stands for a wrong number of frames."""
        try:
            frames = self._socket.recv_multipart(flags=zmq.DONTWAIT)
        except zmq.Again:
            return None
        return frames[0] if len(frames) == 1 else b""


def wait(
    transport: Router | Dealer, timeout_s: float, readable: Iterable[int] = (), writable: Iterable[int] = ()
) -> frozenset[int]:
    """Sleep until the transport has a frame, a descriptor is ready or the time is over; the descriptors that are ready.

    The transport itself need not be asked for: its ``receive`` says None where there is nothing.
    """
    interest = dict.fromkeys(readable, zmq.POLLIN)
    for descriptor in writable:
        interest[descriptor] = interest.get(descriptor, 0) | zmq.POLLOUT
    poller = zmq.Poller()
    poller.register(transport._socket, zmq.POLLIN)
    for descriptor, events in interest.items():
        poller.register(descriptor, events)
    ready = poller.poll(max(0, round(timeout_s * 1000)))
    return frozenset(source for source, _ in ready if isinstance(source, int))


def _lock_ipc_path(endpoint: IpcEndpoint) -> int:
    """Take the lock beside an ipc path: zmq would let a second broker bind the same path, and steal the first one's peers."""
    try:
        descriptor = os.open(f"{endpoint.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"cannot bind {endpoint}: {error.strerror} ({error.filename})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise UsageError(f"cannot bind {endpoint}: another broker is bound there") from error
    if endpoint.path.is_socket():
        endpoint.path.unlink()
    elif endpoint.path.exists():
        os.close(descriptor)
        raise UsageError(f"cannot bind {endpoint}: there is something else than a socket")
    return descriptor


def _why_not_bound(endpoint: Endpoint, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"cannot bind {endpoint}: the port is in use; stop what uses it, or choose another with --bind"
    if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        return f"cannot bind {endpoint}: this machine has no such address"
    return f"cannot bind {endpoint}: {error.strerror}"
