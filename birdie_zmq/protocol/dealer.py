"""The socket of a client or worker.

It sends ZMTP heartbeats, which detect a vanished host. Of a host name that stands for several addresses, it is connected to one
at a time (`address_rotation`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import cast

import zmq

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.address_rotation import AddressRotation, Connect, LookUp, RotationAction
from birdie_zmq.protocol.addresses import Lookup
from birdie_zmq.protocol.endpoints import Endpoint, IpcEndpoint, TcpEndpoint
from birdie_zmq.protocol.ipc_path import missing_socket_hint
from birdie_zmq.protocol.security.handshake_monitor import HandshakeMonitor
from birdie_zmq.protocol.security.keys import PeerKey
from birdie_zmq.protocol.transport import Transport

_CONNECTION_EVENTS = zmq.EVENT_CONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_DISCONNECTED


class Dealer(Transport):
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
