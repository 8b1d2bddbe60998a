"""The broker's socket.

ZMTP heartbeats are disabled on it (see `Router`); it uses TCP keepalive, and the broker relies on the peers' own heartbeat
messages. Of a host name that stands for several addresses, all are bound.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import zmq

from birdie_zmq.errors import UsageError
from birdie_zmq.protocol.addresses import bindable_addresses
from birdie_zmq.protocol.endpoints import Endpoint, IpcEndpoint, TcpEndpoint
from birdie_zmq.protocol.ipc_path import lock_ipc_path, make_owned_folder
from birdie_zmq.protocol.security.allow_list import AllowList
from birdie_zmq.protocol.security.authentication import Authentication
from birdie_zmq.protocol.transport import Transport

logger = logging.getLogger("birdie_zmq.broker")

MAX_UNREAD_BY_BROKER = 1_000
"""Unread messages of one peer, above which the broker stops reading its connection. Our own peers never send that many."""
MAX_UNREAD_BY_PEER = 16_384
"""Unread messages for one peer, above which the peer is considered gone."""
_BIND_TRIES = 10
"""How often a free port is chosen that must be free at several addresses."""


class ReceivedFrame(NamedTuple):
    """A received frame with its sender's routing id and, with keys, the public key that the sender authenticated with."""

    peer: bytes
    frame: bytes
    key: str | None


class Router(Transport):
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
