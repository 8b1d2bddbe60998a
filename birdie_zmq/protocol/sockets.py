"""The ZeroMQ sockets, and the poll loop that waits on them.

The broker has a ROUTER socket, clients and workers a DEALER socket. Both have a limited linger time and a limited frame size.
The DEALER sends ZMTP heartbeats, which detect a vanished host. The ROUTER has ZMTP heartbeats disabled (see `Router`); it uses
TCP keepalive, and the broker relies on the peers' own heartbeat messages. With keys, CURVE encrypts both and authenticates
each side to the other. No module above this one uses zmq.
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
from birdie_zmq.protocol.endpoints import Endpoint, IpcEndpoint, TcpEndpoint, check_bindable
from birdie_zmq.protocol.ipc_lock import lock_ipc_path
from birdie_zmq.protocol.limits import MAX_FRAME_BYTES
from birdie_zmq.protocol.security.allow_list import AllowList
from birdie_zmq.protocol.security.authentication import Authentication
from birdie_zmq.protocol.security.handshake_monitor import HandshakeMonitor
from birdie_zmq.protocol.security.keys import PeerKey

LINGER_MS = 1_000
"""Milliseconds that closing waits for unsent messages, such as CloseSession."""
MAX_UNREAD_BY_BROKER = 1_000
"""Unread messages of one peer, above which the broker stops reading its connection. Our own peers never send that many."""
MAX_UNREAD_BY_PEER = 16_384
"""Unread messages for one peer, above which the peer is considered gone."""
ZMTP_HEARTBEAT_MS = 5_000
ZMTP_TIMEOUT_MS = 15_000


class _Transport:
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
        self._monitor = self._socket.get_monitor_socket(events)

    def _stop_monitor(self) -> None:
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close()
            self._monitor = None

    def _read_events(self) -> None:
        """Read all pending events: libzmq's I/O thread would block on a full monitor socket."""
        while self._monitor is not None:
            try:
                event = recv_monitor_message(self._monitor, zmq.DONTWAIT)
            except zmq.Again:
                return
            self._on_event(event["event"], event["value"])

    def _on_event(self, event: int, value: int) -> None:
        raise NotImplementedError


class ReceivedFrame(NamedTuple):
    """A received frame with its sender's routing id and, with keys, the public key that the sender authenticated with."""

    peer: bytes
    frame: bytes
    key: str | None


