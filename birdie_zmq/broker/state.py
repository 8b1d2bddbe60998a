"""What the broker does, with no socket and no clock in it.

`Broker.handle(event, now)` takes what happened and the monotonic time, and returns what to send. A peer is what its
greeting made it, a client or a worker, and each role has a table of the messages it may send. The life of a batch::

    Submit ─▶ queued ─▶ leased ─▶ answered, item by item ─▶ done
                ▲          │
                └──────────┘  its worker is gone: back to the head of the queue, less what was answered

Whatever else a peer sends gets a Refusal, and the broker goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from birdie_zmq._version import __version__
from birdie_zmq.broker.queues import Batch, Queues
from birdie_zmq.config import BrokerSettings
from birdie_zmq.errors import BirdieError, InternalError, ProtocolError, UnknownPeer, WorkerUnavailable
from birdie_zmq.wire import messages as m


@dataclass(frozen=True)
class Received:
    """A peer sent a message."""

    peer: bytes
    message: m.ClientMessage | m.WorkerMessage


@dataclass(frozen=True)
class Unreadable:
    """A peer sent bytes that are no message."""

    peer: bytes
    error: ProtocolError


@dataclass(frozen=True)
class Unreachable:
    """A message could not be delivered: the peer's connection is gone."""

    peer: bytes


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = Received | Unreadable | Unreachable | Tick


@dataclass(frozen=True)
class Send:
    """Deliver a message to a peer."""

    peer: bytes
    message: m.BrokerToClient | m.BrokerToWorker | m.Refusal


@dataclass(frozen=True)
class Log:
    """Tell the person who watches the broker."""

    level: m.Level
    text: str


Action = Send | Log


@dataclass
class _Client:
    peer: bytes
    seen_at: float


@dataclass
class _Worker:
    peer: bytes
    seen_at: float
    registration: m.RegisterWorker
    model: m.ModelSpec | None = None
    model_since: float = 0.0
    leases: dict[int, Batch] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.registration.engine} worker {self.registration.process_id} on {self.registration.host}"


