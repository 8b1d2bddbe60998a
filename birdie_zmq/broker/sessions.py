"""The sessions of a broker: its clients, whose key each peer has, and what peers are refused."""

from __future__ import annotations

from birdie_zmq._version import __version__
from birdie_zmq.broker.history import History
from birdie_zmq.broker.outbox import Outbox
from birdie_zmq.broker.peers import Client
from birdie_zmq.broker.rate_limits import RefusalLimiter
from birdie_zmq.broker.scheduler import Batch
from birdie_zmq.errors import MessageTooLarge, NotAllowed, ProtocolError, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.security.principals import Principal, Role
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ErrorReport, Level


class Sessions:
    """The clients with an open session, and the rules for what is admitted.

    Args:
        settings: Timeouts and limits.
        history: Counts refusals.
        outbox: Takes messages to peers.

    Attributes:
        clients: The clients by peer. Another class removes the batches of a client that are done.
        principals: The principals of the keys of all peers, workers included; empty if the broker has no keys.
    """

    def __init__(self, settings: BrokerSettings, history: History, outbox: Outbox) -> None:
        self.clients: dict[bytes, Client] = {}
        self.principals: dict[bytes, Principal] = {}
        self._settings = settings
        self._history = history
        self._outbox = outbox
        self._limiter = RefusalLimiter(settings.max_refusal_burst)
        self._count = 0

    def open(self, peer: bytes) -> None:
        """Open the session of a client that has none."""
        self._count += 1
        now = self._outbox.now
        self.clients[peer] = Client(peer, now, self._count, now)
        self._outbox.send(peer, m.SessionOpened(package_version=__version__, timeout_s=self._settings.client_timeout_s))

    def close(self, peer: bytes) -> Client | None:
        """Forget a peer, and return the client that it was, or None."""
        self.principals.pop(peer, None)
        return self.clients.pop(peer, None)

    def admit(self, client: Client, message: m.Submit, size_bytes: int) -> Batch | None:
        """Return the new batch of a message of some size, or None if the client has sent it before or is over its budget."""
        if message.batch in client.batches:
            return None  # Sent again, for example after a reconnect: the first one counts.
        if (error := self._over_budget(client, message, size_bytes)) is not None:
            self._outbox.send(client.peer, m.BatchFailed(batch=message.batch, error=ErrorReport.of(error)))
            return None
        batch = client.batches[message.batch] = Batch(
            client.peer,
            message.batch,
            message.model,
            message.work,
            message.limits,
            self._outbox.now,
            message.identity,
            message.prefix,
            size_bytes=size_bytes,
        )
        return batch

    def _over_budget(self, client: Client, message: m.Submit, size_bytes: int) -> ProtocolError | None:
        """Return the error if a batch is rejected, else None.

        A batch without items is rejected as well: no limit would count it, so it would take memory without bound.
        """
        settings = self._settings
        if not len(message.work):
            return ProtocolError("the batch has no items")
        if len(client.batches) >= settings.max_batches_per_client:
            return ProtocolError(f"a client may have at most {settings.max_batches_per_client} unanswered batches")
        unanswered_bytes = sum(batch.size_bytes for batch in client.batches.values())
        if unanswered_bytes + size_bytes > settings.max_bytes_per_client:
            return MessageTooLarge(
                f"a client may have at most {settings.max_bytes_per_client:,} bytes of unanswered batches; this one has "
                f"{size_bytes:,} bytes, and {unanswered_bytes:,} are unanswered"
            )
        return None

    def check_role(
        self, peer: bytes, message: m.ClientMessage | m.WorkerMessage, sender: Principal
    ) -> NotAllowed | None:
        """Return the error if a principal may not send a message, else None.

        Each role has its own messages, and a connection belongs to the principal that opened its session.
        """
        role: Role = "client" if isinstance(message, m.ClientMessage) else "worker"
        if sender.role != role:
            return NotAllowed(
                f"the key of {sender} may not send {type(message).__name__}, which requires a {role}'s key; create one "
                f"with: birdie-zmq keys new {role} NAME"
            )
        if self.principals.get(peer, sender) != sender:
            return NotAllowed(f"{sender} sent a message on the connection of {self.principals[peer]}")
        return None

    def accepted(self, peer: bytes) -> None:
        """Record that a peer has sent a valid message, so that its next invalid ones are answered again."""
        self._limiter.reset(peer)

    def refuse(self, peer: bytes, error: ProtocolError) -> None:
        """Refuse a message. The refusals that are sent and logged have a limited rate."""
        self._history.record_refusal(error.code, self._outbox.now, is_expected=isinstance(error, UnknownPeer))
        # Unknown peers are expected after a restart of the broker, and after a client was idle beyond its timeout.
        level: Level = "info" if isinstance(error, UnknownPeer) else "warning"
        self._outbox.log_refusal(level, f"refused a message: {error.message}")
        if self._limiter.allow(peer, self._outbox.now):
            self._outbox.send(peer, m.Refusal(error=ErrorReport.of(error)))
