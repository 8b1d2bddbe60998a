"""The status as Prometheus metrics. Their names are documented in docs/how_to/status.md and must stay stable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from birdie_zmq.broker.status.snapshot import Status

_PREFIX = "birdie_zmq_"
_COUNTERS = (
    ("requests_answered", "Requests that were answered."),
    ("requests_failed", "Requests that failed."),
    ("batches_answered", "Batches whose requests were all answered, or failed."),
    ("retries", "Leases that ended with a crash of their worker or model process and were retried."),
    ("model_switches", "Switches of a worker from one model to another."),
    ("refusals", "Messages that were refused."),
    ("tokens_computed", "Token positions computed in all steps, padding included, as reported by workers."),
    ("tokens_padding", "Computed token positions that were padding."),
    ("tokens_generated", "Tokens generated for answers."),
    ("executables", "Compiled executables: shapes with which models were called for the first time."),
    ("compile_seconds", "Seconds spent compiling."),
)


def exposition(status: Status) -> bytes:
    """Return all metrics of a status in the Prometheus text format."""
    # The global registry belongs to the whole process and has metrics of the Python runtime, so this one is separate.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(status))
    return generate_latest(registry)


class _Metrics(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily(
            f"{_PREFIX}uptime_seconds", "Seconds since the broker was started.", value=status.uptime_s
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}status_age_seconds", "Seconds since the last snapshot of the broker's state.", value=status.age_s
        )
        yield GaugeMetricFamily(f"{_PREFIX}clients", "Open client sessions.", value=status.clients_connected)
        workers = GaugeMetricFamily(f"{_PREFIX}workers", "Registered workers by phase.", labels=["phase"])
        # The kind of the phase only: each compiled shape would otherwise make a new time series.
        for phase, count in Counter(_kind(worker.phase) for worker in status.workers).items():
            workers.add_metric([phase], count)
        yield workers
        batches = GaugeMetricFamily(
            f"{_PREFIX}batches",
            "Unanswered batches by state; each sub-batch of a split batch counts as one.",
            labels=["state"],
        )
        batches.add_metric(["waiting"], status.batches_waiting)
        batches.add_metric(["leased"], status.batches_leased)
        yield batches
        waiting = GaugeMetricFamily(f"{_PREFIX}model_requests_waiting", "Waiting requests by model.", labels=["model"])
        # Names are truncated, so two models may have the same one.
        names: Counter[str] = Counter()
        for model in status.models:
            names[model.model] += model.requests_waiting
        for name, count in names.items():
            waiting.add_metric([name], count)
        yield waiting
        for name, text in _COUNTERS:
            yield CounterMetricFamily(f"{_PREFIX}{name}", text, value=getattr(status.totals, name))


_PHASES = ("connected", "no model", "loading", "compiling", "running", "idle", "ending", "waiting")


def _kind(phase: str) -> str:
    """Return the kind of a phase, from a fixed set: a worker may report any text."""
    return next((kind for kind in _PHASES if phase.startswith(kind)), "other")