class Broker:
    """The broker's whole behaviour.

    Args:
        settings: Timeouts and bounds.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._clients: dict[bytes, _Client] = {}
        self._workers: dict[bytes, _Worker] = {}
        self._queues = Queues()
        self._next_lease = 1
        self._actions: list[Action] = []
        self._now = 0.0

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; what must be done because of it, in order."""
        self._now = now
        match event:
            case Received(peer, message):
                self._received(peer, message)
            case Unreadable(peer, error):
                self._refuse(peer, error)
            case Unreachable(peer):
                self._forget(peer, "its connection is gone")
            case Tick():
                self._expire()
        self._assign()
        actions, self._actions = self._actions, []
        return actions

    # --- Messages ----------------------------------------------------------------------------------------------------

    def _received(self, peer: bytes, message: m.ClientMessage | m.WorkerMessage) -> None:
        kind = type(message)
        if kind in _GREETINGS:
            _GREETINGS[kind](self, peer, message)
        elif (client := self._clients.get(peer)) is not None and kind in _FROM_CLIENT:
            client.seen_at = self._now
            _FROM_CLIENT[kind](self, client, message)
        elif (worker := self._workers.get(peer)) is not None and kind in _FROM_WORKER:
            worker.seen_at = self._now
            _FROM_WORKER[kind](self, worker, message)
        elif peer in self._clients or peer in self._workers:
            role = "client" if peer in self._clients else "worker"
            self._refuse(peer, ProtocolError(f"a {role} may not send a {kind.__name__}"))
        else:
            self._refuse(peer, UnknownPeer(f"a {kind.__name__} came before a greeting"))

    def _open_session(self, peer: bytes, message: m.OpenSession) -> None:
        del message
        self._forget(peer, "it greeted again")
        self._clients[peer] = _Client(peer, self._now)
        opened = m.SessionOpened(package_version=__version__, timeout_s=self._settings.client_timeout_s)
        self._send(peer, opened)

    def _submit(self, client: _Client, message: m.Submit) -> None:
        batches = self._batches_of(client.peer)
        if any(batch.number == message.batch for batch in batches):
            return  # Sent twice; the first one stands.
        if len(batches) >= self._settings.max_batches_per_client:
            error = ProtocolError(f"a client may have {self._settings.max_batches_per_client} batches at once")
            self._send(client.peer, m.BatchFailed(batch=message.batch, error=m.ErrorReport.of(error)))
            return
        batch = Batch(client.peer, message.batch, message.model, message.work, message.limits, self._now)
        self._queues.append(batch)

    def _ping(self, client: _Client, message: m.Ping) -> None:
        del message
        self._send(client.peer, m.Pong(workers=len(self._workers)))

    def _close_session(self, client: _Client, message: m.CloseSession) -> None:
        del message
        self._forget(client.peer, "it closed its session")

    def _register_worker(self, peer: bytes, message: m.RegisterWorker) -> None:
        self._forget(peer, "it registered again")
        worker = _Worker(peer, self._now, message)
        self._workers[peer] = worker
        self._log("info", f"{worker.name} is ready")
        self._send(peer, m.WorkerRegistered(package_version=__version__, timeout_s=self._settings.worker_timeout_s))

    def _heartbeat(self, worker: _Worker, message: m.Heartbeat) -> None:
        del message
        self._send(worker.peer, m.Pong(workers=len(self._workers)))

    def _lease_answered(self, worker: _Worker, message: m.LeaseAnswered) -> None:
        batch = worker.leases.get(message.lease)
        if batch is None:
            return  # A late answer: the lease was given up, and what it answers is somebody else's now.
        items = message.indices.tolist()
        if len(items) != len(message.answers) or not all(0 <= item < len(batch.leased) for item in items):
            self._refuse(worker.peer, ProtocolError("an answer does not fit the lease that it names"))
            return
        indices = [batch.leased[item] for item in items]
        if len(set(indices)) != len(indices) or not batch.answered.isdisjoint(indices):
            self._refuse(worker.peer, ProtocolError("an item was answered twice under one lease"))
            return
        batch.answered.update(indices)
        answered = m.Answered(batch=batch.number, indices=np.array(indices, dtype=np.int32), answers=message.answers)
        self._send_to_client(batch, answered)

    def _lease_failed(self, worker: _Worker, message: m.LeaseFailed) -> None:
        batch = worker.leases.pop(message.lease, None)
        if batch is not None:
            known = message.index is not None and message.index < len(batch.leased)
            index = batch.leased[message.index] if known and message.index is not None else None
            self._send_to_client(batch, m.BatchFailed(batch=batch.number, error=message.error, index=index))

    def _lease_done(self, worker: _Worker, message: m.LeaseDone) -> None:
        batch = worker.leases.pop(message.lease, None)
        if batch is not None and not batch.is_answered:
            error = InternalError(f"the {worker.name} called a batch done with answers missing")
            self._fail(batch, error)

    def _lease_notice(self, worker: _Worker, message: m.LeaseNotice) -> None:
        batch = worker.leases.get(message.lease)
        if batch is not None:
            notice = m.Notice(batch=batch.number, level=message.level, text=message.text)
            self._send_to_client(batch, notice)

    def _close_worker(self, worker: _Worker, message: m.CloseWorker) -> None:
        del message
        for batch in worker.leases.values():
            batch.attempts -= 1  # Going away in good order is no failed attempt.
        self._forget(worker.peer, "it said goodbye")

    # --- Peers that come and go --------------------------------------------------------------------------------------

    def _expire(self) -> None:
        for client in list(self._clients.values()):
            if self._now - client.seen_at > self._settings.client_timeout_s:
                self._forget(client.peer, "it was silent too long")
        for worker in list(self._workers.values()):
            if self._now - worker.seen_at > self._settings.worker_timeout_s:
                self._forget(worker.peer, "it was silent too long")

    def _forget(self, peer: bytes, reason: str) -> None:
        if self._clients.pop(peer, None) is not None:
            for batch in self._batches_of(peer):
                batch.abandoned = True
            self._queues.drop(lambda batch: batch.abandoned)
        worker = self._workers.pop(peer, None)
        if worker is None:
            return
        self._log("info", f"{worker.name} has gone: {reason}")
        for batch in reversed(worker.leases.values()):
            if batch.abandoned or batch.is_answered:
                continue
            if batch.attempts >= self._settings.max_attempts:
                text = f"a batch for {batch.model} was given to {batch.attempts} workers, and each of them went away"
                self._fail(batch, WorkerUnavailable(f"{text} (the last one: {worker.name}, {reason})"))
            else:
                self._queues.put_back(batch)

    # --- Assignment --------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Give every worker that has room what it is to work on.

        A worker that has the model comes first, so that no other changes models for what it can take at once.
        """
        patience_s = self._settings.patience_s
        for may_change in (False, True):
            for worker in self._workers.values():
                while len(worker.leases) < worker.registration.capacity:
                    idle = may_change and not worker.leases
                    batch = self._queues.choose(worker.model, worker.model_since, idle, self._now, patience_s)
                    if batch is None:
                        break
                    self._lease(worker, batch)

    def _lease(self, worker: _Worker, batch: Batch) -> None:
        if batch.model != worker.model:
            if worker.model is not None:
                self._log("info", f"{worker.name} changes from {worker.model} to {batch.model}")
            worker.model, worker.model_since = batch.model, self._now
        work = batch.next_attempt()
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        worker.leases[lease] = batch
        self._send(
            worker.peer,
            m.Lease(lease=lease, attempt=batch.attempts, model=batch.model, work=work, limits=batch.limits),
        )

    # --- Actions -----------------------------------------------------------------------------------------------------

    def _batches_of(self, peer: bytes) -> list[Batch]:
        leased = [batch for worker in self._workers.values() for batch in worker.leases.values()]
        return [batch for batch in [*self._queues, *leased] if batch.client == peer and not batch.abandoned]

    def _send(self, peer: bytes, message: m.BrokerToClient | m.BrokerToWorker | m.Refusal) -> None:
        self._actions.append(Send(peer, message))

    def _send_to_client(self, batch: Batch, message: m.BrokerToClient) -> None:
        if not batch.abandoned:
            self._send(batch.client, message)

    def _fail(self, batch: Batch, error: BirdieError) -> None:
        self._send_to_client(batch, m.BatchFailed(batch=batch.number, error=m.ErrorReport.of(error)))

    def _refuse(self, peer: bytes, error: ProtocolError) -> None:
        # A client that was idle for long, or a broker that is new, makes unknown peers in the ordinary course of things.
        self._log("info" if isinstance(error, UnknownPeer) else "warning", f"refused a message: {error.message}")
        self._send(peer, m.Refusal(error=m.ErrorReport.of(error)))

    def _log(self, level: m.Level, text: str) -> None:
        self._actions.append(Log(level, text))


_GREETINGS: Mapping[type, Callable[[Broker, bytes, Any], None]] = MappingProxyType(
    {m.OpenSession: Broker._open_session, m.RegisterWorker: Broker._register_worker}
)
_FROM_CLIENT: Mapping[type, Callable[[Broker, _Client, Any], None]] = MappingProxyType(
    {m.Submit: Broker._submit, m.Ping: Broker._ping, m.CloseSession: Broker._close_session}
)
_FROM_WORKER: Mapping[type, Callable[[Broker, _Worker, Any], None]] = MappingProxyType(
    {
        m.Heartbeat: Broker._heartbeat,
        m.LeaseAnswered: Broker._lease_answered,
        m.LeaseFailed: Broker._lease_failed,
        m.LeaseDone: Broker._lease_done,
        m.LeaseNotice: Broker._lease_notice,
        m.CloseWorker: Broker._close_worker,
    }
)
