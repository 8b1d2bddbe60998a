"""What the broker does, with no socket and no clock in it.

`Broker.handle(event, now)` takes what happened and the monotonic time, and returns what to send. A peer is what its
greeting made it, a client or a worker, and each role has a table of the messages it may send. The life of a batch::

    Submit ─▶ queued ─▶ leased ─▶ settled, item by item ─▶ done
                ▲          │
                └──────────┘  its worker or model process is gone: back to the head of the queue, less what is settled;
                              in halves if that happens again (`quarantine`)

Whatever else a peer sends gets a Refusal, and the broker goes on. One that drains hands nothing out and takes nothing
in any more, and stops when its workers hold nothing: what it has queued, its clients still have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from birdie_zmq._version import __version__
from birdie_zmq.broker.quarantine import after_loss
from birdie_zmq.broker.queues import Batch, Part, Queues
from birdie_zmq.config import BrokerSettings
from birdie_zmq.errors import InternalError, ProtocolError, UnknownPeer, WorkerUnavailable
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
    """Time has passed.

    ``late_s`` is how much more of it than should have: this process itself was stopped, and no peer is to blame for
    what it could not hear meanwhile.
    """

    late_s: float = 0.0


@dataclass(frozen=True)
class Drain:
    """The broker is to stop in good order."""


Event = Received | Unreadable | Unreachable | Tick | Drain


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


@dataclass(frozen=True)
class Stop:
    """Nothing is left to wait for."""


Action = Send | Log | Stop


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
    leases: dict[int, Part] = field(default_factory=dict)
    drains: bool = False

    @property
    def has_room(self) -> bool:
        """Whether it may be given another lease; a suspect has its worker for itself."""
        suspected = any(part.is_suspect for part in self.leases.values())
        return not self.drains and not suspected and len(self.leases) < self.registration.capacity

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
        self._switches = 0
        self._losses = 0
        self._losses_in_a_row: dict[m.ModelSpec, int] = {}
        self._drains_until: float | None = None
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
            case Tick(late_s):
                self._expire(late_s)
            case Drain():
                self._drain()
        if self._drains_until is None:
            self._assign()
        elif self._now >= self._drains_until or not any(worker.leases for worker in self._workers.values()):
            self._actions.append(Stop())
        actions, self._actions = self._actions, []
        return actions

    def _drain(self) -> None:
        held = sum(len(worker.leases) for worker in self._workers.values())
        waiting = f"; {held} leases are waited for, {self._settings.drain_s:.0f} s at most" if held else ""
        self._log("info", f"stopping{waiting}")
        self._drains_until = self._now + self._settings.drain_s
        self._queues.clear()

    # --- Messages ----------------------------------------------------------------------------------------------------

    def _received(self, peer: bytes, message: m.ClientMessage | m.WorkerMessage) -> None:
        kind = type(message)
        if self._drains_until is not None and kind in _IGNORED_WHILE_DRAINING:
            pass  # The next broker will be asked: no answer is no refusal.
        elif kind in _GREETINGS:
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
        if message.batch in batches:
            return  # Sent twice; the first one stands.
        if len(batches) >= self._settings.max_batches_per_client:
            error = ProtocolError(f"a client may have {self._settings.max_batches_per_client} batches at once")
            self._send(client.peer, m.BatchFailed(batch=message.batch, error=m.ErrorReport.of(error)))
            return
        batch = Batch(
            client.peer, message.batch, message.model, message.work, message.limits, self._now, message.identity
        )
        self._queues.append(Part.whole(batch))

    def _ping(self, client: _Client, message: m.Ping) -> None:
        del message
        self._send(client.peer, self._pong())

    def _close_session(self, client: _Client, message: m.CloseSession) -> None:
        del message
        self._forget(client.peer, "it closed its session")

    def _register_worker(self, peer: bytes, message: m.RegisterWorker) -> None:
        self._forget(peer, "it registered again")
        worker = _Worker(peer, self._now, message, message.model, self._now)
        self._workers[peer] = worker
        self._log("info", f"{worker.name} is ready")
        self._send(peer, m.WorkerRegistered(package_version=__version__, timeout_s=self._settings.worker_timeout_s))

    def _heartbeat(self, worker: _Worker, message: m.Heartbeat) -> None:
        del message
        self._send(worker.peer, self._pong())

    def _lease_answered(self, worker: _Worker, message: m.LeaseAnswered) -> None:
        part = worker.leases.get(message.lease)
        if part is None:
            return  # A late answer: the lease was given up, and what it answers is somebody else's now.
        items = message.indices.tolist()
        if len(items) != len(message.answers) or not all(0 <= item < len(part.items) for item in items):
            self._refuse(worker.peer, ProtocolError("an answer does not fit the lease that it names"))
            return
        batch = part.batch
        indices = [part.items[item] for item in items]
        if len(set(indices)) != len(indices) or not batch.settled.isdisjoint(indices):
            self._refuse(worker.peer, ProtocolError("an item was answered twice under one lease"))
            return
        batch.settled.update(indices)
        self._losses_in_a_row.pop(batch.model, None)
        where = np.array(indices, dtype=np.int32)
        self._send(batch.client, m.Answered(batch=batch.number, indices=where, answers=message.answers))

    def _lease_failed(self, worker: _Worker, message: m.LeaseFailed) -> None:
        part = worker.leases.pop(message.lease, None)
        if part is None:
            return
        if message.index is None or message.index >= len(part.items):
            self._fail(part.batch, message.error)
            return
        self._fail_item(part.batch, part.items[message.index], message.error)
        if not part.is_settled:
            self._queues.put_back(part)

    def _lease_done(self, worker: _Worker, message: m.LeaseDone) -> None:
        part = worker.leases.pop(message.lease, None)
        if part is not None and not part.is_settled:
            error = InternalError(f"the {worker.name} called a batch done with answers missing")
            self._fail(part.batch, m.ErrorReport.of(error))

    def _lease_crashed(self, worker: _Worker, message: m.LeaseCrashed) -> None:
        part = worker.leases.pop(message.lease, None)
        if part is not None:
            self._lose(part, message.error)

    def _lease_returned(self, worker: _Worker, message: m.LeaseReturned) -> None:
        part = worker.leases.pop(message.lease, None)
        if part is not None and not part.is_settled:
            self._queues.put_back(part)

    def _lease_notice(self, worker: _Worker, message: m.LeaseNotice) -> None:
        part = worker.leases.get(message.lease)
        if part is not None:
            self._notify(part.batch, message.level, message.text)

    def _drain_worker(self, worker: _Worker, message: m.DrainWorker) -> None:
        del message
        worker.drains = True

    def _close_worker(self, worker: _Worker, message: m.CloseWorker) -> None:
        del message
        for part in reversed(worker.leases.values()):
            if not part.is_settled:
                self._queues.put_back(part)  # Going away in good order is no loss.
        worker.leases.clear()
        self._forget(worker.peer, "it said goodbye")

    # --- Peers that come and go --------------------------------------------------------------------------------------

    def _expire(self, late_s: float) -> None:
        """Forget who is silent too long; before that, say something: what cannot be delivered tells of a dead process."""
        for client in list(self._clients.values()):
            client.seen_at += late_s
            if self._now - client.seen_at > self._settings.client_timeout_s:
                self._forget(client.peer, "it was silent too long")
        for worker in list(self._workers.values()):
            worker.seen_at += late_s
            if self._now - worker.seen_at > self._settings.worker_timeout_s:
                self._forget(worker.peer, "it was silent too long")
        latest = self._now - self._settings.probe_s
        silent = [worker.peer for worker in self._workers.values() if worker.seen_at < latest]
        silent += [peer for peer, client in self._clients.items() if client.seen_at < latest and self._batches_of(peer)]
        for peer in silent:
            self._send(peer, self._pong())

    def _forget(self, peer: bytes, reason: str) -> None:
        if self._clients.pop(peer, None) is not None:
            for batch in self._batches_of(peer).values():
                self._abandon(batch)
        worker = self._workers.pop(peer, None)
        if worker is None:
            return
        self._log("info", f"{worker.name} has gone: {reason}")
        unsettled = [part for part in worker.leases.values() if not part.is_settled]
        for part in reversed(unsettled[1:]):
            self._queues.put_back(part)  # It was at the first one, and had not begun with the others.
        for part in unsettled[:1]:
            error = WorkerUnavailable(f"the {worker.name} went away while it worked on this: {reason}")
            self._lose(part, m.ErrorReport.of(error))

    def _abandon(self, batch: Batch) -> None:
        """Nobody waits for a batch any more: take it out of the queues and back from the workers."""
        self._queues.drop(batch)
        for worker in self._workers.values():
            for lease in [lease for lease, part in worker.leases.items() if part.batch is batch]:
                del worker.leases[lease]
                self._send(worker.peer, m.CancelLease(lease=lease))

    # --- Losses ------------------------------------------------------------------------------------------------------

    def _lose(self, part: Part, error: m.ErrorReport) -> None:
        """Whoever worked on a part is gone: try it again, or halve it, or give it up."""
        if part.is_settled:
            return
        batch = part.batch
        self._losses += 1
        in_a_row = self._losses_in_a_row.get(batch.model, 0) + 1
        self._losses_in_a_row[batch.model] = in_a_row
        if in_a_row >= self._settings.max_losses_in_a_row:
            del self._losses_in_a_row[batch.model]
            text = f"what computes {batch.model} died {in_a_row} times without an answer in between; the last time: "
            self._fail(batch, _prefixed(text, error))
            return
        again = after_loss(part, self._settings.max_losses)
        if not again:
            (item,) = (item for item in part.items if item not in batch.settled)
            text = f"this request was given up: {part.losses} times what worked on it died; the last time: "
            self._fail_item(batch, item, _prefixed(text, error))
            return
        for each in reversed(again):
            self._queues.put_back(each)
        text = error.message.partition("\n")[0]
        self._notify(batch, "warning", f"what was being computed for {batch.model} is done again: {text}")

    # --- Assignment --------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Give every worker that has room what it is to work on.

        A worker that has the model comes first, so that no other changes models for what it can take at once.
        """
        for may_change in (False, True):
            for worker in self._workers.values():
                while worker.has_room:
                    part = self._queues.choose(
                        worker.model,
                        worker.model_since,
                        self._now,
                        self._settings.patience_s,
                        alone=not worker.leases,
                        may_change=may_change,
                    )
                    if part is None:
                        break
                    self._lease(worker, part)

    def _lease(self, worker: _Worker, part: Part) -> None:
        batch = part.batch
        if batch.model != worker.model:
            if worker.model is not None:
                self._switches += 1
                self._log("info", f"{worker.name} changes from {worker.model} to {batch.model}")
            worker.model, worker.model_since = batch.model, self._now
        work = part.next_attempt()
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        worker.leases[lease] = part
        self._send(
            worker.peer,
            m.Lease(
                lease=lease,
                attempt=part.attempts,
                model=batch.model,
                work=work,
                limits=batch.limits,
                identity=batch.identity,
            ),
        )

    # --- Actions -----------------------------------------------------------------------------------------------------

    def _batches_of(self, peer: bytes) -> dict[int, Batch]:
        """The batches of a client that are not settled, by its own numbers."""
        leased = [part for worker in self._workers.values() for part in worker.leases.values() if not part.is_settled]
        return {part.batch.number: part.batch for part in [*self._queues, *leased] if part.batch.client == peer}

    def _send(self, peer: bytes, message: m.BrokerToClient | m.BrokerToWorker | m.Refusal) -> None:
        self._actions.append(Send(peer, message))

    def _pong(self) -> m.Pong:
        return m.Pong(workers=len(self._workers), switches=self._switches, losses=self._losses)

    def _notify(self, batch: Batch, level: m.Level, text: str) -> None:
        self._send(batch.client, m.Notice(batch=batch.number, level=level, text=text))

    def _fail(self, batch: Batch, error: m.ErrorReport) -> None:
        self._send(batch.client, m.BatchFailed(batch=batch.number, error=error))
        self._abandon(batch)

    def _fail_item(self, batch: Batch, item: int, error: m.ErrorReport) -> None:
        batch.settled.add(item)
        self._send(batch.client, m.ItemFailed(batch=batch.number, index=item, error=error))

    def _refuse(self, peer: bytes, error: ProtocolError) -> None:
        # A client that was idle for long, or a broker that is new, makes unknown peers in the ordinary course of things.
        self._log("info" if isinstance(error, UnknownPeer) else "warning", f"refused a message: {error.message}")
        self._send(peer, m.Refusal(error=m.ErrorReport.of(error)))

    def _log(self, level: m.Level, text: str) -> None:
        self._actions.append(Log(level, text))


def _prefixed(text: str, error: m.ErrorReport) -> m.ErrorReport:
    return m.ErrorReport(code=error.code, message=text + error.message, traceback=error.traceback)


_IGNORED_WHILE_DRAINING = frozenset({m.OpenSession, m.RegisterWorker, m.Submit})
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
        m.LeaseCrashed: Broker._lease_crashed,
        m.LeaseReturned: Broker._lease_returned,
        m.DrainWorker: Broker._drain_worker,
        m.CloseWorker: Broker._close_worker,
    }
)
