"""What workers that have nothing to do take over from those that have much: how the end of a run is shared out.

A worker is given a batch while it is at another, so that it never waits. When nothing is left to be given, a slow worker
would be waited for with all that it holds. So an idle one takes from whoever has most left: of a batch that was not begun
with, so much that both have as much to do; of one that is being computed, the later half, which is then computed twice: the
first answer counts, as with the backup tasks of MapReduce (Dean and Ghemawat, 2004). Nothing is shared a third time.

A worker that is at its last batch for a second, while another has one more, need not become idle first: it takes its part of that.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from birdie_zmq.broker.peers import Worker
from birdie_zmq.broker.scheduler import SubBatch
from birdie_zmq.types import ModelSpec

_LEAST_SHARED = 2

_LEAST_TAKEN = 32
"""Who still has something to do takes no fewer: they hardly fill a step, and what texts share is computed in each lease."""


@dataclass(frozen=True)
class Steal:
    """For ``idle``, take ``items`` from a lease of ``worker``; ``is_begun`` says that it goes on with them as well."""

    idle: Worker
    worker: Worker
    lease: int
    items: list[int]
    is_begun: bool


def plan_steals(idle: Iterable[Worker], workers: Iterable[Worker]) -> Iterator[Steal]:
    """What idle workers should take over, each from another one.

    A worker takes work for the model that it has, or, if it has none, for any.
    """
    by_model: dict[ModelSpec | None, list[tuple[int, int, Worker]]] = {}
    for number, worker in enumerate(workers):
        if worker.leases:
            entry = -_left_of(worker), number, worker
            for model in (worker.model, None):
                by_model.setdefault(model, []).append(entry)
    for heap in by_model.values():
        heapq.heapify(heap)
    helped: set[int] = set()
    for one in idle:
        heap = by_model.get(one.model, [])
        while heap:
            _, number, worker = heapq.heappop(heap)
            if number not in helped and (taken := _from(worker)) is not None:
                helped.add(number)
                lease, items, is_begun = taken
                yield Steal(one, worker, lease, items, is_begun)
                break


def plan_early_steals(at_last: Iterable[Worker], workers: Iterable[Worker]) -> Iterator[Steal]:
    """What workers that are at their last lease should have next, of leases that others have not begun with.

    Both then have as much to do. Each worker gives once, and little is left where it is.
    """
    more: dict[ModelSpec | None, list[tuple[int, int, Worker]]] = {}
    for number, worker in enumerate(workers):
        if len(worker.leases) > 1:
            more.setdefault(worker.model, []).append((-_left_of(worker), number, worker))
    for heap in more.values():
        heapq.heapify(heap)
    takers = ((_left_of(worker), number, worker) for number, worker in enumerate(at_last) if len(worker.leases) == 1)
    for left, _, taker in sorted(takers):
        if heap := more.get(taker.model, []):
            negative, _, giver = heapq.heappop(heap)
            lease, part = next(reversed(giver.leases.items()))
            items = [] if part.is_suspect or part.is_shared else _left(part)
            count = min(len(items), (-negative - left) // 2)
            if count >= _LEAST_TAKEN:
                yield Steal(taker, giver, lease, items[len(items) - count :], is_begun=False)


def _left_of(worker: Worker) -> int:
    return sum(len(_left(part)) for part in worker.leases.values())


def _from(worker: Worker) -> tuple[int, list[int], bool] | None:
    lease, part = next(reversed(worker.leases.items()))
    if part.is_suspect or part.is_shared:
        return None
    items = _left(part)
    if len(worker.leases) == 1:
        return (lease, items[(len(items) + 1) // 2 :], True) if len(items) >= _LEAST_SHARED else None
    count = min(len(items), _left_of(worker) // 2)
    return (lease, items[len(items) - count :], False) if count else None


def _left(part: SubBatch) -> list[int]:
    return [item for item in part.items if item not in part.batch.settled]
