"""The status in the text format of Prometheus. The names are documented in docs/how_to/status.md, and stay."""

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
    ("requests_failed", "Requests that will have no answer."),
    ("batches_answered", "Batches of which all requests were answered or failed."),
    ("losses", "How often what was being computed was lost and had to be done again."),
    ("switches", "How often a worker changed from one model to another."),
    ("refusals", "Messages that were refused."),
    ("tokens_computed", "Positions of all steps, padding included, as workers say."),
    ("tokens_padding", "Those of them that were padding."),
    ("tokens_generated", "Tokens that answers were made of."),
    ("programs", "Shapes that models were called with for the first time."),
    ("compile_seconds", "Seconds of compiling."),
)


def exposition(status: Status) -> bytes:
    """All metrics of one status."""
    # A registry of its own: the global one also tells of the Python process, and belongs to the whole of it.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(status))
    return generate_latest(registry)


class _Metrics(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        yield GaugeMetricFamily(f"{_PREFIX}uptime_seconds", "Since the broker was started.", value=status.uptime_s)
        yield GaugeMetricFamily(
            f"{_PREFIX}status_age_seconds", "Since the broker's loop last came round.", value=status.age_s
        )
        yield GaugeMetricFamily(f"{_PREFIX}clients", "Sessions of clients.", value=status.clients_connected)
        workers = GaugeMetricFamily(f"{_PREFIX}workers", "Workers, by what they do.", labels=["phase"])
        # Only the first word: the shapes of what is compiled would make a new series each.
        for phase, count in Counter(_kind(worker.phase) for worker in status.workers).items():
            workers.add_metric([phase], count)
        yield workers
        batches = GaugeMetricFamily(f"{_PREFIX}batches", "Batches that are not answered.", labels=["state"])
        batches.add_metric(["waiting"], status.batches_waiting)
        batches.add_metric(["leased"], status.batches_leased)
        yield batches
        waiting = GaugeMetricFamily(
            f"{_PREFIX}model_requests_waiting", "Requests that wait, by model.", labels=["model"]
        )
        # Two models with long names may look the same.
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
    """One of few words, whatever a worker says."""
    return next((kind for kind in _PHASES if phase.startswith(kind)), "other")
