"""What those who connect can know of a broker that does not let them in.

Of a key that the broker does not know, CURVE tells its holder. Where only one side has keys, the side that is first to
see it hangs up, which tells the other nothing; but the handshake is tried again and again, and who is first changes. A
peer that has another key than the broker's is always hung up on.
"""

from __future__ import annotations

import zmq

from birdie_zmq.errors import NotAllowed
from birdie_zmq.protocol.endpoints import Endpoint
from birdie_zmq.protocol.security.keys import PeerKey

_MANY = 3
"""So many handshakes in a row that are cut off are no accident, such as a broker that is just stopping."""


class Handshakes:
    """The handshakes of one connection, as its socket's monitor tells of them.

    Args:
        endpoint: Where the broker is, for messages.
        key: What it is greeted with.
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
        self._cut_off = 0
        self.refusal: NotAllowed | None = None

    @property
    def doubt(self) -> str | None:
        """Why there may be a broker although none answers, None if nothing speaks for it."""
        if self._cut_off < _MANY:
            return None
        if self._key is None:
            return "what is there cuts off every handshake, as a broker does that wants a key (key_file= or --key-file)"
        return (
            "what is there cuts off every handshake, as a broker does that has another key than the one in "
            f"{self._key.path}: that file is for another broker, or this one is not the one that it should be"
        )

    def happened(self, event: int, value: int) -> None:
        """Take in an event."""
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._cut_off = 0
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and self._key is not None:
            self.refusal = self._unknown(self._key)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self.refusal = self._wanted() if self._key is None else self._cannot_show(self._key)
        else:
            self._cut_off += 1

    def _unknown(self, key: PeerKey) -> NotAllowed:
        return NotAllowed(
            f"the broker at {self._endpoint} refuses this key, that of {key.holder} in {key.path}: it is not among those "
            f"that it lets in, or no longer. A new one is made there with: birdie-zmq keys new {key.holder.role} NAME"
        )

    def _wanted(self) -> NotAllowed:
        return NotAllowed(
            f"the broker at {self._endpoint} wants a key. A client names its key file with key_file=FILE in model_args, a "
            "worker with --key-file FILE; it is made there with: birdie-zmq keys new client NAME, or keys new worker NAME"
        )

    def _cannot_show(self, key: PeerKey) -> NotAllowed:
        return NotAllowed(
            f"the broker at {self._endpoint} has no keys, so it cannot show that it is the one that {key.path} is for. "
            "Start it with --keys; leave the key file out only if that broker is meant to have none"
        )
