"""The workers, what each holds, and who has room: kept so that one message needs no look at all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from birdie_zmq.broker.peers import Worker
from birdie_zmq.broker.scheduler import Batch, SubBatch


class ActiveLease(NamedTuple):
    """A lease, its worker, and the part that it is for."""

    worker: Worker
    lease: int
    part: SubBatch


class WorkerPool:
    """Workers by their peers. What a worker holds, or whether it drains, changes through this class alone."""

    def __init__(self) -> None:
        self._workers: dict[bytes, Worker] = {}
        self._with_room: dict[int, dict[bytes, Worker]] = {}
        self._held: dict[Batch, dict[int, Worker]] = {}
        self._prefixes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._workers

    def get(self, peer: bytes) -> Worker | None:
        """The worker that a peer is."""
        return self._workers.get(peer)

    @property
    def prefixes(self) -> Mapping[str, int]:
        """What the texts begin with that workers were given last, and how many workers are at each."""
        return self._prefixes

    def with_room(self, *, idle_only: bool = False) -> list[Worker]:
        """Those that may be given a lease, those that hold least first; or those that hold nothing alone."""
        counts = self._with_room.keys() & {0} if idle_only else sorted(self._with_room)
        return [worker for count in counts for worker in self._with_room[count].values()]

    def leases_of(self, batch: Batch) -> list[ActiveLease]:
        """Who holds parts of a batch."""
        return [ActiveLease(worker, lease, worker.leases[lease]) for lease, worker in self._held.get(batch, {}).items()]

    def add(self, worker: Worker) -> None:
        """A worker has come, which holds nothing."""
        self._workers[worker.peer] = worker
        self._sort_in(worker)

    def remove(self, peer: bytes) -> Worker | None:
        """A worker has gone; what it held is still to be read from it."""
        worker = self._workers.pop(peer, None)
        if worker is not None:
            self._sort_out(worker)
            self._begins(worker, None)
            for lease, part in worker.leases.items():
                self._no_longer_held(lease, part)
        return worker

    def give(self, worker: Worker, lease: int, part: SubBatch) -> None:
        """A worker is given a lease."""
        self._sort_out(worker)
        worker.leases[lease] = part
        self._held.setdefault(part.batch, {})[lease] = worker
        if part.batch.prefix is not None:
            self._begins(worker, part.batch.prefix)
        self._sort_in(worker)

    def take_back(self, worker: Worker, lease: int) -> SubBatch | None:
        """A worker no longer has a lease; None where it did not have it."""
        part = worker.leases.get(lease)
        if part is not None:
            self._sort_out(worker)
            del worker.leases[lease]
            self._no_longer_held(lease, part)
            self._sort_in(worker)
        return part

    def load(self, worker: Worker, model_of: SubBatch, now: float) -> None:
        """A worker changes to the model of a part; what its last texts began with is of no use any more."""
        worker.model, worker.model_since = model_of.batch.model, now
        self._begins(worker, None)

    def drain(self, worker: Worker) -> None:
        """A worker takes on nothing more."""
        self._sort_out(worker)
        worker.drains = True

    def suspect(self, held: ActiveLease) -> None:
        """A part has become one that may kill: its worker gets nothing beside it."""
        self._sort_out(held.worker)
        held.part.losses += 1
        self._sort_in(held.worker)

    def _begins(self, worker: Worker, prefix: str | None) -> None:
        if worker.prefix is not None:
            self._prefixes[worker.prefix] -= 1
            if not self._prefixes[worker.prefix]:
                del self._prefixes[worker.prefix]
        worker.prefix = prefix
        if prefix is not None:
            self._prefixes[prefix] += 1

    def _no_longer_held(self, lease: int, part: SubBatch) -> None:
        of_batch = self._held[part.batch]
        del of_batch[lease]
        if not of_batch:
            del self._held[part.batch]

    def _sort_in(self, worker: Worker) -> None:
        if worker.has_room:
            self._with_room.setdefault(len(worker.leases), {})[worker.peer] = worker

    def _sort_out(self, worker: Worker) -> None:
        alike = self._with_room.get(len(worker.leases))
        if alike is not None and alike.pop(worker.peer, None) is not None and not alike:
            del self._with_room[len(worker.leases)]
