"""What a broker shows of itself: a pure function from its state and the time to a record that never changes.

No text of a request and no answer is in it. What peers chose themselves, such as names of hosts and models, is cut to one
short line, and lists have bounds: whoever makes many peers makes no large page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from birdie_zmq.broker.core import BrokerCore
from birdie_zmq.broker.history import Kind, Rates
from birdie_zmq.broker.peers import Worker
from birdie_zmq.broker.rate_limits import one_line
from birdie_zmq.broker.scheduler import SubBatch
from birdie_zmq.types import ComputeCounters, ModelSpec

MOST_ROWS = 100
"""Workers, models and clients that are shown; each list is shown with how many there are."""
_MOST_NAME = 120


@dataclass(frozen=True)
class About:
    """Which broker this is; ``started_at`` is in monotonic seconds."""

    version: str
    endpoint: str
    process_id: int
    started_at: float


@dataclass(frozen=True)
class Totals:
    """Counts since the broker was started. Those of tokens, programs and compiling are what its workers say."""

    requests_answered: int = 0
    requests_failed: int = 0
    batches_answered: int = 0
    losses: int = 0
    switches: int = 0
    refusals: int = 0
    tokens_computed: int = 0
    tokens_padding: int = 0
    tokens_generated: int = 0
    programs: int = 0
    compile_seconds: float = 0.0


@dataclass(frozen=True)
class WorkerStatus:
    """One worker; counts of tokens, programs and compiling are of its whole life, perhaps with other brokers before."""

    host: str
    process_id: int
    engine: str
    model: str | None
    phase: str
    phase_s: float
    leases: int
    capacity: int
    requests_held: int
    requests_answered: int
    tokens_computed: int
    tokens_padding: int
    programs: int
    compile_seconds: float
    silent_s: float
    connected_s: float
    drains: bool
    key: str | None


@dataclass(frozen=True)
class ModelStatus:
    """One model that is waited for, computed or loaded; a batch that was halved counts as two."""

    model: str
    batches_waiting: int
    requests_waiting: int
    batches_leased: int
    requests_leased: int
    oldest_s: float | None
    workers: int


@dataclass(frozen=True)
class ClientStatus:
    """One client's session; ``number`` counts the sessions of this broker."""

    number: int
    batches_waiting: int
    batches_leased: int
    requests_left: int
    requests_answered: int
    silent_s: float
    connected_s: float
    key: str | None


@dataclass(frozen=True)
class HistoryEntryStatus:
    """What went wrong, how often, and how long ago for the last time."""

    kind: Kind
    text: str
    count: int
    ago_s: float


@dataclass(frozen=True)
class Status:
    """All of it. ``at`` is in monotonic seconds; ``age_s`` is filled in by whoever hands it out."""

    version: str
    endpoint: str
    process_id: int
    uptime_s: float
    drains: bool
    batches_waiting: int
    batches_leased: int
    workers_connected: int
    clients_connected: int
    models_known: int
    totals: Totals
    workers: Sequence[WorkerStatus]
    models: Sequence[ModelStatus]
    clients: Sequence[ClientStatus]
    happenings: Sequence[HistoryEntryStatus]
    throughput: Rates
    at: float
    age_s: float = 0.0


@dataclass
class _Sums:
    waiting: int = 0
    requests_waiting: int = 0
    leased: int = 0
    requests_leased: int = 0
    oldest_at: float | None = None
    workers: int = 0


@dataclass
class _Load:
    """Who waits for how much, from one look at all parts."""

    models: defaultdict[ModelSpec, _Sums] = field(default_factory=lambda: defaultdict(_Sums))
    clients: defaultdict[bytes, _Sums] = field(default_factory=lambda: defaultdict(_Sums))

    def wait(self, part: SubBatch) -> None:
        """Count a part that waits."""
        for sums in (self.models[part.batch.model], self.clients[part.batch.client]):
            sums.waiting += 1
            sums.requests_waiting += _left(part)
            if sums.oldest_at is None or part.batch.submitted_at < sums.oldest_at:
                sums.oldest_at = part.batch.submitted_at

    def lease(self, part: SubBatch) -> None:
        """Count a part that a worker has."""
        for sums in (self.models[part.batch.model], self.clients[part.batch.client]):
            sums.leased += 1
            sums.requests_leased += _left(part)


