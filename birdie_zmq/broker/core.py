"""The broker's behaviour as a pure state machine, without sockets and without a clock.

`BrokerCore.handle` takes an event and the monotonic time, and returns the actions to carry out. The first
message of a peer makes it a client or a worker, and each role has a table of the messages that it may send. The life of
a batch::

    Submit ─▶ queued ─▶ leased ─▶ settled, item by item ─▶ done
                ▲          │
                └──────────┘  its worker or model process died: the unsettled items return to the head of the queue, and
                              are split in halves after another crash (`retry_policy`)

The broker answers any other message with a Refusal and continues. A draining broker grants no leases and accepts no
batches. It stops as soon as its workers hold no leases. Clients keep their unanswered batches, and submit them to the
next broker.
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
    """The state of a broker, and its reaction to each event.

    Args:
        settings: Timeouts and limits.
        first_lease: The number of the first lease. A broker that is started again begins elsewhere, so that a worker never
            takes an answer to an old lease for one to a new lease.
    """

    def __init__(self, settings: BrokerSettings, first_lease: int = 1) -> None:
        self._settings = settings
        self._clients: dict[bytes, Client] = {}
        self._workers = WorkerPool()
        self._principals: dict[bytes, Principal] = {}
        self._scheduler = Scheduler()
        self._session_count = 0
        self.history = History()
        self._next_lease = first_lease
        self._model_switches = 0
        self._retries = 0
        self._consecutive_crashes: dict[ModelSpec, int] = {}
        self._drain_deadline: float | None = None
        self._refusal_limiter = RefusalLimiter(settings.max_refusal_burst)
        self._was_refused = False
        self._message_bytes = 0
        self._log_limiter = LogLimiter(settings.max_log_burst, settings.max_log_lines_per_s)
        self._refusal_log_limiter = LogLimiter(1, 1.0)
        self._actions: list[Action] = []
        self._now = 0.0

    @property
    def workers(self) -> WorkerPool:
        """The registered workers, read-only."""
        return self._workers

    @property
    def clients(self) -> Collection[Client]:
        """The clients with an open session, read-only."""
        return self._clients.values()

    @property
    def waiting(self) -> Iterable[SubBatch]:
        """The sub-batches that wait for a worker, read-only."""
        return self._scheduler

    @property
    def is_draining(self) -> bool:
        """Whether the broker is stopping and grants no more leases."""
        return self._drain_deadline is not None

    @property
    def model_switches(self) -> int:
        """Number of times that a worker switched from one model to another."""
        return self._model_switches

    @property
    def retries(self) -> int:
        """Number of leases that ended with a crash of their worker or model process and were retried."""
        return self._retries

    def principal(self, peer: bytes) -> Principal | None:
        """Return the principal of a peer's key, or None if the broker has no keys."""
        return self._principals.get(peer)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Process one event and return the actions that follow from it, in order."""
        self._now = now
        match event:
            case Received(peer, message, size_bytes, sender):
                self._receive(peer, message, size_bytes, sender)
            case Unreadable(peer, error):
                self._refuse(peer, error)
            case Revoked(principals):
                for peer in [peer for peer, principal in self._principals.items() if principal in principals]:
                    self._remove_peer(peer, f"the key of {self._principals[peer]} has been revoked")
            case Unreachable(peer):
                self._remove_peer(peer, "its connection was closed")
            case Unsendable(peer, message, error):
                self._fail_unsendable(peer, message, error)
            case Tick(stall_s):
                self._check_timeouts(stall_s)
                self._update_phases()
                self._log_suppressed()
            case Drain():
                self._drain()
        if self._drain_deadline is None:
            self._assign()
            if isinstance(event, Tick):
                self._steal_work()
        elif self._now >= self._drain_deadline or not any(worker.leases for worker in self._workers):
            self._actions.append(Stop())
        actions, self._actions = self._actions, []
        return actions

    def _drain(self) -> None:
        active = sum(len(worker.leases) for worker in self._workers)
        waiting = f"; waiting for {active} leases, at most {self._settings.drain_s:.0f} s" if active else ""
        self._log("info", f"stopping{waiting}")
        self._drain_deadline = self._now + self._settings.drain_s
        self._scheduler.clear()

    # --- Messages ----------------------------------------------------------------------------------------------------

    def _receive(
        self, peer: bytes, message: m.ClientMessage | m.WorkerMessage, size_bytes: int, sender: Principal | None
    ) -> None:
        kind = type(message)
        self._message_bytes, self._was_refused = size_bytes, False
        if sender is not None and (error := self._check_role(peer, kind, sender)) is not None:
            self._refuse(peer, error)
        elif self._drain_deadline is not None and kind in _IGNORED_WHILE_DRAINING:
            pass  # A peer without an answer tries the next broker; a Refusal would be an error to it.
        elif kind in _HANDSHAKE_HANDLERS:
            _HANDSHAKE_HANDLERS[kind](self, peer, message)
            if sender is not None:
                self._principals[peer] = sender
        elif (client := self._clients.get(peer)) is not None and kind in _CLIENT_HANDLERS:
            client.last_seen_at = self._now
            _CLIENT_HANDLERS[kind](self, client, message)
        elif (worker := self._workers.get(peer)) is not None and kind in _WORKER_HANDLERS:
            worker.last_seen_at = self._now
            _WORKER_HANDLERS[kind](self, worker, message)
        elif peer in self._clients or peer in self._workers:
            role = "client" if peer in self._clients else "worker"
            self._refuse(peer, ProtocolError(f"a {role} may not send a {kind.__name__}"))
        else:
            self._refuse(peer, UnknownPeer(f"received {kind.__name__} before OpenSession or RegisterWorker"))
        if not self._was_refused:
            self._refusal_limiter.reset(peer)

    def _check_role(self, peer: bytes, kind: type, sender: Principal) -> NotAllowed | None:
        """Return the error if a principal may not send a message, else None.

        Each role has its own messages, and a connection belongs to the principal that opened its session.
        """
        role = _REQUIRED_ROLES[kind]
        if sender.role != role:
            return NotAllowed(
                f"the key of {sender} may not send {kind.__name__}, which requires a {role}'s key; create one with: "
                f"birdie-zmq keys new {role} NAME"
            )
        if self._principals.get(peer, sender) != sender:
            return NotAllowed(f"{sender} sent a message on the connection of {self._principals[peer]}")
        return None

    def _open_session(self, peer: bytes, message: m.OpenSession) -> None:
        del message
        self._remove_peer(peer, "it opened a new session")
        self._session_count += 1
        self._clients[peer] = Client(peer, self._now, self._session_count, self._now)
        opened = m.SessionOpened(package_version=__version__, timeout_s=self._settings.client_timeout_s)
        self._send(peer, opened)

    def _submit(self, client: Client, message: m.Submit) -> None:
        if message.batch in client.batches:
            return  # Sent again, for example after a reconnect: the first one counts.
        if (error := self._over_budget(client, message)) is not None:
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
            size_bytes=self._message_bytes,
        )
        self._scheduler.append(SubBatch.whole(batch))

    def _over_budget(self, client: Client, message: m.Submit) -> ProtocolError | None:
        """Return the error if a batch is rejected, else None.

        A batch without items is rejected as well: no limit would count it, so it would take memory without bound.
        """
        settings = self._settings
        if not len(message.work):
            return ProtocolError("the batch has no items")
        if len(client.batches) >= settings.max_batches_per_client:
            return ProtocolError(f"a client may have at most {settings.max_batches_per_client} unanswered batches")
        unanswered_bytes = sum(batch.size_bytes for batch in client.batches.values())
        if unanswered_bytes + self._message_bytes > settings.max_bytes_per_client:
            return MessageTooLarge(
                f"a client may have at most {settings.max_bytes_per_client:,} bytes of unanswered batches; this one has "
                f"{self._message_bytes:,} bytes, and {unanswered_bytes:,} are unanswered"
            )
        return None

    def _ping(self, client: Client, message: m.Ping) -> None:
        del message
        self._send(client.peer, self._pong())

    def _close_session(self, client: Client, message: m.CloseSession) -> None:
        del message
        self._remove_peer(client.peer, "it closed its session")

    def _register_worker(self, peer: bytes, message: m.RegisterWorker) -> None:
        self._remove_peer(peer, "it registered again")
        worker = Worker(peer, self._now, message, self._now, message.model, self._now)
        self._workers.add(worker)
        self._log("info", f"{worker.name} is ready")
        self._send(peer, m.WorkerRegistered(package_version=__version__, timeout_s=self._settings.worker_timeout_s))

    def _heartbeat(self, worker: Worker, message: m.Heartbeat) -> None:
        worker.phase = message.phase
        self.history.record_compute(worker.computed, message.computed, self._now)
        worker.computed = message.computed
        self._send(worker.peer, self._pong())

    def _lease_answered(self, worker: Worker, message: m.LeaseAnswered) -> None:
        sub_batch = worker.leases.get(message.lease)
        if sub_batch is None:
            return  # A late answer: the lease was cancelled, and its items now belong to another lease.
        items = message.indices.tolist()
        if len(items) != len(message.answers) or (items and not 0 <= min(items) <= max(items) < len(sub_batch.items)):
            self._refuse(worker.peer, ProtocolError(f"the answers do not match the items of lease {message.lease}"))
            return
        batch = sub_batch.batch
        indices = [sub_batch.items[item] for item in items]
        if len(set(indices)) != len(indices) or not sub_batch.answered.isdisjoint(indices):
            self._refuse(worker.peer, ProtocolError(f"an item of lease {message.lease} was answered twice"))
            return
        sub_batch.answered.update(indices)
        self._consecutive_crashes.pop(batch.model, None)
        # A duplicate lease may have answered some of them first.
        fresh = [position for position, index in enumerate(indices) if index not in batch.settled]
        if not fresh:
            return
        self._settle(batch, indices)
        self._count_answers(worker, batch, len(fresh))
        self._send(
            batch.client,
            m.Answered(
                batch=batch.number,
                indices=np.array([indices[position] for position in fresh], dtype=np.int32),
                answers=message.answers if len(fresh) == len(indices) else message.answers.select(fresh),
            ),
        )
        self._cancel_settled_duplicates(sub_batch)

    def _lease_progressed(self, worker: Worker, message: m.LeaseProgressed) -> None:
        sub_batch = worker.leases.get(message.lease)
        if sub_batch is not None:
            self._send(sub_batch.batch.client, m.Progressed(batch=sub_batch.batch.number, progress=message.progress))

    def _count_answers(self, worker: Worker, batch: Batch, answers: int) -> None:
        worker.requests_answered += answers
        if (client := self._clients.get(batch.client)) is not None:
            client.requests_answered += answers
        self.history.record_answers(answers, self._now, is_batch_complete=len(batch.settled) == len(batch.work))

    def _lease_failed(self, worker: Worker, message: m.LeaseFailed) -> None:
        sub_batch = self._workers.release(worker, message.lease)
        if sub_batch is None:
            return
        if sub_batch.is_settled:
            return  # A duplicate lease has answered everything.
        if message.index is None or message.index >= len(sub_batch.items):
            self._fail(sub_batch.batch, message.error)
            return
        if (item := sub_batch.items[message.index]) not in sub_batch.batch.settled:
            self._fail_item(sub_batch.batch, item, message.error)
            self._cancel_settled_duplicates(sub_batch)
        self._requeue(sub_batch)

    def _lease_done(self, worker: Worker, message: m.LeaseDone) -> None:
        sub_batch = self._workers.release(worker, message.lease)
        if sub_batch is not None and not sub_batch.is_settled:
            error = InternalError(f"the {worker.name} reported a lease as done although answers are missing")
            self._fail(sub_batch.batch, ErrorReport.of(error))

    def _lease_crashed(self, worker: Worker, message: m.LeaseCrashed) -> None:
        sub_batch = self._workers.release(worker, message.lease)
        if sub_batch is not None:
            self._retry(sub_batch, message.error)

    def _lease_returned(self, worker: Worker, message: m.LeaseReturned) -> None:
        sub_batch = self._workers.release(worker, message.lease)
        if sub_batch is not None:
            self._requeue(sub_batch)

    def _lease_notice(self, worker: Worker, message: m.LeaseNotice) -> None:
        sub_batch = worker.leases.get(message.lease)
        if sub_batch is not None:
            self._notify(sub_batch.batch, message.level, message.text, once=message.once)

    def _drain_worker(self, worker: Worker, message: m.DrainWorker) -> None:
        del message
        self._workers.drain(worker)

    def _close_worker(self, worker: Worker, message: m.CloseWorker) -> None:
        del message
        for lease in reversed(list(worker.leases)):
            if (sub_batch := self._workers.release(worker, lease)) is not None:
                self._requeue(sub_batch)  # An orderly shutdown is no crash.
        self._remove_peer(worker.peer, "it shut down")

    # --- Peers that come and go --------------------------------------------------------------------------------------

    def _check_timeouts(self, stall_s: float) -> None:
        """Remove peers whose timeout has passed, and probe silent ones.

        A Pong that cannot be delivered reveals a dead process before the timeout does.
        """
        for client in list(self._clients.values()):
            client.last_seen_at += stall_s
            if self._now - client.last_seen_at > self._settings.client_timeout_s:
                self._remove_peer(client.peer, f"it was silent for more than {self._settings.client_timeout_s:g} s")
        for worker in list(self._workers):
            worker.last_seen_at += stall_s
            if self._now - worker.last_seen_at > self._settings.worker_timeout_s:
                self._remove_peer(worker.peer, f"it was silent for more than {self._settings.worker_timeout_s:g} s")
        latest = self._now - self._settings.probe_s
        silent = [worker.peer for worker in self._workers if worker.last_seen_at < latest]
        silent += [peer for peer, client in self._clients.items() if client.last_seen_at < latest and client.batches]
        for peer in silent:
            self._send(peer, self._pong())

    def _update_phases(self) -> None:
        """Derive the displayed phase of each worker: a ready worker is running if it holds leases, otherwise idle."""
        for worker in self._workers:
            displayed_phase = worker.phase
            if displayed_phase in ("ready", "running"):
                displayed_phase = "running" if worker.leases else "idle"
            if displayed_phase != worker.displayed_phase:
                worker.displayed_phase, worker.displayed_phase_since = displayed_phase, self._now

    def _remove_peer(self, peer: bytes, reason: str) -> None:
        self._principals.pop(peer, None)
        if (client := self._clients.pop(peer, None)) is not None:
            for batch in client.batches.values():
                self._cancel_batch(batch)
        worker = self._workers.remove(peer)
        if worker is None:
            return
        self._log("info", f"{worker.name} disconnected: {reason}")
        self.history.record("disconnected", f"{worker.name}: {reason}", self._now)
        unsettled = [sub_batch for sub_batch in worker.leases.values() if not sub_batch.is_settled]
        for sub_batch in reversed(unsettled[1:]):
            self._requeue(sub_batch)  # The worker had started only its first lease.
        for sub_batch in unsettled[:1]:
            error = WorkerUnavailable(
                f"the {worker.name} died or disconnected while it computed these requests: {reason}"
            )
            self._retry(sub_batch, ErrorReport.of(error))

    def _settle(self, batch: Batch, items: Iterable[int]) -> None:
        """Mark items of a batch as needing no further work."""
        batch.settled.update(items)
        if len(batch.settled) == len(batch.work) and (client := self._clients.get(batch.client)) is not None:
            client.batches.pop(batch.number, None)

    def _cancel_batch(self, batch: Batch) -> None:
        """Remove a batch from the queues and cancel its leases."""
        self._scheduler.drop(batch)
        for active in self._workers.leases_of(batch):
            self._cancel_lease(active)

    def _cancel_lease(self, active: ActiveLease) -> None:
        self._workers.release(active.worker, active.lease)
        self._send(active.worker.peer, m.CancelLease(lease=active.lease))

    def _requeue(self, sub_batch: SubBatch) -> None:
        """Queue the unsettled items of a sub-batch whose lease has ended, except those of a duplicate lease."""
        for duplicate in self._duplicate_leases(sub_batch):
            sub_batch.items = [item for item in sub_batch.items if item not in duplicate.sub_batch.items]
        if not sub_batch.is_settled:
            self._scheduler.requeue(sub_batch)

    def _duplicate_leases(self, sub_batch: SubBatch) -> list[ActiveLease]:
        """Return the other leases that hold items of a duplicated sub-batch."""
        if not sub_batch.is_duplicated:
            return []
        others = (active for active in self._workers.leases_of(sub_batch.batch) if active.sub_batch is not sub_batch)
        return [active for active in others if not set(sub_batch.items).isdisjoint(active.sub_batch.items)]

    def _cancel_settled_duplicates(self, sub_batch: SubBatch) -> None:
        """Cancel the duplicate leases whose items have all been settled."""
        for duplicate in self._duplicate_leases(sub_batch):
            if duplicate.sub_batch.is_settled:
                self._cancel_lease(duplicate)

    # --- Crashes -----------------------------------------------------------------------------------------------------

    def _retry(self, sub_batch: SubBatch, error: ErrorReport) -> None:
        """Retry, split or abandon a sub-batch whose worker or model process died."""
        if sub_batch.is_settled:
            return
        batch = sub_batch.batch
        self._retries += 1
        self.history.record("crashed", f"{error.code}, while computing {batch.model}", self._now)
        consecutive = self._consecutive_crashes.get(batch.model, 0) + 1
        self._consecutive_crashes[batch.model] = consecutive
        if consecutive >= self._settings.max_consecutive_crashes:
            del self._consecutive_crashes[batch.model]
            text = (
                f"{consecutive} processes in a row died while computing {batch.model}, without an answer in between; "
                "the last error: "
            )
            self._fail(batch, _prepend(text, error))
            return
        duplicates = self._duplicate_leases(sub_batch)
        for duplicate in duplicates:
            self._workers.mark_suspect(duplicate)  # It computes items that may have killed a process.
            sub_batch.items = [item for item in sub_batch.items if item not in duplicate.sub_batch.items]
        if duplicates and batch.settled.issuperset(sub_batch.items):
            return
        to_retry = split_for_retry(sub_batch, self._settings.max_crashes_per_request)
        if not to_retry:
            (item,) = (item for item in sub_batch.items if item not in batch.settled)
            text = (
                f"this request was abandoned: {sub_batch.crashes} processes died while computing it; the last error: "
            )
            self._fail_item(batch, item, _prepend(text, error))
            return
        for retried in reversed(to_retry):
            self._scheduler.requeue(retried)
        text = error.message.partition("\n")[0]
        self._notify(batch, "warning", f"retrying requests of {batch.model} after a crash: {text}")

    # --- Assignment --------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Grant leases to all workers that have capacity.

        Workers that have the model loaded come first, so that no other worker switches models for a sub-batch that can
        be leased at once. Among these, workers with the fewest leases come first, so that none has two while another
        has none. A model that no worker has loaded goes to a worker without a model before another worker has to unload
        its own.
        """
        for may_switch in (False, True):
            assigned = True
            while assigned and len(self._scheduler):
                assigned = False
                # While a suspect waits, all other workers have capacity; visiting each of them at every message is slow.
                ready = self._workers.with_capacity(idle_only=self._scheduler.needs_idle_worker)
                if may_switch:
                    ready.sort(key=lambda worker: (len(worker.leases), worker.model is not None))
                for worker in ready:
                    if (sub_batch := self._choose_sub_batch(worker, may_switch=may_switch)) is not None:
                        self._grant(worker, sub_batch)
                        assigned = True
                        if not len(self._scheduler):
                            return

    def _choose_sub_batch(self, worker: Worker, *, may_switch: bool) -> SubBatch | None:
        return self._scheduler.choose(
            worker.model,
            worker.model_since,
            self._now,
            self._settings.switch_delay_s,
            is_idle=not worker.leases,
            may_switch=may_switch,
            prefixes=PrefixAffinity(worker.prefix, self._workers.prefixes),
        )

    def _steal_work(self) -> None:
        """Let workers that are idle, or on their last lease, steal from others while no sub-batch waits."""
        for worker in self._workers:
            count, idle_since, last_lease_since = len(worker.leases), worker.idle_since, worker.last_lease_since
            worker.idle_since = None if count else self._now if idle_since is None else idle_since
            worker.last_lease_since = (
                None if count != 1 else self._now if last_lease_since is None else last_lease_since
            )
        if len(self._scheduler):
            return
        latest = self._now - self._settings.steal_after_s
        idle = [w for w in self._workers if w.idle_since is not None and w.idle_since <= latest and not w.is_draining]
        if idle:
            for steal in list(plan_steals(idle, self._workers)):
                self._steal(steal)
        on_last_lease = [
            w
            for w in self._workers
            if w.last_lease_since is not None and w.last_lease_since <= latest and w.has_capacity
        ]
        if on_last_lease:
            for steal in list(plan_early_steals(on_last_lease, self._workers)):
                self._steal(steal)

    def _steal(self, steal: Steal) -> None:
        """Lease stolen items to the thief; the victim keeps the rest, or everything if it has started the lease."""
        sub_batch = steal.victim.leases[steal.lease]
        if steal.is_duplicate:
            sub_batch.is_duplicated = True
        else:
            self._cancel_lease(ActiveLease(steal.victim, steal.lease, sub_batch))
            removed = sub_batch.batch.settled.union(steal.items)
            kept = [item for item in sub_batch.items if item not in removed]
            if kept:
                self._grant(steal.victim, SubBatch(sub_batch.batch, kept, sub_batch.attempts))
        self._grant(
            steal.thief, SubBatch(sub_batch.batch, steal.items, sub_batch.attempts, is_duplicated=steal.is_duplicate)
        )

    def _grant(self, worker: Worker, sub_batch: SubBatch) -> None:
        batch = sub_batch.batch
        if batch.model != worker.model:
            if worker.model is not None:
                self._model_switches += 1
                self._log("info", f"{worker.name} switches from {worker.model} to {batch.model}")
            self._workers.switch_model(worker, sub_batch, self._now)
        work = sub_batch.next_attempt()
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        self._workers.assign(worker, lease, sub_batch)
        self._send(
            worker.peer,
            m.Lease(
                lease=lease,
                attempt=sub_batch.attempts,
                model=batch.model,
                work=work,
                limits=batch.limits,
                identity=batch.identity,
            ),
        )

    def _fail_unsendable(self, peer: bytes, message: object, error: BirdieError) -> None:
        """Fail the batch of a lease that exceeds the frame limit; otherwise the broker would wait for it forever."""
        worker = self._workers.get(peer)
        if isinstance(message, m.Lease) and worker is not None:
            sub_batch = self._workers.release(worker, message.lease)
            if sub_batch is not None:
                self._fail(sub_batch.batch, ErrorReport.of(error))
        else:
            self._send(peer, m.Refusal(error=ErrorReport.of(error)))

    # --- Actions -----------------------------------------------------------------------------------------------------

    def _send(self, peer: bytes, message: m.BrokerToClient | m.BrokerToWorker | m.Refusal) -> None:
        self._actions.append(Send(peer, message))

    def _pong(self) -> m.Pong:
        return m.Pong(workers=len(self._workers), model_switches=self._model_switches, retries=self._retries)

    def _notify(self, batch: Batch, level: Level, text: str, *, once: bool = False) -> None:
        self._send(batch.client, m.Notice(batch=batch.number, level=level, text=text, once=once))

    def _fail(self, batch: Batch, error: ErrorReport) -> None:
        # The message of the error may quote request texts, so only the client receives it.
        self.history.record_failure(len(batch.work) - len(batch.settled), f"{error.code}, {batch.model}", self._now)
        self._send(batch.client, m.BatchFailed(batch=batch.number, error=error))
        self._cancel_batch(batch)
        if (client := self._clients.get(batch.client)) is not None:
            client.batches.pop(batch.number, None)

    def _fail_item(self, batch: Batch, item: int, error: ErrorReport) -> None:
        self._settle(batch, [item])
        self.history.record_failure(1, f"{error.code}, {batch.model}", self._now)
        self._send(batch.client, m.ItemFailed(batch=batch.number, index=item, error=error))

    def _refuse(self, peer: bytes, error: ProtocolError) -> None:
        self._was_refused = True
        self.history.record_refusal(error.code, self._now, is_expected=isinstance(error, UnknownPeer))
        # Unknown peers are expected after a restart of the broker, and after a client was idle beyond its timeout.
        level: Level = "info" if isinstance(error, UnknownPeer) else "warning"
        self._append_log(level, self._refusal_log_limiter.admit(f"refused a message: {error.message}", self._now))
        if self._refusal_limiter.allow(peer, self._now):
            self._send(peer, m.Refusal(error=ErrorReport.of(error)))

    def _log(self, level: Level, text: str) -> None:
        self._append_log(level, self._log_limiter.admit(text, self._now))

    def _log_suppressed(self) -> None:
        for limiter in (self._refusal_log_limiter, self._log_limiter):
            self._append_log("info", limiter.suppressed(self._now))

    def _append_log(self, level: Level, line: str | None) -> None:
        if line is not None:
            self._actions.append(Log(level, line))


