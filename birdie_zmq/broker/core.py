"""What the broker does, with no socket and no clock in it.

`BrokerCore.handle(event, now)` takes what happened and the monotonic time, and returns what to send. A peer is what its
greeting made it, a client or a worker, and each role has a table of the messages it may send. The life of a batch::

    Submit ─▶ queued ─▶ leased ─▶ settled, item by item ─▶ done
                ▲          │
                └──────────┘  its worker or model process is gone: back to the head of the queue, less what is settled;
                              in halves if that happens again (`quarantine`)

Whatever else a peer sends gets a Refusal, and the broker goes on. One that drains hands nothing out and takes nothing
in any more, and stops when its workers hold nothing: what it has queued, its clients still have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from birdie_zmq._version import __version__
from birdie_zmq.broker.events import (
    Action,
    Drain,
    Event,
    Log,
    Received,
    Revoked,
    Send,
    Stop,
    Tick,
    Unreachable,
    Unreadable,
    Unsendable,
)
from birdie_zmq.broker.history import History
from birdie_zmq.broker.peers import Client, Worker
from birdie_zmq.broker.rate_limits import LogLimiter, RefusalLimiter
from birdie_zmq.broker.retry_policy import split_for_retry
from birdie_zmq.broker.scheduler import Batch, PrefixAffinity, Scheduler, SubBatch
from birdie_zmq.broker.work_stealing import Steal, plan_early_steals, plan_steals
from birdie_zmq.broker.worker_pool import ActiveLease, WorkerPool
from birdie_zmq.errors import (
    BirdieError,
    InternalError,
    MessageTooLarge,
    NotAllowed,
    ProtocolError,
    UnknownPeer,
    WorkerUnavailable,
)
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.security.principals import Principal, Role
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ErrorReport, Level, ModelSpec


class BrokerCore:
    """The broker's whole behaviour.

    Args:
        settings: Timeouts and bounds.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._clients: dict[bytes, Client] = {}
        self._workers = WorkerPool()
        self._holders: dict[bytes, Principal] = {}
        self._queues = Scheduler()
        self._sessions = 0
        self.history = History()
        self._next_lease = 1
        self._switches = 0
        self._losses = 0
        self._losses_in_a_row: dict[ModelSpec, int] = {}
        self._drains_until: float | None = None
        self._refusals = RefusalLimiter(settings.max_refusals_in_a_row)
        self._refused = False
        self._size_bytes = 0
        self._lines = LogLimiter(settings.max_log_lines_at_once, settings.max_log_lines_per_s)
        self._refusal_lines = LogLimiter(1, 1.0)
        self._actions: list[Action] = []
        self._now = 0.0

    @property
    def workers(self) -> WorkerPool:
        """Who computes, to be looked at only."""
        return self._workers

    @property
    def clients(self) -> Collection[Client]:
        """Who asks, to be looked at only."""
        return self._clients.values()

    @property
    def waiting(self) -> Iterable[SubBatch]:
        """What waits for a worker, to be looked at only."""
        return self._queues

    @property
    def drains(self) -> bool:
        """Whether it hands nothing out any more."""
        return self._drains_until is not None

    @property
    def switches(self) -> int:
        """How often a worker changed from one model to another."""
        return self._switches

    @property
    def losses(self) -> int:
        """How often what was being computed was lost."""
        return self._losses

    def holder(self, peer: bytes) -> Principal | None:
        """Whose key a peer has, where there are keys."""
        return self._holders.get(peer)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; what must be done because of it, in order."""
        self._now = now
        match event:
            case Received(peer, message, size_bytes, sender):
                self._received(peer, message, size_bytes, sender)
            case Unreadable(peer, error):
                self._refuse(peer, error)
            case Revoked(holders):
                for peer in [peer for peer, holder in self._holders.items() if holder in holders]:
                    self._forget(peer, f"the key of {self._holders[peer]} has been revoked")
            case Unreachable(peer):
                self._forget(peer, "its connection is gone")
            case Unsendable(peer, message, error):
                self._cannot_send(peer, message, error)
            case Tick(stall_s):
                self._expire(stall_s)
                self._note_phases()
                self._log_rest()
            case Drain():
                self._drain()
        if self._drains_until is None:
            self._assign()
            if isinstance(event, Tick):
                self._share()
        elif self._now >= self._drains_until or not any(worker.leases for worker in self._workers):
            self._actions.append(Stop())
        actions, self._actions = self._actions, []
        return actions

    def _drain(self) -> None:
        held = sum(len(worker.leases) for worker in self._workers)
        waiting = f"; {held} leases are waited for, {self._settings.drain_s:.0f} s at most" if held else ""
        self._log("info", f"stopping{waiting}")
        self._drains_until = self._now + self._settings.drain_s
        self._queues.clear()

    # --- Messages ----------------------------------------------------------------------------------------------------

    def _received(
        self, peer: bytes, message: m.ClientMessage | m.WorkerMessage, size_bytes: int, sender: Principal | None
    ) -> None:
        kind = type(message)
        self._size_bytes, self._refused = size_bytes, False
        if sender is not None and (error := self._not_allowed(peer, kind, sender)) is not None:
            self._refuse(peer, error)
        elif self._drains_until is not None and kind in _IGNORED_WHILE_DRAINING:
            pass  # The next broker will be asked: no answer is no refusal.
        elif kind in _GREETINGS:
            _GREETINGS[kind](self, peer, message)
            if sender is not None:
                self._holders[peer] = sender
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
        if not self._refused:
            self._refusals.made_sense(peer)

    def _not_allowed(self, peer: bytes, kind: type, sender: Principal) -> NotAllowed | None:
        """Why the holder of a key may not send a message; a client's key is no worker's, and no other client's."""
        role = _ROLES[kind]
        if sender.role != role:
            return NotAllowed(
                f"the key of {sender} may not send {kind.__name__}, which takes a {role}'s key; one is made with: "
                f"birdie-zmq keys new {role} NAME"
            )
        if self._holders.get(peer, sender) != sender:
            return NotAllowed(f"{sender} speaks as {self._holders[peer]}")
        return None

    def _open_session(self, peer: bytes, message: m.OpenSession) -> None:
        del message
        self._forget(peer, "it greeted again")
        self._sessions += 1
        self._clients[peer] = Client(peer, self._now, self._sessions, self._now)
        opened = m.SessionOpened(package_version=__version__, timeout_s=self._settings.client_timeout_s)
        self._send(peer, opened)

    def _submit(self, client: Client, message: m.Submit) -> None:
        if message.batch in client.batches:
            return  # Sent twice; the first one stands.
        if (error := self._beyond_budget(client, message)) is not None:
            self._send(client.peer, m.BatchFailed(batch=message.batch, error=ErrorReport.of(error)))
            return
        batch = client.batches[message.batch] = Batch(
            client.peer,
            message.batch,
            message.model,
            message.work,
            message.limits,
            self._now,
            message.identity,
            message.prefix,
            size_bytes=self._size_bytes,
        )
        self._queues.append(SubBatch.whole(batch))

    def _beyond_budget(self, client: Client, message: m.Submit) -> ProtocolError | None:
        """Why a batch is not taken; without items it would count among no batches, and be no end of memory."""
        settings = self._settings
        if not len(message.work):
            return ProtocolError("a batch must have items")
        if len(client.batches) >= settings.max_batches_per_client:
            return ProtocolError(f"a client may have {settings.max_batches_per_client} batches at once")
        held_bytes = sum(batch.size_bytes for batch in client.batches.values())
        if held_bytes + self._size_bytes > settings.max_bytes_per_client:
            return MessageTooLarge(
                f"a client may have batches of {settings.max_bytes_per_client:,} bytes at once, and this one of "
                f"{self._size_bytes:,} bytes came when {held_bytes:,} were not answered yet"
            )
        return None

    def _ping(self, client: Client, message: m.Ping) -> None:
        del message
        self._send(client.peer, self._pong())

    def _close_session(self, client: Client, message: m.CloseSession) -> None:
        del message
        self._forget(client.peer, "it closed its session")

    def _register_worker(self, peer: bytes, message: m.RegisterWorker) -> None:
        self._forget(peer, "it registered again")
        worker = Worker(peer, self._now, message, self._now, message.model, self._now)
        self._workers.add(worker)
        self._log("info", f"{worker.name} is ready")
        self._send(peer, m.WorkerRegistered(package_version=__version__, timeout_s=self._settings.worker_timeout_s))

    def _heartbeat(self, worker: Worker, message: m.Heartbeat) -> None:
        worker.phase = message.phase
        self.history.computed(worker.computed, message.computed, self._now)
        worker.computed = message.computed
        self._send(worker.peer, self._pong())

    def _lease_answered(self, worker: Worker, message: m.LeaseAnswered) -> None:
        part = worker.leases.get(message.lease)
        if part is None:
            return  # A late answer: the lease was given up, and what it answers is somebody else's now.
        items = message.indices.tolist()
        if len(items) != len(message.answers) or (items and not 0 <= min(items) <= max(items) < len(part.items)):
            self._refuse(worker.peer, ProtocolError("an answer does not fit the lease that it names"))
            return
        batch = part.batch
        indices = [part.items[item] for item in items]
        if len(set(indices)) != len(indices) or not part.answered.isdisjoint(indices):
            self._refuse(worker.peer, ProtocolError("an item was answered twice under one lease"))
            return
        part.answered.update(indices)
        self._losses_in_a_row.pop(batch.model, None)
        # Of those that another worker was given as well, it may have been first.
        fresh = [position for position, index in enumerate(indices) if index not in batch.settled]
        if not fresh:
            self._send(batch.client, m.Progressed(batch=batch.number, progress=message.progress))
            return
        self._settle(batch, indices)
        self._count(worker, batch, len(fresh))
        self._send(
            batch.client,
            m.Answered(
                batch=batch.number,
                indices=np.array([indices[position] for position in fresh], dtype=np.int32),
                answers=message.answers if len(fresh) == len(indices) else message.answers.select(fresh),
                progress=message.progress,
            ),
        )
        self._end_settled(part)

    def _lease_advanced(self, worker: Worker, message: m.LeaseProgressed) -> None:
        part = worker.leases.get(message.lease)
        if part is not None:
            self._send(part.batch.client, m.Progressed(batch=part.batch.number, progress=message.progress))

    def _count(self, worker: Worker, batch: Batch, answers: int) -> None:
        worker.served += answers
        if (client := self._clients.get(batch.client)) is not None:
            client.answered += answers
        self.history.answered(answers, self._now, is_whole=len(batch.settled) == len(batch.work))

    def _lease_failed(self, worker: Worker, message: m.LeaseFailed) -> None:
        part = self._workers.take_back(worker, message.lease)
        if part is None:
            return
        if part.is_settled:
            return  # By another worker, which was given it as well.
        if message.index is None or message.index >= len(part.items):
            self._fail(part.batch, message.error)
            return
        if (item := part.items[message.index]) not in part.batch.settled:
            self._fail_item(part.batch, item, message.error)
            self._end_settled(part)
        self._put_back(part)

    def _lease_done(self, worker: Worker, message: m.LeaseDone) -> None:
        part = self._workers.take_back(worker, message.lease)
        if part is not None and not part.is_settled:
            error = InternalError(f"the {worker.name} called a batch done with answers missing")
            self._fail(part.batch, ErrorReport.of(error))

    def _lease_crashed(self, worker: Worker, message: m.LeaseCrashed) -> None:
        part = self._workers.take_back(worker, message.lease)
        if part is not None:
            self._lose(part, message.error)

    def _lease_returned(self, worker: Worker, message: m.LeaseReturned) -> None:
        part = self._workers.take_back(worker, message.lease)
        if part is not None:
            self._put_back(part)

    def _lease_notice(self, worker: Worker, message: m.LeaseNotice) -> None:
        part = worker.leases.get(message.lease)
        if part is not None:
            self._notify(part.batch, message.level, message.text, once=message.once)

    def _drain_worker(self, worker: Worker, message: m.DrainWorker) -> None:
        del message
        self._workers.drain(worker)

    def _close_worker(self, worker: Worker, message: m.CloseWorker) -> None:
        del message
        for lease in reversed(list(worker.leases)):
            if (part := self._workers.take_back(worker, lease)) is not None:
                self._put_back(part)  # Going away in good order is no loss.
        self._forget(worker.peer, "it said goodbye")

    # --- Peers that come and go --------------------------------------------------------------------------------------

    def _expire(self, stall_s: float) -> None:
        """Forget who is silent too long; before that, say something: what cannot be delivered tells of a dead process."""
        for client in list(self._clients.values()):
            client.seen_at += stall_s
            if self._now - client.seen_at > self._settings.client_timeout_s:
                self._forget(client.peer, "it was silent too long")
        for worker in list(self._workers):
            worker.seen_at += stall_s
            if self._now - worker.seen_at > self._settings.worker_timeout_s:
                self._forget(worker.peer, "it was silent too long")
        latest = self._now - self._settings.probe_s
        silent = [worker.peer for worker in self._workers if worker.seen_at < latest]
        silent += [peer for peer, client in self._clients.items() if client.seen_at < latest and client.batches]
        for peer in silent:
            self._send(peer, self._pong())

    def _note_phases(self) -> None:
        """A process that is ready works when its worker holds leases, and else waits for some."""
        for worker in self._workers:
            doing = worker.phase
            if doing in ("ready", "running"):
                doing = "running" if worker.leases else "idle"
            if doing != worker.doing:
                worker.doing, worker.doing_since = doing, self._now

    def _forget(self, peer: bytes, reason: str) -> None:
        self._holders.pop(peer, None)
        if (client := self._clients.pop(peer, None)) is not None:
            for batch in client.batches.values():
                self._take_back(batch)
        worker = self._workers.remove(peer)
        if worker is None:
            return
        self._log("info", f"{worker.name} has gone: {reason}")
        self.history.happened("gone", f"{worker.name}: {reason}", self._now)
        unsettled = [part for part in worker.leases.values() if not part.is_settled]
        for part in reversed(unsettled[1:]):
            self._put_back(part)  # It was at the first one, and had not begun with the others.
        for part in unsettled[:1]:
            error = WorkerUnavailable(f"the {worker.name} went away while it worked on this: {reason}")
            self._lose(part, ErrorReport.of(error))

    def _settle(self, batch: Batch, items: Iterable[int]) -> None:
        """Some items of a batch need no further work."""
        batch.settled.update(items)
        if len(batch.settled) == len(batch.work) and (client := self._clients.get(batch.client)) is not None:
            client.batches.pop(batch.number, None)

    def _take_back(self, batch: Batch) -> None:
        """Nobody waits for a batch any more: take it out of the queues and back from the workers."""
        self._queues.drop(batch)
        for held in self._workers.leases_of(batch):
            self._cancel(held)

    def _cancel(self, held: ActiveLease) -> None:
        self._workers.take_back(held.worker, held.lease)
        self._send(held.worker.peer, m.CancelLease(lease=held.lease))

    def _put_back(self, part: SubBatch) -> None:
        """Queue what is left of a part that no worker has any more; not what another was given as well."""
        for twin in self._twins(part):
            part.items = [item for item in part.items if item not in twin.part.items]
        if not part.is_settled:
            self._queues.put_back(part)

    def _twins(self, part: SubBatch) -> list[ActiveLease]:
        """Who else has items of a shared part."""
        if not part.is_shared:
            return []
        others = (held for held in self._workers.leases_of(part.batch) if held.part is not part)
        return [held for held in others if not set(part.items).isdisjoint(held.part.items)]

    def _end_settled(self, part: SubBatch) -> None:
        """Take from the workers what another has done before them."""
        for twin in self._twins(part):
            if twin.part.is_settled:
                self._cancel(twin)

    # --- Losses ------------------------------------------------------------------------------------------------------

    def _lose(self, part: SubBatch, error: ErrorReport) -> None:
        """Whoever worked on a part is gone: try it again, or halve it, or give it up."""
        if part.is_settled:
            return
        batch = part.batch
        self._losses += 1
        self.history.happened("lost", f"{error.code}, at work on {batch.model}", self._now)
        in_a_row = self._losses_in_a_row.get(batch.model, 0) + 1
        self._losses_in_a_row[batch.model] = in_a_row
        if in_a_row >= self._settings.max_losses_in_a_row:
            del self._losses_in_a_row[batch.model]
            text = f"what computes {batch.model} died {in_a_row} times without an answer in between; the last time: "
            self._fail(batch, _prefixed(text, error))
            return
        twins = self._twins(part)
        for twin in twins:
            self._workers.suspect(twin)  # What it has may be what killed a process.
            part.items = [item for item in part.items if item not in twin.part.items]
        if twins and batch.settled.issuperset(part.items):
            return
        again = split_for_retry(part, self._settings.max_losses)
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

        A worker that has the model comes first, so that no other changes models for what it can take at once; and whoever
        has least, so that none has two batches while another has nothing. A model that no worker has goes to one without a
        model before another has to let go of its own.
        """
        for may_change in (False, True):
            given = True
            while given and len(self._queues):
                given = False
                # While a suspect waits, all others have room, and each message would have a look at each of them.
                ready = self._workers.with_room(idle_only=self._queues.wants_idle)
                if may_change:
                    ready.sort(key=lambda worker: (len(worker.leases), worker.model is not None))
                for worker in ready:
                    if (part := self._choose(worker, may_change=may_change)) is not None:
                        self._lease(worker, part)
                        given = True
                        if not len(self._queues):
                            return

    def _choose(self, worker: Worker, *, may_change: bool) -> SubBatch | None:
        return self._queues.choose(
            worker.model,
            worker.model_since,
            self._now,
            self._settings.switch_delay_s,
            alone=not worker.leases,
            may_change=may_change,
            prefixes=PrefixAffinity(worker.prefix, self._workers.prefixes),
        )

    def _share(self) -> None:
        """Let workers take over from others, where nothing waits: who has had nothing to do for a while, or soon will have."""
        for worker in self._workers:
            count, idle_since, at_last_since = len(worker.leases), worker.idle_since, worker.at_last_since
            worker.idle_since = None if count else self._now if idle_since is None else idle_since
            worker.at_last_since = None if count != 1 else self._now if at_last_since is None else at_last_since
        if len(self._queues):
            return
        latest = self._now - self._settings.share_after_s
        idle = [w for w in self._workers if w.idle_since is not None and w.idle_since <= latest and not w.drains]
        if idle:
            for taken in list(plan_steals(idle, self._workers)):
                self._take_over(taken)
        at_last = [w for w in self._workers if w.at_last_since is not None and w.at_last_since <= latest and w.has_room]
        if at_last:
            for taken in list(plan_early_steals(at_last, self._workers)):
                self._take_over(taken)

    def _take_over(self, taken: Steal) -> None:
        """Give a worker what it takes from another, which keeps the rest; of what has begun, it keeps all."""
        part = taken.worker.leases[taken.lease]
        if taken.is_begun:
            part.is_shared = True
        else:
            self._cancel(ActiveLease(taken.worker, taken.lease, part))
            gone = part.batch.settled.union(taken.items)
            kept = [item for item in part.items if item not in gone]
            if kept:
                self._lease(taken.worker, SubBatch(part.batch, kept, part.attempts))
        self._lease(taken.idle, SubBatch(part.batch, taken.items, part.attempts, is_shared=taken.is_begun))

    def _lease(self, worker: Worker, part: SubBatch) -> None:
        batch = part.batch
        if batch.model != worker.model:
            if worker.model is not None:
                self._switches += 1
                self._log("info", f"{worker.name} changes from {worker.model} to {batch.model}")
            self._workers.load(worker, part, self._now)
        work = part.next_attempt()
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        self._workers.give(worker, lease, part)
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

    def _cannot_send(self, peer: bytes, message: object, error: BirdieError) -> None:
        """A lease that no frame can hold fails its batch, or else it would be waited for without end."""
        worker = self._workers.get(peer)
        if isinstance(message, m.Lease) and worker is not None:
            part = self._workers.take_back(worker, message.lease)
            if part is not None:
                self._fail(part.batch, ErrorReport.of(error))
        else:
            self._send(peer, m.Refusal(error=ErrorReport.of(error)))

    # --- Actions -----------------------------------------------------------------------------------------------------

    def _send(self, peer: bytes, message: m.BrokerToClient | m.BrokerToWorker | m.Refusal) -> None:
        self._actions.append(Send(peer, message))

    def _pong(self) -> m.Pong:
        return m.Pong(workers=len(self._workers), model_switches=self._switches, retries=self._losses)

    def _notify(self, batch: Batch, level: Level, text: str, *, once: bool = False) -> None:
        self._send(batch.client, m.Notice(batch=batch.number, level=level, text=text, once=once))

    def _fail(self, batch: Batch, error: ErrorReport) -> None:
        # What the error says may repeat a text of its requests, so it is for the run alone.
        self.history.failed(len(batch.work) - len(batch.settled), f"{error.code}, {batch.model}", self._now)
        self._send(batch.client, m.BatchFailed(batch=batch.number, error=error))
        self._take_back(batch)
        if (client := self._clients.get(batch.client)) is not None:
            client.batches.pop(batch.number, None)

    def _fail_item(self, batch: Batch, item: int, error: ErrorReport) -> None:
        self._settle(batch, [item])
        self.history.failed(1, f"{error.code}, {batch.model}", self._now)
        self._send(batch.client, m.ItemFailed(batch=batch.number, index=item, error=error))

    def _refuse(self, peer: bytes, error: ProtocolError) -> None:
        self._refused = True
        self.history.refused(error.code, self._now, is_ordinary=isinstance(error, UnknownPeer))
        # A client that was idle for long, or a broker that is new, makes unknown peers in the ordinary course of things.
        level: Level = "info" if isinstance(error, UnknownPeer) else "warning"
        self._write(level, self._refusal_lines.write(f"refused a message: {error.message}", self._now))
        if self._refusals.tells(peer, self._now):
            self._send(peer, m.Refusal(error=ErrorReport.of(error)))

    def _log(self, level: Level, text: str) -> None:
        self._write(level, self._lines.write(text, self._now))

    def _log_rest(self) -> None:
        for lines in (self._refusal_lines, self._lines):
            self._write("info", lines.rest(self._now))

    def _write(self, level: Level, line: str | None) -> None:
        if line is not None:
            self._actions.append(Log(level, line))


def _prefixed(text: str, error: ErrorReport) -> ErrorReport:
    return ErrorReport(code=error.code, message=text + error.message, traceback=error.traceback)


_IGNORED_WHILE_DRAINING = frozenset({m.OpenSession, m.RegisterWorker, m.Submit})
_GREETINGS: Mapping[type, Callable[[BrokerCore, bytes, Any], None]] = MappingProxyType(
    {m.OpenSession: BrokerCore._open_session, m.RegisterWorker: BrokerCore._register_worker}
)
_FROM_CLIENT: Mapping[type, Callable[[BrokerCore, Client, Any], None]] = MappingProxyType(
    {m.Submit: BrokerCore._submit, m.Ping: BrokerCore._ping, m.CloseSession: BrokerCore._close_session}
)
_FROM_WORKER: Mapping[type, Callable[[BrokerCore, Worker, Any], None]] = MappingProxyType(
    {
        m.Heartbeat: BrokerCore._heartbeat,
        m.LeaseAnswered: BrokerCore._lease_answered,
        m.LeaseProgressed: BrokerCore._lease_advanced,
        m.LeaseFailed: BrokerCore._lease_failed,
        m.LeaseDone: BrokerCore._lease_done,
        m.LeaseNotice: BrokerCore._lease_notice,
        m.LeaseCrashed: BrokerCore._lease_crashed,
        m.LeaseReturned: BrokerCore._lease_returned,
        m.DrainWorker: BrokerCore._drain_worker,
        m.CloseWorker: BrokerCore._close_worker,
    }
)
_ROLES: Mapping[type, Role] = MappingProxyType(
    {
        m.OpenSession: "client",
        **dict.fromkeys(_FROM_CLIENT, "client"),
        m.RegisterWorker: "worker",
        **dict.fromkeys(_FROM_WORKER, "worker"),
    }
)
