"""The ZeroMQ sockets, and the one place that waits on them.

A ROUTER serves the broker, a DEALER everybody else. Both have bounded linger, a bounded frame size and ZMTP heartbeats
that notice a vanished host. With keys, both are encrypted by CURVE, and each side knows who the other one is. Nothing
above this module sees zmq.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Self, cast

import zmq
from zmq.utils.monitor import recv_monitor_message

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.codec import MAX_FRAME_BYTES
from birdie_zmq.protocol.endpoints import Endpoint, IpcEndpoint, TcpEndpoint, check_bindable
from birdie_zmq.protocol.ipc_lock import lock_ipc_path
from birdie_zmq.protocol.security.allow_list import AllowList
from birdie_zmq.protocol.security.authentication import Authentication
from birdie_zmq.protocol.security.handshake_monitor import Handshakes
from birdie_zmq.protocol.security.keys import PeerKey

LINGER_MS = 1_000
"""How long closing waits for what was just sent, such as a goodbye."""
MAX_UNREAD_BY_BROKER = 1_000
"""Messages of one peer that wait in the broker; with more, its connection is not read any further. Ours never have so many."""
MAX_UNREAD_BY_PEER = 16_384
"""Messages for one peer that it does not read, before it counts as gone."""
ZMTP_HEARTBEAT_MS = 5_000
ZMTP_TIMEOUT_MS = 15_000


class _Transport:
    def __init__(self, kind: int) -> None:
        # A context of its own, so that closing this socket cannot disturb another user of zmq in the process.
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
        # What we have in flight ourselves is bounded by credit and windows; a high-water mark would only block or drop.
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
        self._stop_watching()
        self._socket.close()
        self._context.term()

    def _watch(self, events: int) -> None:
        """Have `_happened` called, from `wait`, for events of the socket's connections."""
        self._monitor = self._socket.get_monitor_socket(events)

    def _stop_watching(self) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
            self._monitor = None

    def _take_events(self) -> None:
        """Read all events that are there: libzmq's own thread would wait for room if they were left."""
        while self._monitor is not None:
            try:
                event = recv_monitor_message(self._monitor, zmq.DONTWAIT)
            except zmq.Again:
                return
            self._happened(event["event"], event["value"])

    def _happened(self, event: int, value: int) -> None:
        raise NotImplementedError


class Arrival(NamedTuple):
    """A frame, who sent it, and the public key that they have proved to hold the secret of, where there are keys."""

    peer: bytes
    frame: bytes
    key: str | None