def _prepend(text: str, error: ErrorReport) -> ErrorReport:
    return ErrorReport(code=error.code, message=text + error.message, traceback=error.traceback)


_IGNORED_WHILE_DRAINING = frozenset({m.OpenSession, m.RegisterWorker, m.Submit})
_HANDSHAKE_HANDLERS: Mapping[type, Callable[[BrokerCore, bytes, Any], None]] = MappingProxyType(
    {m.OpenSession: BrokerCore._open_session, m.RegisterWorker: BrokerCore._register_worker}
)
_CLIENT_HANDLERS: Mapping[type, Callable[[BrokerCore, Client, Any], None]] = MappingProxyType(
    {m.Submit: BrokerCore._submit, m.Ping: BrokerCore._ping, m.CloseSession: BrokerCore._close_session}
)
_WORKER_HANDLERS: Mapping[type, Callable[[BrokerCore, Worker, Any], None]] = MappingProxyType(
    {
        m.Heartbeat: BrokerCore._heartbeat,
        m.LeaseAnswered: BrokerCore._lease_answered,
        m.LeaseProgressed: BrokerCore._lease_progressed,
        m.LeaseFailed: BrokerCore._lease_failed,
        m.LeaseDone: BrokerCore._lease_done,
        m.LeaseNotice: BrokerCore._lease_notice,
        m.LeaseCrashed: BrokerCore._lease_crashed,
        m.LeaseReturned: BrokerCore._lease_returned,
        m.DrainWorker: BrokerCore._drain_worker,
        m.CloseWorker: BrokerCore._close_worker,
    }
)
_REQUIRED_ROLES: Mapping[type, Role] = MappingProxyType(
    {
        m.OpenSession: "client",
        **dict.fromkeys(_CLIENT_HANDLERS, "client"),
        m.RegisterWorker: "worker",
        **dict.fromkeys(_WORKER_HANDLERS, "worker"),
    }
)
