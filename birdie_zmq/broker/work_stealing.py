"""Work stealing: at the end of a run, workers with little left take over leased items of workers with much left.

A worker holds the next batch while it computes one, so that its model never waits. When the queue is empty, a run would
wait until a slow worker has computed all of its leases. So a worker that is idle, or on its last lease, steals from the
worker with the most unsettled items (the victim). From a lease that the victim has not started, the thief takes enough
items to give both the same number. From a lease that the victim is computing, an idle thief duplicates the second half:
both compute these items and the first answer counts, as with the backup tasks of MapReduce (Dean and Ghemawat, 2004). So
the work of a stalled worker is computed elsewhere. An item has at most two leases at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from birdie_zmq.broker.peers import Worker
from birdie_zmq.broker.scheduler import SubBatch
from birdie_zmq.types import ModelSpec

_MIN_EARLY_STEAL = 32
"""Minimum number of items for a worker that is not idle. Fewer hardly fill a step, and each lease computes the prefixes of
its texts again."""


@dataclass(frozen=True)
class Steal:
    """Items of a lease of ``victim`` that ``thief`` takes over; if ``is_duplicate``, the victim computes them as well."""

    thief: Worker
    victim: Worker
    lease: int
    items: list[int]
    is_duplicate: bool


def plan_steals(thieves: Iterable[Worker], workers: Iterable[Worker]) -> list[Steal]:
    """Plan the steals of workers that hold at most one lease, those with the fewest items left first.

    A worker steals work for the model that it has loaded or, if it has none, for any model. A victim gives once.
    """
    thieves = sorted(thieves, key=lambda worker: worker.unsettled_count)
    holders = sorted(
        (worker for worker in workers if worker.leases), key=lambda worker: worker.unsettled_count, reverse=True
    )
    # Thieves that ignore the same request arguments look for victims in the same index.
    indexes = {ignored: _by_model(holders, ignored) for ignored in {thief.request_arguments for thief in thieves}}
    victims: set[bytes] = set()
    steals = []
    for thief in thieves:
        for victim in indexes[thief.request_arguments].get(thief.loaded, iter(())):
            if victim.peer not in victims and (steal := _plan_steal(thief, victim)) is not None:
                victims.add(victim.peer)
                steals.append(steal)
                break
    return steals


def _by_model(holders: Iterable[Worker], ignored: Collection[str]) -> dict[ModelSpec | None, Iterator[Worker]]:
    """Index workers by the model of their last lease, without ignored request arguments; None for all workers."""
    index: dict[ModelSpec | None, list[Worker]] = {}
    for worker in holders:
        _, sub_batch = _last_lease(worker)
        for model in (sub_batch.batch.model.without(ignored), None):
            index.setdefault(model, []).append(worker)
    return {model: iter(each) for model, each in index.items()}


def _last_lease(worker: Worker) -> tuple[int, SubBatch]:
    return next(reversed(worker.leases.items()))


def _plan_steal(thief: Worker, victim: Worker) -> Steal | None:
    """Return what a worker steals from the last lease of another, or None if that is not worth a lease."""
    lease, sub_batch = _last_lease(victim)
    is_duplicate = len(victim.leases) == 1
    if sub_batch.is_suspect or sub_batch.is_duplicated or (is_duplicate and thief.leases):
        return None
    items = sub_batch.unsettled
    surplus = len(items) if is_duplicate else victim.unsettled_count - thief.unsettled_count
    count = min(len(items), surplus // 2)
    if count < (_MIN_EARLY_STEAL if thief.leases else 1):
        return None
    return Steal(thief, victim, lease, items[len(items) - count :], is_duplicate)
