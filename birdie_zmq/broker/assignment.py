"""Assignment: which worker gets which waiting sub-batch, and which worker steals from another."""

from __future__ import annotations

from birdie_zmq.broker.lease_book import LeaseBook
from birdie_zmq.broker.scheduler import Candidate, PrefixAffinity
from birdie_zmq.broker.work_stealing import plan_steals


def assign_waiting(leases: LeaseBook, now: float, switch_delay_s: float) -> None:
    """Grant leases to all workers that have capacity.

    Workers that have the model loaded come first, so that no other worker switches models for a sub-batch that can be
    leased at once. Among these, workers with the fewest leases come first, so that none has two while another has none.
    A model that no worker has loaded goes to a worker without a model before another worker has to unload its own.

    Args:
        leases: The waiting sub-batches and the workers.
        now: The current time, in monotonic seconds.
        switch_delay_s: Seconds that a batch of another model waits before a worker with queued work switches to it.
    """
    waiting, workers = leases.waiting, leases.workers
    for may_switch in (False, True):
        assigned = True
        while assigned and len(waiting):
            assigned = False
            # While a suspect waits, all other workers have capacity; visiting each of them at every message is slow.
            ready = workers.with_capacity(idle_only=waiting.needs_idle_worker)
            if may_switch:
                ready.sort(key=lambda worker: (len(worker.leases), worker.model is not None))
            for worker in ready:
                prefixes = PrefixAffinity(worker.prefix, workers.prefixes)
                is_idle, ignored = not worker.leases, worker.request_arguments
                candidate = Candidate(worker.model, worker.model_since, is_idle, prefixes, ignored)
                sub_batch = waiting.choose(candidate, now, switch_delay_s, may_switch=may_switch)
                if sub_batch is not None:
                    leases.grant(worker, sub_batch)
                    assigned = True
                    if not len(waiting):
                        return


def steal_work(leases: LeaseBook, now: float, steal_after_s: float) -> None:
    """Let workers that have been idle, or on their last lease, for a time steal from others while no sub-batch waits.

    Args:
        leases: The waiting sub-batches and the workers.
        now: The time of this tick, in monotonic seconds.
        steal_after_s: That time in seconds.
    """
    workers = leases.workers
    for worker in workers:
        worker.update_spare_since(now)
    if len(leases.waiting):
        return
    latest = now - steal_after_s
    thieves = [worker for worker in workers if worker.spare_since is not None and worker.spare_since <= latest]
    if thieves:
        for steal in plan_steals(thieves, workers):
            leases.steal(steal)