def snapshot(broker: BrokerCore, about: About, now: float) -> Status:
    """What there is to see of a broker at a time, in monotonic seconds."""
    load = _Load()
    for part in broker.waiting:
        load.wait(part)
    for worker in broker.workers:
        for part in worker.leases.values():
            load.lease(part)
        if worker.model is not None:
            load.models[worker.model].workers += 1
    history, total = broker.history, broker.history.total
    return Status(
        version=about.version,
        endpoint=about.endpoint,
        process_id=about.process_id,
        uptime_s=_seconds(now - about.started_at),
        drains=broker.drains,
        batches_waiting=sum(sums.waiting for sums in load.models.values()),
        batches_leased=sum(sums.leased for sums in load.models.values()),
        workers_connected=len(broker.workers),
        clients_connected=len(broker.clients),
        models_known=len(load.models),
        totals=Totals(
            requests_answered=history.requests_answered,
            requests_failed=history.requests_failed,
            batches_answered=history.batches_answered,
            losses=broker.losses,
            switches=broker.switches,
            refusals=history.refusals,
            tokens_computed=total.tokens,
            tokens_padding=total.padding,
            tokens_generated=total.generated,
            programs=total.executables,
            compile_seconds=_seconds(total.compile_seconds),
        ),
        workers=tuple(_worker(broker, worker, now) for worker in list(broker.workers)[:MOST_ROWS]),
        models=tuple(_model(model, sums, now) for model, sums in list(load.models.items())[:MOST_ROWS]),
        clients=_clients(broker, load, now),
        happenings=tuple(
            HistoryEntryStatus(each.kind, each.text, each.count, _seconds(now - each.at))
            for each in reversed(history.happenings)
        ),
        throughput=history.throughput.rates(now),
        at=now,
    )


def _worker(broker: BrokerCore, worker: Worker, now: float) -> WorkerStatus:
    computed = worker.computed or ComputeCounters()
    return WorkerStatus(
        host=one_line(worker.registration.host, _MOST_NAME),
        process_id=worker.registration.process_id,
        engine=one_line(worker.registration.engine, _MOST_NAME),
        model=None if worker.model is None else _name(worker.model),
        phase=one_line(worker.doing or "connected", _MOST_NAME),
        phase_s=_seconds(now - (worker.doing_since or worker.since)),
        leases=len(worker.leases),
        capacity=worker.registration.capacity,
        requests_held=sum(map(_left, worker.leases.values())),
        requests_answered=worker.served,
        tokens_computed=computed.tokens,
        tokens_padding=computed.padding,
        programs=computed.executables,
        compile_seconds=_seconds(computed.compile_seconds),
        silent_s=_seconds(now - worker.seen_at),
        connected_s=_seconds(now - worker.since),
        drains=worker.drains,
        key=_key(broker, worker.peer),
    )


def _model(model: ModelSpec, sums: _Sums, now: float) -> ModelStatus:
    return ModelStatus(
        model=_name(model),
        batches_waiting=sums.waiting,
        requests_waiting=sums.requests_waiting,
        batches_leased=sums.leased,
        requests_leased=sums.requests_leased,
        oldest_s=None if sums.oldest_at is None else _seconds(now - sums.oldest_at),
        workers=sums.workers,
    )


def _clients(broker: BrokerCore, load: _Load, now: float) -> Sequence[ClientStatus]:
    """Those who wait for something first, then the newest."""
    shown = sorted(broker.clients, key=lambda client: (client.peer not in load.clients, -client.number))
    rows = []
    for client in shown[:MOST_ROWS]:
        sums = load.clients.get(client.peer, _Sums())
        rows.append(
            ClientStatus(
                number=client.number,
                batches_waiting=sums.waiting,
                batches_leased=sums.leased,
                requests_left=sums.requests_waiting + sums.requests_leased,
                requests_answered=client.answered,
                silent_s=_seconds(now - client.seen_at),
                connected_s=_seconds(now - client.since),
                key=_key(broker, client.peer),
            )
        )
    return tuple(rows)


def _key(broker: BrokerCore, peer: bytes) -> str | None:
    holder = broker.holder(peer)
    return None if holder is None else str(holder)


def _name(model: ModelSpec) -> str:
    """Tag and arguments; these may be long, so they are cut before anything is made of them."""
    arguments = "" if model.arguments == "{}" else f" {model.arguments[:_MOST_NAME]}"
    return one_line(f"{model.tag}{arguments}", _MOST_NAME)


def _left(part: SubBatch) -> int:
    """The requests of a part that are not settled, without a look at each where that can be."""
    settled = part.batch.settled
    if not settled:
        return len(part.items)
    if len(part.items) == len(part.batch.work):
        return len(part.items) - len(settled)
    return sum(item not in settled for item in part.items)


def _seconds(value: float) -> float:
    return round(max(0.0, value), 1)
