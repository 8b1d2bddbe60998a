"""The broker's behaviour as a pure state machine, without sockets and without a clock.

`BrokerCore.handle` takes an event and the monotonic time, and returns the actions to carry out. It calls down only: the
sessions admit clients and their batches (`sessions`), the lease book follows each item from the queue to its answer
(`lease_book`), and the assignment grants leases to workers (`assignment`). All put their messages into one `outbox`.

The first message of a peer makes it a client or a worker, and each role has its own messages. The broker answers any
other message with a Refusal and continues. A draining broker grants no leases and accepts no batches. It stops as soon as
its workers hold no leases. Clients keep their unanswered batches, and submit them to the next broker.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from birdie_zmq._version import __version__
from birdie_zmq.broker.assignment import assign_waiting, steal_work
from birdie_zmq.broker.events import (
    Action,
    Drain,
    Event,
    Received,
    Revoked,
    Tick,
    Unreachable,
    Unreadable,
    Unsendable,
)
from birdie_zmq.broker.history import History
from birdie_zmq.broker.lease_book import LeaseBook, LeaseReport
from birdie_zmq.broker.outbox import Outbox
from birdie_zmq.broker.peers import Client, Worker
from birdie_zmq.broker.scheduler import SubBatch
from birdie_zmq.broker.sessions import Sessions
from birdie_zmq.broker.worker_pool import WorkerPool
from birdie_zmq.errors import ProtocolError, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.security.principals import Principal
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ErrorReport

_IGNORED_WHILE_DRAINING = m.OpenSession | m.RegisterWorker | m.Submit
"""A peer without an answer tries the next broker; a Refusal would be an error to it."""


class BrokerCore:
    """The state of a broker, and its reaction to each event.

    Args:
        settings: Timeouts and limits.
        first_lease: The number of the first lease. A broker that is started again begins elsewhere, so that a worker never
            takes an answer to an old lease for one to a new lease.
    """

    def __init__(self, settings: BrokerSettings, first_lease: int = 1) -> None:
        self._settings = settings
        self._outbox = Outbox(settings)
        self.history = History()
        self._sessions = Sessions(settings, self.history, self._outbox)
        self._leases = LeaseBook(settings, self._sessions.clients, self.history, self._outbox, first_lease)
        self._drain_deadline: float | None = None

    @property
    def workers(self) -> WorkerPool:
        """The registered workers, read-only."""
        return self._leases.workers

    @property
    def clients(self) -> Collection[Client]:
        """The clients with an open session, read-only."""
        return self._sessions.clients.values()

    @property
    def waiting(self) -> Iterable[SubBatch]:
        """The sub-batches that wait for a worker, read-only."""
        return self._leases.waiting

    @property
    def is_draining(self) -> bool:
        """Whether the broker is stopping and grants no more leases."""
        return self._drain_deadline is not None

    def principal(self, peer: bytes) -> Principal | None:
        """Return the principal of a peer's key, or None if the broker has no keys."""
        return self._sessions.principals.get(peer)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Process one event and return the actions that follow from it, in order."""
        self._outbox.now = now
        match event:
            case Received():
                self._receive(event)
            case Unreadable(peer, error):
                self._sessions.refuse(peer, error)
            case Revoked(principals):
                for peer, principal in list(self._sessions.principals.items()):
                    if principal in principals:
                        self._remove_peer(peer, f"the key of {principal} has been revoked")
            case Unreachable(peer):
                self._remove_peer(peer, "its connection was closed")
            case Unsendable():
                self._fail_unsendable(event)
            case Tick(stall_s):
                self._check_timeouts(stall_s)
                for worker in self.workers:
                    worker.update_displayed_phase(now)
                self._outbox.log_suppressed()
            case Drain():
                self._drain()
        if self._drain_deadline is None:
            assign_waiting(self._leases, now, self._settings.switch_delay_s)
            if isinstance(event, Tick):
                steal_work(self._leases, now, self._settings.steal_after_s)
        elif now >= self._drain_deadline or not any(worker.leases for worker in self.workers):
            self._outbox.stop()
        return self._outbox.take()

    def _drain(self) -> None:
        active = sum(len(worker.leases) for worker in self.workers)
        waiting = f"; waiting for {active} leases, at most {self._settings.drain_s:.0f} s" if active else ""
        self._outbox.log("info", f"stopping{waiting}")
        self._drain_deadline = self._outbox.now + self._settings.drain_s
        self._leases.waiting.clear()

    # --- Messages ----------------------------------------------------------------------------------------------------

    def _receive(self, received: Received) -> None:
        peer, message, sender = received.peer, received.message, received.sender
        error: ProtocolError | None = None
        if sender is not None:
            error = self._sessions.check_role(peer, message, sender)
        if error is None and not (self.is_draining and isinstance(message, _IGNORED_WHILE_DRAINING)):
            error = self._deliver(received)
        if error is None:
            self._sessions.accepted(peer)
        else:
            self._sessions.refuse(peer, error)

    def _deliver(self, received: Received) -> ProtocolError | None:
        """Handle a message of a peer that may send it, and return the error if it is refused."""
        peer, message = received.peer, received.message
        if isinstance(message, m.OpenSession | m.RegisterWorker):
            self._register(peer, message)
            if received.sender is not None:
                self._sessions.principals[peer] = received.sender
            return None
        client, worker = self._sessions.clients.get(peer), self.workers.get(peer)
        if client is None and worker is None:
            return UnknownPeer(f"received {type(message).__name__} before OpenSession or RegisterWorker")
        if isinstance(message, m.ClientMessage):
            if client is None:
                return ProtocolError(f"a worker may not send a {type(message).__name__}")
            client.last_seen_at = self._outbox.now
            self._deliver_from_client(client, message, received.size_bytes)
            return None
        if worker is None:
            return ProtocolError(f"a client may not send a {type(message).__name__}")
        worker.last_seen_at = self._outbox.now
        return self._deliver_from_worker(worker, message)

    def _register(self, peer: bytes, message: m.OpenSession | m.RegisterWorker) -> None:
        if isinstance(message, m.OpenSession):
            self._remove_peer(peer, "it opened a new session")
            self._sessions.open(peer)
            return
        self._remove_peer(peer, "it registered again")
        now = self._outbox.now
        worker = Worker(peer, now, message, now, message.model, now, frozenset(message.request_arguments))
        self.workers.add(worker)
        self._outbox.log("info", f"{worker.name} is ready")
        self._outbox.send(
            peer, m.WorkerRegistered(package_version=__version__, timeout_s=self._settings.worker_timeout_s)
        )

    def _deliver_from_client(
        self, client: Client, message: m.Submit | m.Ping | m.CloseSession, size_bytes: int
    ) -> None:
        match message:
            case m.Submit():
                if (batch := self._sessions.admit(client, message, size_bytes)) is not None:
                    self._leases.waiting.append(SubBatch.whole(batch))
            case m.Ping():
                self._send_pong(client.peer)
            case m.CloseSession():
                self._remove_peer(client.peer, "it closed its session")

    def _deliver_from_worker(
        self, worker: Worker, message: m.Heartbeat | m.DrainWorker | m.CloseWorker | LeaseReport
    ) -> ProtocolError | None:
        match message:
            case m.Heartbeat(phase=phase, request_arguments=request_arguments, computed=computed):
                worker.phase = phase
                worker.request_arguments = frozenset(request_arguments)
                self.history.record_compute(worker.computed, computed, self._outbox.now)
                worker.computed = computed
                self._send_pong(worker.peer)
            case m.DrainWorker():
                self.workers.drain(worker)
            case m.CloseWorker():
                self._leases.return_all(worker)
                self._remove_peer(worker.peer, "it shut down")
            case _:
                return self._leases.receive(worker, message)
        return None

    def _fail_unsendable(self, event: Unsendable) -> None:
        """Fail the batch of a lease that exceeds the frame limit; otherwise the broker would wait for it forever."""
        report = ErrorReport.of(event.error)
        worker = self.workers.get(event.peer)
        if isinstance(event.message, m.Lease) and worker is not None:
            self._leases.fail_lease(worker, event.message.lease, report)
        else:
            self._outbox.send(event.peer, m.Refusal(error=report))

    # --- Peers -------------------------------------------------------------------------------------------------------

    def _check_timeouts(self, stall_s: float) -> None:
        """Remove peers whose timeout has passed, and probe silent ones.

        A Pong that cannot be delivered reveals a dead process before the timeout does.
        """
        settings, now = self._settings, self._outbox.now
        timeouts: list[tuple[Client | Worker, float]] = [
            *((client, settings.client_timeout_s) for client in self.clients),
            *((worker, settings.worker_timeout_s) for worker in self.workers),
        ]
        for each, timeout_s in timeouts:
            each.last_seen_at += stall_s
            if now - each.last_seen_at > timeout_s:
                self._remove_peer(each.peer, f"it was silent for more than {timeout_s:g} s")
        latest = now - settings.probe_s
        silent = [worker.peer for worker in self.workers if worker.last_seen_at < latest]
        silent += [client.peer for client in self.clients if client.last_seen_at < latest and client.batches]
        for peer in silent:
            self._send_pong(peer)

    def _remove_peer(self, peer: bytes, reason: str) -> None:
        client = self._sessions.close(peer)
        if client is not None:
            for batch in client.batches.values():
                self._leases.cancel(batch)
        self._leases.remove_worker(peer, reason)

    def _send_pong(self, peer: bytes) -> None:
        history = self.history
        self._outbox.send(
            peer,
            m.Pong(workers=len(self.workers), model_switches=history.model_switches, retries=history.retries),
        )
