"""Work stealing: at the end of a run, idle workers take over leased items of busy workers.

A worker holds the next batch while it computes one, so that its model never waits. When the queue is empty, a run would
wait until a slow worker has computed all of its leases. So an idle worker (the thief) steals from the worker with the
most unsettled items (the victim). From a lease that the victim has not started, it takes enough items to give both the
same number. From a lease that the victim is computing, it duplicates the second half: both compute these items and the
first answer counts, as with the backup tasks of MapReduce (Dean and Ghemawat, 2004). An item has at most two leases at a
time.

A worker that has been on its last lease for ``steal_after_s`` steals early, before it is idle: it takes a share of a
lease that another worker has not started.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from birdie_zmq.broker.peers import Worker
from birdie_zmq.broker.scheduler import SubBatch
from birdie_zmq.types import ModelSpec

_MIN_DUPLICATED = 2

_MIN_EARLY_STEAL = 32
"""Fewer items hardly fill a step, and each lease computes the prefixes of its texts again."""


@dataclass(frozen=True)
class Steal:
    """Items of a lease of ``victim`` that ``thief`` takes over; if ``is_duplicate``, the victim computes them as well."""

    thief: Worker
    victim: Worker
    lease: int
    items: list[int]
    is_duplicate: bool


def plan_steals(idle: Iterable[Worker], workers: Iterable[Worker]) -> Iterator[Steal]:
    """Plan the steals of idle workers, each from a different victim.

    A worker steals work for the model that it has loaded or, if it has none, for any model.
    """
    by_model: dict[ModelSpec | None, list[tuple[int, int, Worker]]] = {}
    for number, worker in enumerate(workers):
        if worker.leases:
            entry = -_unsettled_count(worker), number, worker
            for model in (worker.model, None):
                by_model.setdefault(model, []).append(entry)
    for heap in by_model.values():
        heapq.heapify(heap)
    victims: set[int] = set()
    for thief in idle:
        heap = by_model.get(thief.model, [])
        while heap:
            _, number, victim = heapq.heappop(heap)
            if number not in victims and (stealable := _stealable(victim)) is not None:
                victims.add(number)
                lease, items, is_duplicate = stealable
                yield Steal(thief, victim, lease, items, is_duplicate)
                break


def plan_early_steals(on_last_lease: Iterable[Worker], workers: Iterable[Worker]) -> Iterator[Steal]:
    """Plan the steals of workers on their last lease, from leases that other workers have not started.

    Thief and victim then have the same number of items left. A victim gives once, and a small share is not worth a
    lease.
    """
    victims: dict[ModelSpec | None, list[tuple[int, int, Worker]]] = {}
    for number, worker in enumerate(workers):
        if len(worker.leases) > 1:
            victims.setdefault(worker.model, []).append((-_unsettled_count(worker), number, worker))
    for heap in victims.values():
        heapq.heapify(heap)
    thieves = (
        (_unsettled_count(worker), number, worker)
        for number, worker in enumerate(on_last_lease)
        if len(worker.leases) == 1
    )
    for thief_left, _, thief in sorted(thieves):
        if heap := victims.get(thief.model, []):
            negative_left, _, victim = heapq.heappop(heap)
            lease, sub_batch = next(reversed(victim.leases.items()))
            items = [] if sub_batch.is_suspect or sub_batch.is_duplicated else _unsettled(sub_batch)
            count = min(len(items), (-negative_left - thief_left) // 2)
            if count >= _MIN_EARLY_STEAL:
                yield Steal(thief, victim, lease, items[len(items) - count :], is_duplicate=False)


def _unsettled_count(worker: Worker) -> int:
    return sum(len(_unsettled(sub_batch)) for sub_batch in worker.leases.values())


def _stealable(worker: Worker) -> tuple[int, list[int], bool] | None:
    """Return a lease of a worker, the items to steal from it, and whether they are duplicated; None if there are none."""
    lease, sub_batch = next(reversed(worker.leases.items()))
    if sub_batch.is_suspect or sub_batch.is_duplicated:
        return None
    items = _unsettled(sub_batch)
    if len(worker.leases) == 1:
        return (lease, items[(len(items) + 1) // 2 :], True) if len(items) >= _MIN_DUPLICATED else None
    count = min(len(items), _unsettled_count(worker) // 2)
    return (lease, items[len(items) - count :], False) if count else None


def _unsettled(sub_batch: SubBatch) -> list[int]:
    return [item for item in sub_batch.items if item not in sub_batch.batch.settled]
