"""The workers of a broker with indexes by free capacity and by batch, so that a message needs no scan of all workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from birdie_zmq.broker.peers import Worker
from birdie_zmq.broker.scheduler import Batch, SubBatch


class ActiveLease(NamedTuple):
    """A lease: its worker, its number and its sub-batch."""

    worker: Worker
    lease: int
    sub_batch: SubBatch


class WorkerPool:
    """The workers of a broker, by peer. Only this class changes leases and draining of workers, and updates its indexes."""

    def __init__(self) -> None:
        self._workers: dict[bytes, Worker] = {}
        self._by_lease_count: dict[int, dict[bytes, Worker]] = {}
        self._workers_by_batch: dict[Batch, dict[int, Worker]] = {}
        self._prefixes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._workers

    def get(self, peer: bytes) -> Worker | None:
        """Return the worker of a peer, or None."""
        return self._workers.get(peer)

    @property
    def prefixes(self) -> Mapping[str, int]:
        """Names of the prefixes of the last batches of all workers, with the number of workers for each."""
        return self._prefixes

    def with_capacity(self, *, idle_only: bool = False) -> list[Worker]:
        """Return the workers that may be granted a lease, fewest leases first; with ``idle_only``, workers without leases."""
        counts = self._by_lease_count.keys() & {0} if idle_only else sorted(self._by_lease_count)
        return [worker for count in counts for worker in self._by_lease_count[count].values()]

    def leases_of(self, batch: Batch) -> list[ActiveLease]:
        """Return the leases of the sub-batches of a batch."""
        return [
            ActiveLease(worker, lease, worker.leases[lease])
            for lease, worker in self._workers_by_batch.get(batch, {}).items()
        ]

    def duplicates_of(self, sub_batch: SubBatch) -> list[ActiveLease]:
        """Return the other leases that hold items of a duplicated sub-batch."""
        if not sub_batch.is_duplicated:
            return []
        others = (active for active in self.leases_of(sub_batch.batch) if active.sub_batch is not sub_batch)
        return [active for active in others if not set(sub_batch.items).isdisjoint(active.sub_batch.items)]

    def add(self, worker: Worker) -> None:
        """Add a worker that holds no leases."""
        self._workers[worker.peer] = worker
        self._add_to_index(worker)

    def remove(self, peer: bytes) -> Worker | None:
        """Remove and return the worker of a peer, or None; its leases can still be read from the returned worker."""
        worker = self._workers.pop(peer, None)
        if worker is not None:
            self._remove_from_index(worker)
            self._set_prefix(worker, None)
            for lease, sub_batch in worker.leases.items():
                self._forget_lease(lease, sub_batch)
        return worker

    def assign(self, worker: Worker, lease: int, sub_batch: SubBatch) -> None:
        """Record that a worker was granted a lease."""
        self._remove_from_index(worker)
        worker.leases[lease] = sub_batch
        self._workers_by_batch.setdefault(sub_batch.batch, {})[lease] = worker
        if sub_batch.batch.prefix is not None:
            self._set_prefix(worker, sub_batch.batch.prefix)
        self._add_to_index(worker)

    def release(self, worker: Worker, lease: int) -> SubBatch | None:
        """Remove a lease from a worker and return its sub-batch, or None if the worker does not hold it."""
        sub_batch = worker.leases.get(lease)
        if sub_batch is not None:
            self._remove_from_index(worker)
            del worker.leases[lease]
            self._forget_lease(lease, sub_batch)
            self._add_to_index(worker)
        return sub_batch

    def switch_model(self, worker: Worker, model_of: SubBatch, now: float) -> None:
        """Switch a worker to the model of a sub-batch; the prefix that it has computed is lost with the old model."""
        worker.model, worker.model_since = model_of.batch.model, now
        self._set_prefix(worker, None)

    def drain(self, worker: Worker) -> None:
        """Stop granting leases to a worker."""
        self._remove_from_index(worker)
        worker.is_draining = True

    def mark_suspect(self, active: ActiveLease) -> None:
        """Mark the sub-batch of a lease as suspect, so that its worker gets no other lease beside it."""
        self._remove_from_index(active.worker)
        active.sub_batch.crashes += 1
        self._add_to_index(active.worker)

    def _set_prefix(self, worker: Worker, prefix: str | None) -> None:
        if worker.prefix is not None:
            self._prefixes[worker.prefix] -= 1
            if not self._prefixes[worker.prefix]:
                del self._prefixes[worker.prefix]
        worker.prefix = prefix
        if prefix is not None:
            self._prefixes[prefix] += 1

    def _forget_lease(self, lease: int, sub_batch: SubBatch) -> None:
        workers = self._workers_by_batch[sub_batch.batch]
        del workers[lease]
        if not workers:
            del self._workers_by_batch[sub_batch.batch]

    def _add_to_index(self, worker: Worker) -> None:
        if worker.has_capacity:
            self._by_lease_count.setdefault(len(worker.leases), {})[worker.peer] = worker

    def _remove_from_index(self, worker: Worker) -> None:
        bucket = self._by_lease_count.get(len(worker.leases))
        if bucket is not None and bucket.pop(worker.peer, None) is not None and not bucket:
            del self._by_lease_count[len(worker.leases)]
