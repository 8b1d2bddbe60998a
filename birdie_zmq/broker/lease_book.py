"""The lease book: what happens to the items of batches, from the queue to the answer.

An item waits in the queue of its model or is leased, and is settled when it is answered or has failed::

    submit ─▶ queued ─▶ leased ─▶ settled, item by item ─▶ done
                ▲          │
                └──────────┘  its worker or model process died: the unsettled items return to the head of the queue, and
                              are split in halves after another crash (`retry_policy`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from birdie_zmq.broker.history import History
from birdie_zmq.broker.outbox import Outbox
from birdie_zmq.broker.peers import Client, Worker
from birdie_zmq.broker.retry_policy import split_for_retry
from birdie_zmq.broker.scheduler import Batch, Scheduler, SubBatch
from birdie_zmq.broker.work_stealing import Steal
from birdie_zmq.broker.worker_pool import ActiveLease, WorkerPool
from birdie_zmq.errors import InternalError, ProtocolError, WorkerUnavailable
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ErrorReport, Level, ModelSpec

LeaseReport = m.LeaseMessage | m.LeaseCrashed | m.LeaseReturned
"""The messages of a worker about one of its leases."""


class LeaseBook:
    """The queued sub-batches and the leases of the workers.

    Args:
        settings: Limits on crashes.
        clients: The clients by peer, whose settled batches are removed.
        history: Counts answers, failures and retries.
        outbox: Takes messages to peers.
        first_lease: The number of the first lease.

    Attributes:
        waiting: The sub-batches that wait for a worker.
        workers: The registered workers with their leases.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        clients: Mapping[bytes, Client],
        history: History,
        outbox: Outbox,
        first_lease: int,
    ) -> None:
        self.waiting = Scheduler()
        self.workers = WorkerPool()
        self._settings = settings
        self._clients = clients
        self._history = history
        self._outbox = outbox
        self._next_lease = first_lease
        self._consecutive_crashes: dict[ModelSpec, int] = {}

    # --- Leases that begin -------------------------------------------------------------------------------------------

    def grant(self, worker: Worker, sub_batch: SubBatch) -> None:
        """Lease a sub-batch that does not wait any more to a worker."""
        batch = sub_batch.batch
        if not worker.serves(batch.model):
            if worker.model is not None:
                self._history.model_switches += 1
                self._outbox.log("info", f"{worker.name} switches from {worker.model} to {batch.model}")
            self.workers.switch_model(worker, sub_batch, self._outbox.now)
        work = sub_batch.next_attempt()
        lease, self._next_lease = self._next_lease, self._next_lease + 1
        self.workers.assign(worker, lease, sub_batch)
        self._outbox.send(
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

    def steal(self, steal: Steal) -> None:
        """Lease stolen items to the thief; the victim keeps the rest, or everything if it has started the lease."""
        sub_batch = steal.victim.leases[steal.lease]
        if steal.is_duplicate:
            sub_batch.is_duplicated = True
        else:
            self._cancel_lease(ActiveLease(steal.victim, steal.lease, sub_batch))
            stolen = set(steal.items)
            kept = [item for item in sub_batch.unsettled if item not in stolen]
            if kept:
                self.grant(steal.victim, SubBatch(sub_batch.batch, kept, sub_batch.attempts))
        self.grant(
            steal.thief, SubBatch(sub_batch.batch, steal.items, sub_batch.attempts, is_duplicated=steal.is_duplicate)
        )

    # --- Reports of workers ------------------------------------------------------------------------------------------

    def receive(self, worker: Worker, report: LeaseReport) -> ProtocolError | None:
        """Record what a worker reports about a lease, and return the error if it is invalid.

        A late report is ignored: the lease was cancelled, and its items may belong to another lease.
        """
        sub_batch = worker.leases.get(report.lease)
        if sub_batch is None:
            return None
        batch = sub_batch.batch
        match report:
            case m.LeaseAnswered():
                return self._answer(worker, sub_batch, report)
            case m.LeasePartlyAnswered():
                return self._answer_partly(sub_batch, report)
            case m.LeaseProgressed(progress=progress):
                self._outbox.send(batch.client, m.Progressed(batch=batch.number, progress=progress))
                return None
            case m.LeaseNotice(level=level, text=text, once=once):
                self._notify(batch, level, text, once=once)
                return None
        self.workers.release(worker, report.lease)
        match report:
            case m.LeaseDone() if not sub_batch.is_settled:
                error = InternalError(f"the {worker.name} reported a lease as done although answers are missing")
                self._fail(batch, ErrorReport.of(error))
            case m.LeaseFailed(error=failure, index=index) if not sub_batch.is_settled:
                self._fail_leased(sub_batch, index, failure)
            case m.LeaseCrashed(error=failure):
                self._retry(sub_batch, failure)
            case m.LeaseReturned():
                self._requeue(sub_batch)
        return None

    def _answer(self, worker: Worker, sub_batch: SubBatch, message: m.LeaseAnswered) -> ProtocolError | None:
        items = message.indices
        if len(items) != len(message.answers) or (items and not 0 <= min(items) <= max(items) < len(sub_batch.items)):
            return ProtocolError(f"the answers do not match the items of lease {message.lease}")
        batch = sub_batch.batch
        indices = [sub_batch.items[item] for item in items]
        if len(set(indices)) != len(indices) or not sub_batch.answered.isdisjoint(indices):
            return ProtocolError(f"an item of lease {message.lease} was answered twice")
        sub_batch.answered.update(indices)
        self._consecutive_crashes.pop(batch.model, None)
        fresh = sum(index not in batch.settled for index in indices)
        if not fresh:
            return None  # A duplicate lease has answered them first.
        self._settle(batch, indices)
        self._count_answers(worker, batch, fresh)
        # The client ignores second answers.
        self._outbox.send(batch.client, m.Answered(batch=batch.number, indices=indices, answers=message.answers))
        self._cancel_settled_duplicates(sub_batch)
        return None

    def _answer_partly(self, sub_batch: SubBatch, message: m.LeasePartlyAnswered) -> ProtocolError | None:
        """Send parts of answers on, unless they are answered; nothing is settled by them."""
        items = message.indices
        if len(items) != len(message.answers) or (items and not 0 <= min(items) <= max(items) < len(sub_batch.items)):
            return ProtocolError(f"parts of answers do not match the items of lease {message.lease}")
        batch, indices = sub_batch.batch, [sub_batch.items[item] for item in items]
        if batch.settled.isdisjoint(indices):
            self._outbox.send(
                batch.client, m.PartlyAnswered(batch=batch.number, indices=indices, answers=message.answers)
            )
        return None

    def _count_answers(self, worker: Worker, batch: Batch, answers: int) -> None:
        worker.requests_answered += answers
        if (client := self._clients.get(batch.client)) is not None:
            client.requests_answered += answers
        is_complete = len(batch.settled) == len(batch.work)
        self._history.record_answers(answers, self._outbox.now, is_batch_complete=is_complete)

    def _fail_leased(self, sub_batch: SubBatch, index: int | None, error: ErrorReport) -> None:
        """Fail the item at fault and queue the others again, or fail the batch if no single item is at fault."""
        batch = sub_batch.batch
        if index is None or index >= len(sub_batch.items):
            self._fail(batch, error)
            return
        if (item := sub_batch.items[index]) not in batch.settled:
            self._fail_item(batch, item, error)
            self._cancel_settled_duplicates(sub_batch)
        self._requeue(sub_batch)

    # --- Leases that end for other reasons ---------------------------------------------------------------------------

    def return_all(self, worker: Worker) -> None:
        """Queue the work of a worker again that shuts down in an orderly way, which is no crash."""
        for lease in reversed(list(worker.leases)):
            if (sub_batch := self.workers.release(worker, lease)) is not None:
                self._requeue(sub_batch)

    def remove_worker(self, peer: bytes, reason: str) -> None:
        """Remove the worker of a peer, if it is one, and retry its work, as after a crash."""
        worker = self.workers.remove(peer)
        if worker is None:
            return
        self._outbox.log("info", f"{worker.name} disconnected: {reason}")
        self._history.record("disconnected", f"{worker.name}: {reason}", self._outbox.now)
        unsettled = [sub_batch for sub_batch in worker.leases.values() if not sub_batch.is_settled]
        for sub_batch in reversed(unsettled[1:]):
            self._requeue(sub_batch)  # The worker had started only its first lease.
        for sub_batch in unsettled[:1]:
            error = WorkerUnavailable(
                f"the {worker.name} died or disconnected while it computed these requests: {reason}"
            )
            self._retry(sub_batch, ErrorReport.of(error))

    def fail_lease(self, worker: Worker, lease: int, error: ErrorReport) -> None:
        """Fail the batch of a lease that never reached its worker."""
        if (sub_batch := self.workers.release(worker, lease)) is not None:
            self._fail(sub_batch.batch, error)

    def cancel(self, batch: Batch) -> None:
        """Remove a batch from the queues and cancel its leases."""
        self.waiting.drop(batch)
        for active in self.workers.leases_of(batch):
            self._cancel_lease(active)

    def _cancel_lease(self, active: ActiveLease) -> None:
        self.workers.release(active.worker, active.lease)
        self._outbox.send(active.worker.peer, m.CancelLease(lease=active.lease))

    def _cancel_settled_duplicates(self, sub_batch: SubBatch) -> None:
        for duplicate in self.workers.duplicates_of(sub_batch):
            if duplicate.sub_batch.is_settled:
                self._cancel_lease(duplicate)

    def _requeue(self, sub_batch: SubBatch) -> None:
        """Queue the unsettled items of a sub-batch whose lease has ended, except those of a duplicate lease."""
        _leave_to(self.workers.duplicates_of(sub_batch), sub_batch)
        if not sub_batch.is_settled:
            self.waiting.requeue(sub_batch)

    def _retry(self, sub_batch: SubBatch, error: ErrorReport) -> None:
        """Retry, split or abandon a sub-batch whose worker or model process died."""
        if sub_batch.is_settled:
            return
        batch = sub_batch.batch
        self._history.retries += 1
        self._history.record("crashed", f"{error.code}, while computing {batch.model}", self._outbox.now)
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
        duplicates = self.workers.duplicates_of(sub_batch)
        for duplicate in duplicates:
            self.workers.mark_suspect(duplicate)  # It computes items that may have killed a process.
        _leave_to(duplicates, sub_batch)
        if not sub_batch.unsettled:
            return
        to_retry = split_for_retry(sub_batch, self._settings.max_crashes_per_request)
        if not to_retry:
            (item,) = sub_batch.unsettled
            text = (
                f"this request was abandoned: {sub_batch.crashes} processes died while computing it; the last error: "
            )
            self._fail_item(batch, item, _prepend(text, error))
            return
        for retried in reversed(to_retry):
            self.waiting.requeue(retried)
        text = error.message.partition("\n")[0]
        self._notify(batch, "warning", f"retrying requests of {batch.model} after a crash: {text}")

    # --- Items and batches that end ----------------------------------------------------------------------------------

    def _settle(self, batch: Batch, items: Iterable[int]) -> None:
        """Mark items of a batch as needing no further work."""
        batch.settled.update(items)
        if len(batch.settled) == len(batch.work):
            self._forget(batch)

    def _fail(self, batch: Batch, error: ErrorReport) -> None:
        # The message of the error may quote request texts, so only the client receives it.
        failed = len(batch.work) - len(batch.settled)
        self._history.record_failure(failed, f"{error.code}, {batch.model}", self._outbox.now)
        self._outbox.send(batch.client, m.BatchFailed(batch=batch.number, error=error))
        self.cancel(batch)
        self._forget(batch)

    def _fail_item(self, batch: Batch, item: int, error: ErrorReport) -> None:
        self._settle(batch, [item])
        self._history.record_failure(1, f"{error.code}, {batch.model}", self._outbox.now)
        self._outbox.send(batch.client, m.ItemFailed(batch=batch.number, index=item, error=error))

    def _forget(self, batch: Batch) -> None:
        if (client := self._clients.get(batch.client)) is not None:
            client.batches.pop(batch.number, None)

    def _notify(self, batch: Batch, level: Level, text: str, *, once: bool = False) -> None:
        self._outbox.send(batch.client, m.Notice(batch=batch.number, level=level, text=text, once=once))


def _leave_to(duplicates: Iterable[ActiveLease], sub_batch: SubBatch) -> None:
    """Remove the items from a sub-batch that its duplicate leases compute."""
    elsewhere = {item for duplicate in duplicates for item in duplicate.sub_batch.items}
    if elsewhere:
        sub_batch.items = [item for item in sub_batch.items if item not in elsewhere]


def _prepend(text: str, error: ErrorReport) -> ErrorReport:
    return ErrorReport(code=error.code, message=text + error.message, traceback=error.traceback)
