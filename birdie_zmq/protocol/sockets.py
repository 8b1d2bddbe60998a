"""The ZeroMQ sockets, and the poll loop that waits on them.

The broker has a ROUTER socket, clients and workers a DEALER socket. Both have a limited linger time and a limited frame size.
The DEALER sends ZMTP heartbeats, which detect a vanished host. The ROUTER has ZMTP heartbeats disabled (see `Router`); it uses
TCP keepalive, and the broker relies on the peers' own heartbeat messages. With keys, CURVE encrypts both and authenticates
each side to the other. A host name may stand for several addresses: the ROUTER binds all of them, the DEALER is connected to
one at a time (`address_rotation`). No module above this one uses zmq.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self, cast

import zmq
from zmq.utils.monitor import recv_monitor_message

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.address_rotation import AddressRotation, Connect, LookUp, RotationAction
from birdie_zmq.protocol.addresses import Lookup, bindable_addresses
from birdie_zmq.protocol.endpoints import Endpoint, IpcEndpoint, TcpEndpoint
from birdie_zmq.protocol.ipc_path import lock_ipc_path, make_owned_folder, missing_socket_hint
from birdie_zmq.protocol.limits import MAX_FRAME_BYTES
from birdie_zmq.protocol.security.allow_list import AllowList
from birdie_zmq.protocol.security.authentication import Authentication
from birdie_zmq.protocol.security.handshake_monitor import HandshakeMonitor
from birdie_zmq.protocol.security.keys import PeerKey

logger = logging.getLogger("birdie_zmq.broker")

LINGER_MS = 1_000
"""Milliseconds that closing waits for unsent messages, such as CloseSession."""
_MONITOR = "inproc://monitor"
_BIND_TRIES = 10
"""How often a free port is chosen that must be free at several addresses."""
MAX_UNREAD_BY_BROKER = 1_000
"""Unread messages of one peer, above which the broker stops reading its connection. Our own peers never send that many."""
MAX_UNREAD_BY_PEER = 16_384
"""Unread messages for one peer, above which the peer is considered gone."""
ZMTP_HEARTBEAT_MS = 5_000
ZMTP_TIMEOUT_MS = 15_000


_CONNECTION_EVENTS = zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_DISCONNECTED


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
        endpoint: Where to bind; port 0 takes any free port, and a host name all its addresses.
        keys: The keys that may connect, None to allow every peer.
        owns_folder: Whether the folder of an ipc path is this broker's own, of mode 0700, and is created if it is missing.

    Attributes:
        endpoints: The bound endpoints, with numbers for names.

    Raises:
        UsageError: The address is in use, does not belong to this machine, or is reachable by others without keys.
    """

    def __init__(self, endpoint: Endpoint, keys: AllowList | None = None, owns_folder: bool = False) -> None:
        addresses = bindable_addresses(endpoint, has_keys=keys is not None)
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
        self._lock: int | None = None
        self._ipc = endpoint if isinstance(endpoint, IpcEndpoint) else None
        self._owns_folder = owns_folder
        self._restore_error: str | None = None
        try:
            if keys is not None:
                self._authentication = Authentication(self._context, self._socket, keys)
                self._start_monitor(Authentication.EVENTS)
            if self._ipc is not None:
                self._lock = lock_ipc_path(self._ipc)
            self.endpoints = self._bind_all(endpoint, addresses)
        except UsageError:
            self.close()
            raise

    @property
    def endpoint(self) -> str:
        """The first of the bound endpoints."""
        return self.endpoints[0]

    def _bind_all(self, endpoint: Endpoint, addresses: Sequence[Endpoint]) -> list[str]:
        """Bind the addresses of an endpoint, all at one port, and return what was bound."""
        tries = _BIND_TRIES if isinstance(endpoint, TcpEndpoint) and not endpoint.port and len(addresses) > 1 else 1
        for left in reversed(range(tries)):
            bound: list[str] = []
            missing: list[Endpoint] = []
            for address in addresses:
                try:
                    bound.append(self._bind(address, bound))
                except zmq.ZMQError as error:
                    if _is_missing(error) and len(missing) + 1 < len(addresses):
                        missing.append(address)
                    elif left and error.errno == errno.EADDRINUSE:
                        break
                    else:
                        raise UsageError(_bind_error(address, error)) from error
            else:
                for address in missing:
                    logger.warning("%s is not bound: this machine does not have this address of %s", address, endpoint)
                return bound
            for taken in bound:
                self._socket.unbind(taken)
        raise AssertionError

    def _bind(self, address: Endpoint, bound: Sequence[str]) -> str:
        if isinstance(address, TcpEndpoint):
            # With IPv6 enabled, libzmq would report an IPv4 address as an IPv6 address.
            self._socket.ipv6 = address.is_ipv6
            if bound:
                address = replace(address, port=int(bound[0].rpartition(":")[2]))
        self._socket.bind(str(address))
        return cast(bytes, self._socket.last_endpoint).decode().rstrip("\0")

    def restore_path(self) -> None:
        """Bind an ipc path again if it has been removed, as a cleaner of temporary files does, so that peers can connect."""
        if self._ipc is None or os.path.lexists(self._ipc.path):
            return
        try:
            if self._owns_folder:
                make_owned_folder(self._ipc.path.parent)
            self._lock = lock_ipc_path(self._ipc, self._lock)
            try:
                # The listener of the removed path stays open: closing it would remove the new path, which has its name.
                self._socket.bind(str(self._ipc))
            except zmq.ZMQError as error:
                raise UsageError(_bind_error(self._ipc, error)) from error
        except UsageError as error:
            if error.message != self._restore_error:
                self._restore_error = error.message
                logger.warning(
                    "the path of %s has been removed, so no new peer can connect; %s", self._ipc, error.message
                )
            return
        self._restore_error = None
        logger.warning(
            "the path of %s had been removed; it is bound again, and connected peers stay connected", self._ipc
        )

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

    def _on_event(self, event: int, value: int, address: str) -> None:
        del address
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
        self._lookup: Lookup | None = None
        self._connect()

    def _connect(self) -> None:
        self._handshake_monitor = HandshakeMonitor(self._endpoint, self._key)
        self._rotation: AddressRotation | None = None
        self._connected_to: str | None = None
        self._unsent: deque[bytes] = deque()
        self._close_lookup()
        if self._key is not None:
            self._socket.curve_publickey = self._key.pair.public.encode()
            self._socket.curve_secretkey = self._key.pair.secret.encode()
            self._socket.curve_serverkey = self._key.broker.encode()
        # Fast enough for a broker that is just starting, slow enough to cause no load while there is no broker.
        self._socket.reconnect_ivl = 50
        self._socket.reconnect_ivl_max = 2_000
        if isinstance(self._endpoint, TcpEndpoint) and self._endpoint.is_name:
            self._start_monitor(HandshakeMonitor.EVENTS | _CONNECTION_EVENTS)
            # libzmq would drop what it has queued for an address when that is given up: `_unsent` keeps it.
            self._socket.immediate = True
            self._rotation = AddressRotation(self._endpoint.host)
            self._rotate(self._rotation.tick(time.monotonic()))
        else:
            self._start_monitor(HandshakeMonitor.EVENTS)
            self._socket.ipv6 = isinstance(self._endpoint, TcpEndpoint) and self._endpoint.is_ipv6
            try:
                self._socket.connect(str(self._endpoint))
            except zmq.ZMQError as error:
                self.close()
                raise UsageError(f"cannot connect to {self._endpoint}: {error.strerror}") from error

    def _rotate(self, actions: Iterable[RotationAction]) -> None:
        """Carry out the actions of the address rotation."""
        for action in actions:
            match action:
                case LookUp():
                    assert isinstance(self._endpoint, TcpEndpoint)
                    self._close_lookup()
                    self._lookup = Lookup(self._endpoint)
                case Connect(address):
                    if self._connected_to is not None:
                        self._socket.disconnect(self._connected_to)
                    self._connected_to = str(address)
                    self._socket.ipv6 = address.is_ipv6
                    self._socket.connect(self._connected_to)

    def _close_lookup(self) -> None:
        if self._lookup is not None:
            self._lookup.close()
            self._lookup = None

    def _before_wait(self) -> tuple[float, Sequence[int]]:
        if self._rotation is None:
            return math.inf, ()
        self._flush()
        return self._rotation.remaining_s(time.monotonic()), () if self._lookup is None else (self._lookup.fileno(),)

    def _after_wait(self) -> None:
        self._read_events()
        if self._rotation is None:
            return
        now = time.monotonic()
        if self._lookup is not None and self._lookup.is_done:
            lookup, self._lookup = self._lookup, None
            self._rotate(self._rotation.looked_up(lookup.result(), now))
        self._rotate(self._rotation.tick(now))
        self._flush()

    def _flush(self) -> None:
        """Send the frames that were queued while there was no connection."""
        while self._unsent and cast(int, self._socket.get(zmq.EVENTS)) & zmq.POLLOUT:
            self._socket.send(self._unsent[0], flags=zmq.DONTWAIT)
            self._unsent.popleft()

    def reconnect(self) -> None:
        """Reconnect as a new peer, and drop undelivered messages: they were meant for a broker that is gone."""
        self._stop_monitor()
        self._socket.close(linger=0)
        # Closing continues in libzmq's I/O thread, which may still deliver messages; terminating the context waits for it.
        self._context.term()
        self._context = zmq.Context()
        self._socket = self._open()
        self._connect()

    def close(self) -> None:
        """Close the socket, waiting at most LINGER_MS for unsent messages."""
        self._close_lookup()
        super().close()

    def send(self, frame: bytes) -> None:
        """Queue one frame, which is sent as soon as there is a broker; after a refused handshake, reconnect first."""
        if self._handshake_monitor.refusal is not None:
            self.reconnect()
        if self._unsent:
            self._unsent.append(frame)
            self._flush()
            return
        try:
            self._socket.send(frame, flags=zmq.DONTWAIT)
        except zmq.Again:
            # Without a host name, libzmq has dropped the connection at an invalid handshake; `receive` or a timeout reports
            # that.
            if self._rotation is not None:
                self._unsent.append(frame)

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

    @property
    def hint(self) -> str | None:
        """The probable cause if no broker answers, None if nothing is known: `handshake_hint`, or what cannot be reached."""
        if (handshake_hint := self.handshake_hint) is not None:
            return handshake_hint
        if isinstance(self._endpoint, IpcEndpoint):
            return missing_socket_hint(self._endpoint)
        return None if self._rotation is None else self._rotation.hint

    def _on_event(self, event: int, value: int, address: str) -> None:
        if event & HandshakeMonitor.EVENTS:
            self._handshake_monitor.on_event(event, value)
        rotation = self._rotation
        if rotation is None or rotation.is_given_up(address):
            return
        match event:
            case zmq.EVENT_CONNECTED:
                rotation.accepted()
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                rotation.established()
            case zmq.EVENT_CONNECT_RETRIED:
                self._rotate(rotation.failed(time.monotonic(), "no connection"))
            case zmq.EVENT_DISCONNECTED:
                self._rotate(rotation.failed(time.monotonic(), "connection closed"))


def wait(
    transport: Router | Dealer, timeout_s: float, readable: Iterable[int] = (), writable: Iterable[int] = ()
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


def _key_for(frame: zmq.Frame) -> str | None:
    """Return the public key that libzmq attaches to every frame of an authenticated connection, or None."""
    try:
        return cast(str, frame.get("User-Id"))
    except zmq.ZMQError:
        return None


def _is_missing(error: zmq.ZMQError) -> bool:
    """Return whether this machine does not have an address, or does not support its family."""
    return error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def _bind_error(endpoint: Endpoint, error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"cannot bind {endpoint}: the port is in use; stop what uses it, or choose another with --bind"
    if _is_missing(error):
        return f"cannot bind {endpoint}: this machine has no such address"
    return f"cannot bind {endpoint}: {error.strerror}"
