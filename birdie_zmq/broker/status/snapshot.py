"""The status of a broker: a pure function from its state and the time to an immutable record.

The record contains no request texts and no answers. Strings that peers choose, such as names of hosts and models, are
truncated to one short line, and lists are bounded, so that many peers make no large page.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from birdie_zmq.broker.core import BrokerCore
from birdie_zmq.broker.history import Kind, Rates
from birdie_zmq.broker.peers import Worker
from birdie_zmq.broker.scheduler import SubBatch
from birdie_zmq.sanitize import one_line
from birdie_zmq.types import REQUEST_ARGUMENTS, ComputeCounters, ModelSpec

MAX_ROWS = 100
"""Maximum number of rows of each list: workers, models and clients. The full number is reported beside each list."""
_MAX_NAME_CHARS = 120


@dataclass(frozen=True)
class About:
    """The identity of a broker; ``started_at`` is in monotonic seconds."""

    version: str
    endpoint: str
    process_id: int
    started_at: float


@dataclass(frozen=True)
class Totals:
    """Totals since the broker was started. Its workers report the totals of tokens, executables and compilation."""

    requests_answered: int = 0
    requests_failed: int = 0
    batches_answered: int = 0
    retries: int = 0
    model_switches: int = 0
    refusals: int = 0
    tokens_computed: int = 0
    tokens_padding: int = 0
    tokens_generated: int = 0
    executables: int = 0
    compile_seconds: float = 0.0


@dataclass(frozen=True)
class WorkerStatus:
    """One worker; its totals of tokens, executables and compilation cover its lifetime, earlier brokers included."""

    host: str
    process_id: int
    engine: str
    model: str | None
    phase: str
    phase_s: float
    leases: int
    capacity: int
    requests_leased: int
    requests_answered: int
    tokens_computed: int
    tokens_padding: int
    executables: int
    compile_seconds: float
    silent_s: float
    connected_s: float
    draining: bool
    key: str | None


@dataclass(frozen=True)
class ModelStatus:
    """One model that is requested or loaded; a batch that was split in halves counts as two."""

    model: str
    batches_waiting: int
    requests_waiting: int
    batches_leased: int
    requests_leased: int
    oldest_s: float | None
    workers: int


@dataclass(frozen=True)
class ClientStatus:
    """One client session; ``number`` counts the sessions of this broker from 1."""

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
    """A kind of problem: its number of occurrences, and the seconds since the last one."""

    kind: Kind
    text: str
    count: int
    ago_s: float


@dataclass(frozen=True)
class Status:
    """The whole status. ``at`` is in monotonic seconds; the HTTP server fills in ``age_s``."""

    version: str
    endpoint: str
    process_id: int
    uptime_s: float
    draining: bool
    batches_waiting: int
    batches_leased: int
    workers_connected: int
    clients_connected: int
    models_known: int
    totals: Totals
    workers: Sequence[WorkerStatus]
    models: Sequence[ModelStatus]
    clients: Sequence[ClientStatus]
    history: Sequence[HistoryEntryStatus]
    throughput: Rates
    at: float
    age_s: float = 0.0


@dataclass
class _Counts:
    waiting: int = 0
    requests_waiting: int = 0
    leased: int = 0
    requests_leased: int = 0
    oldest_at: float | None = None
    workers: int = 0


@dataclass
class _QueueCounts:
    """Waiting and leased requests per model and per client, counted in one pass over all sub-batches.

    Models that differ only in the ``ignored`` request arguments, for which no worker loads a model again, are one.
    """

    ignored: Collection[str] = ()
    models: defaultdict[ModelSpec, _Counts] = field(default_factory=lambda: defaultdict(_Counts))
    clients: defaultdict[bytes, _Counts] = field(default_factory=lambda: defaultdict(_Counts))

    def add_waiting(self, sub_batch: SubBatch) -> None:
        """Count a waiting sub-batch."""
        for counts in self._counts_of(sub_batch):
            counts.waiting += 1
            counts.requests_waiting += sub_batch.unsettled_count
            if counts.oldest_at is None or sub_batch.batch.submitted_at < counts.oldest_at:
                counts.oldest_at = sub_batch.batch.submitted_at

    def add_leased(self, sub_batch: SubBatch) -> None:
        """Count a leased sub-batch."""
        for counts in self._counts_of(sub_batch):
            counts.leased += 1
            counts.requests_leased += sub_batch.unsettled_count

    def _counts_of(self, sub_batch: SubBatch) -> tuple[_Counts, _Counts]:
        return self.models[sub_batch.batch.model.without(self.ignored)], self.clients[sub_batch.batch.client]


def snapshot(core: BrokerCore, about: About, now: float) -> Status:
    """Return the status of a broker at a time in monotonic seconds."""
    queues = _QueueCounts(_ignored_by_all(core.workers))
    for sub_batch in core.waiting:
        queues.add_waiting(sub_batch)
    for worker in core.workers:
        for sub_batch in worker.leases.values():
            queues.add_leased(sub_batch)
        if worker.model is not None:
            queues.models[worker.model.without(queues.ignored)].workers += 1
    history, total = core.history, core.history.compute_total
    return Status(
        version=about.version,
        endpoint=about.endpoint,
        process_id=about.process_id,
        uptime_s=_seconds(now - about.started_at),
        draining=core.is_draining,
        batches_waiting=sum(counts.waiting for counts in queues.models.values()),
        batches_leased=sum(counts.leased for counts in queues.models.values()),
        workers_connected=len(core.workers),
        clients_connected=len(core.clients),
        models_known=len(queues.models),
        totals=Totals(
            requests_answered=history.requests_answered,
            requests_failed=history.requests_failed,
            batches_answered=history.batches_answered,
            retries=history.retries,
            model_switches=history.model_switches,
            refusals=history.refusals,
            tokens_computed=total.tokens,
            tokens_padding=total.padding,
            tokens_generated=total.generated,
            executables=total.executables,
            compile_seconds=_seconds(total.compile_seconds),
        ),
        workers=tuple(_worker(core, worker, now) for worker in list(core.workers)[:MAX_ROWS]),
        models=tuple(_model(model, counts, now) for model, counts in list(queues.models.items())[:MAX_ROWS]),
        clients=_clients(core, queues, now),
        history=tuple(
            HistoryEntryStatus(each.kind, each.text, each.count, _seconds(now - each.at))
            for each in reversed(history.entries)
        ),
        throughput=history.throughput.rates(now),
        at=now,
    )


def _ignored_by_all(workers: Iterable[Worker]) -> frozenset[str]:
    """Return the request arguments for which none of the workers loads a model again."""
    return frozenset[str](REQUEST_ARGUMENTS).intersection(*(worker.request_arguments for worker in workers))


def _worker(core: BrokerCore, worker: Worker, now: float) -> WorkerStatus:
    computed = worker.computed or ComputeCounters()
    return WorkerStatus(
        host=one_line(worker.registration.host, _MAX_NAME_CHARS),
        process_id=worker.registration.process_id,
        engine=one_line(worker.registration.engine, _MAX_NAME_CHARS),
        model=None if worker.loaded is None else _name(worker.loaded),
        phase=one_line(worker.displayed_phase or "connected", _MAX_NAME_CHARS),
        phase_s=_seconds(now - (worker.displayed_phase_since or worker.connected_at)),
        leases=len(worker.leases),
        capacity=worker.registration.capacity,
        requests_leased=worker.unsettled_count,
        requests_answered=worker.requests_answered,
        tokens_computed=computed.tokens,
        tokens_padding=computed.padding,
        executables=computed.executables,
        compile_seconds=_seconds(computed.compile_seconds),
        silent_s=_seconds(now - worker.last_seen_at),
        connected_s=_seconds(now - worker.connected_at),
        draining=worker.is_draining,
        key=_key(core, worker.peer),
    )


def _model(model: ModelSpec, counts: _Counts, now: float) -> ModelStatus:
    return ModelStatus(
        model=_name(model),
        batches_waiting=counts.waiting,
        requests_waiting=counts.requests_waiting,
        batches_leased=counts.leased,
        requests_leased=counts.requests_leased,
        oldest_s=None if counts.oldest_at is None else _seconds(now - counts.oldest_at),
        workers=counts.workers,
    )


def _clients(core: BrokerCore, queues: _QueueCounts, now: float) -> Sequence[ClientStatus]:
    """Return the rows of clients: those with unanswered batches first, then the newest sessions."""
    shown = sorted(core.clients, key=lambda client: (client.peer not in queues.clients, -client.number))
    rows = []
    for client in shown[:MAX_ROWS]:
        counts = queues.clients.get(client.peer, _Counts())
        rows.append(
            ClientStatus(
                number=client.number,
                batches_waiting=counts.waiting,
                batches_leased=counts.leased,
                requests_left=counts.requests_waiting + counts.requests_leased,
                requests_answered=client.requests_answered,
                silent_s=_seconds(now - client.last_seen_at),
                connected_s=_seconds(now - client.connected_at),
                key=_key(core, client.peer),
            )
        )
    return tuple(rows)


def _key(core: BrokerCore, peer: bytes) -> str | None:
    principal = core.principal(peer)
    return None if principal is None else str(principal)


def _name(model: ModelSpec) -> str:
    """Return the tag and the arguments as one line; the arguments may be long, so they are truncated first."""
    arguments = "" if model.arguments_text == "{}" else f" {model.arguments_text[:_MAX_NAME_CHARS]}"
    return one_line(f"{model.tag}{arguments}", _MAX_NAME_CHARS)


def _seconds(value: float) -> float:
    return round(max(0.0, value), 1)
