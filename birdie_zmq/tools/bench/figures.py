"""The measurement of a workload, and the figures derived from its counts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from birdie_zmq.harness.run_report import statistics_record
from birdie_zmq.tools.bench.workloads import Workload
from birdie_zmq.types import RunStatistics


def difference(before: RunStatistics, after: RunStatistics) -> RunStatistics:
    """Return the statistics between two reports of a model process; only new shapes are included."""
    counts = {
        name: getattr(after, name) - getattr(before, name)
        for name in RunStatistics.__struct_fields__
        if name not in ("shapes", "shape_bound")
    }
    seen = set(before.shapes)
    return RunStatistics(
        **counts,
        shapes=[shape for shape in after.shapes if shape not in seen],
        shape_bound=after.shape_bound,
    )


@dataclass(frozen=True)
class Measurement:
    """The measurement of one workload.

    Attributes:
        workload: The workload.
        title: Its name for people.
        documents: Number of documents of the timed pass.
        requests: Number of requests of the timed pass.
        wall_s: Seconds from the first request to the last answer, without compilation.
        report: Statistics of the model process for the timed pass.
        warmup: Its statistics for the earlier passes of this workload, which choose the size and warm up.
    """

    workload: Workload
    title: str
    documents: int
    requests: int
    wall_s: float
    report: RunStatistics
    warmup: RunStatistics

    @property
    def compile_s(self) -> float:
        """Seconds of compilation in all passes."""
        return self.warmup.compile_seconds + self.report.compile_seconds

    @property
    def new_shapes(self) -> int:
        """Number of shapes that no earlier workload used."""
        return len(self.warmup.shapes) + len(self.report.shapes)

    @property
    def requests_per_s(self) -> float:
        """Requests per second, from the point of view of lm_eval."""
        return self.requests / self.wall_s

    @property
    def requested_tokens_per_s(self) -> float:
        """Tokens of the requests per second, from the point of view of lm_eval."""
        return self.report.tokens_requested / self.wall_s

    @property
    def computed_tokens_per_s(self) -> float:
        """Tokens that the model computed per second of its steps, including padding."""
        return self.report.tokens_computed / self.report.step_seconds if self.report.step_seconds else 0.0

    @property
    def sharing_gain(self) -> float:
        """Requested and generated tokens per computed token: sharing raises it above 1, recomputing lowers it below 1."""
        return (self.report.tokens_requested + self.report.tokens_generated) / max(1, self.report.tokens_computed)

    @property
    def computed_per_distinct(self) -> float:
        """Computed tokens per distinct token, at least 1; 0 if distinct tokens are not counted."""
        return self.report.tokens_computed / self.report.tokens_distinct if self.report.tokens_distinct else 0.0

    @property
    def padding_share(self) -> float:
        """Share of padding among the computed tokens, between 0 and 1."""
        return self.report.tokens_padding / max(1, self.report.tokens_computed)

    @property
    def idle_share(self) -> float:
        """Share of the pass in which the model process had requests and the device waited for the host, between 0 and 1."""
        return self.report.idle_seconds / self.wall_s

    @property
    def path_ratio(self) -> float:
        """Duration of the pass divided by the time in which the model process had requests.

        It shows the overhead of client, broker and agent.
        """
        working_s = self.report.step_seconds + self.report.idle_seconds
        return self.wall_s / working_s if working_s else 0.0

    @property
    def seconds_per_1000_documents(self) -> float:
        """Seconds for 1,000 documents, at the speed of the timed pass."""
        return 1_000 * self.wall_s / self.documents

    def as_record(self) -> dict[str, Any]:
        """Return all figures by name, as the JSON file stores them; counts have the names of a run's results file."""
        return {
            "workload": self.workload,
            "title": self.title,
            "documents": self.documents,
            "requests": self.requests,
            "wall_seconds": self.wall_s,
            "compile_seconds": self.compile_s,
            "new_shapes": self.new_shapes,
            "requests_per_second": self.requests_per_s,
            "asked_tokens_per_second": self.requested_tokens_per_s,
            "sharing_gain": self.sharing_gain,
            "computed_per_distinct": self.computed_per_distinct or None,
            "idle_share": self.idle_share,
            "path_ratio": self.path_ratio,
            "seconds_per_1000_documents": self.seconds_per_1000_documents,
            "steps": statistics_record(self.report),
        }


@dataclass(frozen=True)
class SkippedWorkload:
    """A workload that the model cannot run, and the reason."""

    workload: Workload
    reason: str
