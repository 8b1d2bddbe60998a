"""Diagnosis of failed handshakes at the connecting side: why a broker refuses a peer.

If the broker does not know a key, CURVE reports that to the peer. If only one side has keys, the side that notices it first
closes the connection, and the other side learns nothing; but the handshake is retried, and the order changes. If the peer has
the public key of another broker, the broker always closes the connection.
"""

from __future__ import annotations

import zmq

from birdie_zmq.errors import NotAllowed
from birdie_zmq.protocol.endpoints import Endpoint
from birdie_zmq.protocol.security.keys import PeerKey

_MIN_CLOSED_HANDSHAKES = 3
"""This many closed handshakes in a row are no accident; fewer may come from a broker that is just stopping."""


class HandshakeMonitor:
    """The outcome of the handshakes of one connection, from the events of its socket monitor.

    Args:
        endpoint: The broker's endpoint, for messages.
        key: This peer's key, None if it has none.

    Attributes:
        refusal: The error if the broker has refused the handshake, else None.
    """

    EVENTS = (
        zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    )

    def __init__(self, endpoint: Endpoint, key: PeerKey | None) -> None:
        self._endpoint = endpoint
        self._key = key
        self._closed_handshakes = 0
        self.refusal: NotAllowed | None = None

    @property
    def handshake_hint(self) -> str | None:
        """The probable cause if a broker may be running although it does not answer, None if there is no sign of one."""
        if self._closed_handshakes < _MIN_CLOSED_HANDSHAKES:
            return None
        if self._key is None:
            return (
                "the endpoint closes every handshake; a broker that requires a key does this (key_file= or --key-file)"
            )
        return (
            "the endpoint closes every handshake; a broker with another key than the one in "
            f"{self._key.path} does this: either the file is for another broker, or this is not the intended broker"
        )

    def on_event(self, event: int, value: int) -> None:
        """Handle an event of the socket monitor."""
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._closed_handshakes = 0
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and self._key is not None:
            self.refusal = self._key_refused(self._key)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self.refusal = self._key_required() if self._key is None else self._broker_without_keys(self._key)
        else:
            self._closed_handshakes += 1

    def _key_refused(self, key: PeerKey) -> NotAllowed:
        return NotAllowed(
            f"the broker at {self._endpoint} refuses the key of {key.principal} in {key.path}: it is unknown or revoked. "
            f"Make a new key on the broker's machine with: birdie-zmq keys new {key.principal.role} NAME"
        )

    def _key_required(self) -> NotAllowed:
        return NotAllowed(
            f"the broker at {self._endpoint} requires a key. Give a client its key file with key_file=FILE in model_args, a "
            "worker with --key-file FILE; make one on the broker's machine with: birdie-zmq keys new client NAME, or keys "
            "new worker NAME"
        )

    def _broker_without_keys(self, key: PeerKey) -> NotAllowed:
        return NotAllowed(
            f"the broker at {self._endpoint} has no keys, so it cannot prove that it is the broker of {key.path}. "
            "Start it with --keys; omit the key file only if the broker is meant to have no keys"
        )