class Router(_Transport):
    """The broker's socket, which is bound and addresses each peer by its routing id.

    ZMTP heartbeats are disabled on it: libzmq would abort the process on certain broken connections. The peers' own heartbeat
    messages show which peers are alive, and TCP keepalive closes dead connections.

    Args:
        endpoint: Where to bind; port 0 takes any free port.
        keys: The keys that may connect, None to allow every peer.

    Raises:
        UsageError: The address is in use, does not belong to this machine, or is reachable by others without keys.
    """

    def __init__(self, endpoint: Endpoint, keys: AllowList | None = None) -> None:
        check_bindable(endpoint, has_keys=keys is not None)
        self.keys = keys
        super().__init__(zmq.ROUTER)
        self._authentication: Authentication | None = None
        self._socket.router_mandatory = True
        self._socket.rcvhwm = MAX_UNREAD_BY_BROKER
        # libzmq aborts the process if a heartbeat is due on a connection that broke while it was no longer read (libzmq issue
        # 4364). The peers' own heartbeat messages show which peers are gone, and TCP keepalive closes the connection.
        self._socket.heartbeat_ivl = 0
        self._socket.tcp_keepalive = 1
        self._socket.tcp_keepalive_idle = 60
        self._socket.sndhwm = MAX_UNREAD_BY_PEER
        # With IPv6 enabled, libzmq would report an IPv4 address as an IPv6 address.
        self._socket.ipv6 = isinstance(endpoint, TcpEndpoint) and endpoint.host.startswith("[")
        self._lock: int | None = None
        try:
            if keys is not None:
                self._authentication = Authentication(self._context, self._socket, keys)
                self._start_monitor(Authentication.EVENTS)
            if isinstance(endpoint, IpcEndpoint):
                self._lock = lock_ipc_path(endpoint)
            self._socket.bind(str(endpoint))
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(_bind_error(endpoint, error)) from error
        except UsageError:
            self.close()
            raise
        self.endpoint: str = cast(bytes, self._socket.last_endpoint).decode().rstrip("\0")

    def send(self, peer: bytes, frame: bytes) -> bool:
        """Send one frame to a peer; return False if the peer is gone."""
        try:
            self._socket.send_multipart([peer, frame], flags=zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (errno.EHOSTUNREACH, errno.EAGAIN):
                return False
            raise
        return True

    def receive(self) -> ReceivedFrame | None:
        """Return the next frame and its sender, None if there is none; a message with a wrong number of frames is empty."""
        try:
            if self.keys is None:
                peer, *frames = self._socket.recv_multipart(flags=zmq.DONTWAIT)
                return ReceivedFrame(peer, frames[0] if len(frames) == 1 else b"", None)
            # Only a zmq.Frame has the key of its connection; receiving frames is slower than receiving bytes.
            sender, *signed = self._socket.recv_multipart(flags=zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return None
        key = _key_for(signed[-1]) if signed else None
        return ReceivedFrame(sender.bytes, signed[0].bytes if len(signed) == 1 else b"", key)

    def refused_connections(self) -> str | None:
        """Return a log line about refused connections, at most one per second; None if there is nothing to report.

        Raises:
            InternalError: The authenticator has ended, so no peer can connect any more.
        """
        return None if self._authentication is None else self._authentication.refusal_summary()

    def _on_event(self, event: int, value: int) -> None:
        if self._authentication is not None:
            self._authentication.handshake_failed(event, value)

    def close(self) -> None:
        """Close the socket and release the lock of an ipc path."""
        self._stop_monitor()
        self._socket.close()
        if self._authentication is not None:
            self._authentication.stop()  # Before the context terminates, which waits for its sockets.
            self._authentication = None
        super().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Dealer(_Transport):
    """The socket of a client or worker, which connects as soon as the broker is up.

    Args:
        endpoint: The broker's endpoint.
        key: This peer's key pair and the public key that the broker must have; None for a broker without keys.
    """

    def __init__(self, endpoint: Endpoint, key: PeerKey | None = None) -> None:
        if isinstance(endpoint, TcpEndpoint) and not endpoint.port:
            raise UsageError(f"{endpoint} has no port to connect to; give the port of the broker")
        super().__init__(zmq.DEALER)
        self._endpoint = endpoint
        self._key = key
        self._connect()

    def _connect(self) -> None:
        self._handshake_monitor = HandshakeMonitor(self._endpoint, self._key)
        self._start_monitor(HandshakeMonitor.EVENTS)
        if self._key is not None:
            self._socket.curve_publickey = self._key.pair.public.encode()
            self._socket.curve_secretkey = self._key.pair.secret.encode()
            self._socket.curve_serverkey = self._key.broker.encode()
        # Fast enough for a broker that is just starting, slow enough to cause no load while there is no broker.
        self._socket.ipv6 = True
        self._socket.reconnect_ivl = 50
        self._socket.reconnect_ivl_max = 2_000
        self._socket.connect(str(self._endpoint))

    def reconnect(self) -> None:
        """Reconnect as a new peer, and drop undelivered messages: they were meant for a broker that is gone."""
        self._stop_monitor()
        self._socket.close(linger=0)
        # Closing continues in libzmq's I/O thread, which may still deliver messages; terminating the context waits for it.
        self._context.term()
        self._context = zmq.Context()
        self._socket = self._open()
        self._connect()

    def send(self, frame: bytes) -> None:
        """Queue one frame, which is sent as soon as there is a broker; after a refused handshake, reconnect first."""
        if self._handshake_monitor.refusal is not None:
            self.reconnect()
        # libzmq drops the connection at an invalid handshake; `receive` or a timeout reports that.
        with contextlib.suppress(zmq.Again):
            self._socket.send(frame, flags=zmq.DONTWAIT)

    def receive(self) -> bytes | None:
        """Return the next frame, None if there is none; a message with a wrong number of frames is empty.

        Raises:
            NotAllowed: The broker refuses this key, requires a key, or has no keys itself.
        """
        if self._handshake_monitor.refusal is not None:
            raise self._handshake_monitor.refusal
        try:
            frames = self._socket.recv_multipart(flags=zmq.DONTWAIT)
        except zmq.Again:
            return None
        return frames[0] if len(frames) == 1 else b""

    @property
    def handshake_hint(self) -> str | None:
        """The probable cause if a broker may be running although it does not answer, None if there is no sign of one."""
        return self._handshake_monitor.handshake_hint

    def _on_event(self, event: int, value: int) -> None:
        self._handshake_monitor.on_event(event, value)


def wait(
    transport: Router | Dealer, timeout_s: float, readable: Iterable[int] = (), writable: Iterable[int] = ()
) -> frozenset[int]:
    """Wait until the transport has a frame, a descriptor is ready or the timeout is over; return the ready descriptors.

    The transport is not part of the result: its ``receive`` returns None if there is no frame.
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
    transport._read_events()
    return frozenset(source for source, _ in ready if isinstance(source, int))


def _key_for(frame: zmq.Frame) -> str | None:
    """Return the public key that libzmq attaches to every frame of an authenticated connection, or None."""
    try:
        return cast(str, frame.get("User-Id"))
    except zmq.ZMQError:
        return None


def _bind_error(endpoint: Endpoint, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"cannot bind {endpoint}: the port is in use; stop what uses it, or choose another with --bind"
    if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
        return f"cannot bind {endpoint}: this machine has no such address"
    return f"cannot bind {endpoint}: {error.strerror}"
