"""Prometheus metrics of the server, beside those of the broker's status page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from birdie_zmq.serve.admission import Admission
from birdie_zmq.serve.dispatcher import Dispatcher
from birdie_zmq.serve.model_connection import ModelConnection

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
_PREFIX = "birdie_zmq_serve_"
_COMPUTED = (
    ("tokens_computed", "tokens", "Token positions computed in all steps for this server, padding included."),
    ("tokens_padding", "padding", "Computed token positions that were padding."),
    ("tokens_distinct", "distinct", "The least that a causal model must compute for the scores of each batch."),
    ("tokens_generated", "generated", "Tokens generated for answers."),
)


class ServeMetrics(Collector):
    """The metrics of a server.

    Args:
        admission: Counts requests.
        dispatcher: Counts calls, and what is computed for them.
        connection: Knows whether the model can be used.

    Attributes:
        responses: The number of responses by route and status.
    """

    def __init__(self, admission: Admission, dispatcher: Dispatcher, connection: ModelConnection) -> None:
        self.responses = Counter[tuple[str, int]]()
        self._admission = admission
        self._dispatcher = dispatcher
        self._connection = connection

    def exposition(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        responses = CounterMetricFamily(
            f"{_PREFIX}responses", "Responses by route and status.", labels=["route", "status"]
        )
        for (route, status), count in self.responses.items():
            responses.add_metric([route, str(status)], count)
        yield responses
        yield CounterMetricFamily(
            f"{_PREFIX}refused", "Requests refused because the server was full.", value=self._admission.refused
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}requests", "Requests that are answered or wait.", value=self._admission.requests
        )
        lanes = {"scoring": self._dispatcher.scoring, "generation": self._dispatcher.generation}
        waiting = GaugeMetricFamily(f"{_PREFIX}prompts_waiting", "Prompts that wait for a worker.", labels=["lane"])
        calls = CounterMetricFamily(f"{_PREFIX}calls", "Calls to a worker.", labels=["lane"])
        prompts = CounterMetricFamily(f"{_PREFIX}prompts", "Prompts of these calls.", labels=["lane"])
        for name, lane in lanes.items():
            waiting.add_metric([name], len(lane.queue))
            calls.add_metric([name], lane.calls)
            prompts.add_metric([name], lane.prompts)
        yield from (waiting, calls, prompts)
        interruptions = self._dispatcher.generation.interruptions
        yield CounterMetricFamily(
            f"{_PREFIX}interruptions", "Generations that let others have a turn.", value=interruptions
        )
        is_up = self._connection.description is not None and self._connection.error is None
        yield GaugeMetricFamily(f"{_PREFIX}model_available", "Whether the model can be used.", value=float(is_up))
        computed = self._dispatcher.scoring.computed + self._dispatcher.generation.computed
        for name, counter, text in _COMPUTED:
            yield CounterMetricFamily(f"{_PREFIX}{name}", text, value=getattr(computed, counter))
