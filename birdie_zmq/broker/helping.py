"""What a worker that has nothing to do takes over from one that has much: how the end of a run is shared out.

A worker is given a batch while it is at another, so that it never waits. When nothing is left to be given, a slow worker
would be waited for with all that it holds. So the idle one takes from whoever has most left: of a batch that was not begun
with, so much that both have as much to do; of one that is being computed, the later half, which is then computed twice: the
first answer counts, as with the backup tasks of MapReduce (Dean and Ghemawat, 2004). Nothing is shared a third time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from birdie_zmq.broker.peers import Worker
from birdie_zmq.broker.queues import Part


@dataclass(frozen=True)
class Help:
    """Take ``items`` from a lease of a worker; ``is_begun`` says that the worker goes on with them as well."""

    worker: Worker
    lease: int
    items: list[int]
    is_begun: bool


def find_help(idle: Worker, workers: Iterable[Worker]) -> Help | None:
    """What a worker with nothing to do should take over, None if nothing.

    It takes work for the model that it has, or, if it has none, for any.
    """
    most = 0
    found = None
    for worker in workers:
        if worker is idle or not worker.leases or (idle.model is not None and worker.model != idle.model):
            continue
        left = {lease: _left(part) for lease, part in worker.leases.items()}
        total = sum(map(len, left.values()))
        help_ = _from(worker, left, total)
        if help_ is not None and total > most:
            most, found = total, help_
    return found


def _from(worker: Worker, left: dict[int, list[int]], total: int) -> Help | None:
    lease, part = next(reversed(worker.leases.items()))
    if part.is_suspect or part.is_shared:
        return None
    items = left[lease]
    if len(worker.leases) > 1:
        count = min(len(items), total // 2)
        return Help(worker, lease, items[len(items) - count :], is_begun=False) if count else None
    if len(items) < _LEAST_SHARED:
        return None
    return Help(worker, lease, items[(len(items) + 1) // 2 :], is_begun=True)


_LEAST_SHARED = 2


def _left(part: Part) -> list[int]:
    return [item for item in part.items if item not in part.batch.settled]