class Router(_Transport):
    """The broker's socket: bound, and addressing each peer by its routing id.

    Args:
        endpoint: Where to bind; port 0 takes any free port.
        keys: Who may connect, None for everybody.

    Raises:
        UsageError: The address is in use, not this machine's, or open to others without keys.
    """

    def __init__(self, endpoint: Endpoint, keys: AllowList | None = None) -> None:
        check_bindable(endpoint, has_keys=keys is not None)
        self.keys = keys
        super().__init__(zmq.ROUTER)
        self._authentication: Authentication | None = None
        self._socket.router_mandatory = True
        self._socket.rcvhwm = MAX_UNREAD_BY_BROKER
        # libzmq aborts the process where a heartbeat is due on a connection that broke while it was not read any further
        # (its issue 4364). Here the peers' own beats tell who is gone, and TCP's keepalive ends the connection.
        self._socket.heartbeat_ivl = 0
        self._socket.tcp_keepalive = 1
        self._socket.tcp_keepalive_idle = 60
        self._socket.sndhwm = MAX_UNREAD_BY_PEER
        # With IPv6 switched on, an IPv4 address would be reported back as an IPv6 one.
        self._socket.ipv6 = isinstance(endpoint, TcpEndpoint) and endpoint.host.startswith("[")
        self._lock: int | None = None
        try:
            if keys is not None:
                self._authentication = Authentication(self._context, self._socket, keys)
                self._watch(Authentication.EVENTS)
            if isinstance(endpoint, IpcEndpoint):
                self._lock = lock_ipc_path(endpoint)
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

    def receive(self) -> Arrival | None:
        """The next frame and who sent it, None if there is none; an empty frame stands for a wrong number of frames."""
        try:
            if self.keys is None:
                peer, *frames = self._socket.recv_multipart(flags=zmq.DONTWAIT)
                return Arrival(peer, frames[0] if len(frames) == 1 else b"", None)
            # What libzmq knows of a frame is on the frame alone, which takes more time than its bytes.
            sender, *signed = self._socket.recv_multipart(flags=zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return None
        key = _key_of(signed[-1]) if signed else None
        return Arrival(sender.bytes, signed[0].bytes if len(signed) == 1 else b"", key)

    def refused_connections(self) -> str | None:
        """A line about who was not let in, at most one a second; None if there is nothing to say.

        Raises:
            InternalError: Nobody can be let in any more.
        """
        return None if self._authentication is None else self._authentication.told()

    def _happened(self, event: int, value: int) -> None:
        if self._authentication is not None:
            self._authentication.handshake_failed(event, value)

    def close(self) -> None:
        """Close the socket, and give up the lock of an ipc path."""
        self._stop_watching()
        self._socket.close()
        if self._authentication is not None:
            self._authentication.stop()  # Before the context ends, which waits for its sockets.
            self._authentication = None
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Dealer(_Transport):
    """A client's or worker's socket: it connects, now or whenever the broker appears.

    Args:
        endpoint: Where the broker is.
        key: Who this is, and the key that the broker must have; None for a broker without keys.
    """

    def __init__(self, endpoint: Endpoint, key: PeerKey | None = None) -> None:
        if isinstance(endpoint, TcpEndpoint) and not endpoint.port:
            raise UsageError(f"{endpoint} names no port to connect to")
        super().__init__(zmq.DEALER)
        self._endpoint = endpoint
        self._key = key
        self._connect()

    def _connect(self) -> None:
        self._handshakes = Handshakes(self._endpoint, self._key)
        self._watch(Handshakes.EVENTS)
        if self._key is not None:
            self._socket.curve_publickey = self._key.pair.public.encode()
            self._socket.curve_secretkey = self._key.pair.secret.encode()
            self._socket.curve_serverkey = self._key.broker.encode()
        # Fast enough for a broker that is just starting, slow enough to be no load while there is none.
        self._socket.ipv6 = True
        self._socket.reconnect_ivl = 50
        self._socket.reconnect_ivl_max = 2_000
        self._socket.connect(str(self._endpoint))

    def reconnect(self) -> None:
        """Begin again as a new peer, dropping what was not delivered: it was meant for a broker that is gone."""
        self._stop_watching()
        self._socket.close(linger=0)
        # Closing goes on in libzmq's own thread, which may still deliver what is to be dropped; this waits for its end.
        self._context.term()
        self._context = zmq.Context()
        self._socket = self._open()
        self._connect()

    def send(self, frame: bytes) -> None:
        """Queue one frame; it leaves as soon as there is a broker. After a refusal, begin again."""
        if self._handshakes.refusal is not None:
            self.reconnect()
        # The connection is given up at a handshake that makes no sense, which `receive` or a time-out tells.
        with contextlib.suppress(zmq.Again):
            self._socket.send(frame, flags=zmq.DONTWAIT)

    def receive(self) -> bytes | None:
        """The next frame, None if there is none; an empty frame stands for a wrong number of frames.

        Raises:
            NotAllowed: The broker does not let this key in, or wants one, or has none.
        """
        if self._handshakes.refusal is not None:
            raise self._handshakes.refusal
        try:
            frames = self._socket.recv_multipart(flags=zmq.DONTWAIT)
        except zmq.Again:
            return None
        return frames[0] if len(frames) == 1 else b""

    @property
    def doubt(self) -> str | None:
        """Why there may be a broker although none answers, None if nothing speaks for it."""
        return self._handshakes.doubt

    def _happened(self, event: int, value: int) -> None:
        self._handshakes.happened(event, value)


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
    if transport._monitor is not None:
        poller.register(transport._monitor, zmq.POLLIN)
    for descriptor, events in interest.items():
        poller.register(descriptor, events)
    ready = poller.poll(max(0, round(timeout_s * 1000)))
    transport._take_events()
    return frozenset(source for source, _ in ready if isinstance(source, int))


def _key_of(frame: zmq.Frame) -> str | None:
    """The key that libzmq attaches to all that comes over a connection, once the authenticator has let it in."""
    try:
        return cast(str, frame.get("User-Id"))
    except zmq.ZMQError:
        return None


def _why_not_bound(endpoint: Endpoint, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"cannot bind {endpoint}: the port is in use; stop what uses it, or choose another with --bind"
    if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        return f"cannot bind {endpoint}: this machine has no such address"
    return f"cannot bind {endpoint}: {error.strerror}"
