"""What was measured of a workload, and what follows from its counts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from birdie_zmq.harness.run_report import as_record
from birdie_zmq.tools.bench.workloads import Kind
from birdie_zmq.types import RunStatistics


def difference(before: RunStatistics, after: RunStatistics) -> RunStatistics:
    """What a model process has computed between two of its reports; of the shapes those that are new."""
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
class Measured:
    """One workload.

    Attributes:
        kind: Which.
        title: What a person calls it.
        documents: The documents of the timed pass.
        requests: Its requests.
        wall_s: Seconds from its first request to its last answer, without those of compiling.
        report: What the model process counted in it.
        warming: What it counted before, of this workload: while the size was found, and in a first pass of it.
    """

    kind: Kind
    title: str
    documents: int
    requests: int
    wall_s: float
    report: RunStatistics
    warming: RunStatistics

    @property
    def compile_s(self) -> float:
        """Seconds of compiling, in all passes."""
        return self.warming.compile_seconds + self.report.compile_seconds

    @property
    def new_shapes(self) -> int:
        """The shapes that no workload before this had sent to the model."""
        return len(self.warming.shapes) + len(self.report.shapes)

    @property
    def requests_per_s(self) -> float:
        """Requests a second, as lm_eval would see them."""
        return self.requests / self.wall_s

    @property
    def asked_per_s(self) -> float:
        """Tokens of the requests a second, as lm_eval would see them."""
        return self.report.tokens_requested / self.wall_s

    @property
    def computed_per_s(self) -> float:
        """Positions that the model computed in a second of its steps, padding included."""
        return self.report.tokens_computed / self.report.step_seconds if self.report.step_seconds else 0.0

    @property
    def sharing_gain(self) -> float:
        """Tokens asked for each position computed: above 1 by what requests share, below 1 by what is computed twice."""
        return (self.report.tokens_requested + self.report.tokens_generated) / max(1, self.report.tokens_computed)

    @property
    def excess(self) -> float:
        """Positions computed for each token that is distinct: 1 is the least; 0 where that is not counted."""
        return self.report.tokens_computed / self.report.tokens_distinct if self.report.tokens_distinct else 0.0

    @property
    def padding_share(self) -> float:
        """How much of what was computed was padding."""
        return self.report.tokens_padding / max(1, self.report.tokens_computed)

    @property
    def idle_share(self) -> float:
        """How much of the pass the device waited for the host."""
        return self.report.idle_seconds / self.wall_s

    @property
    def path_ratio(self) -> float:
        """The pass's seconds over those of its steps: what client, broker and worker add to the model's own time."""
        return self.wall_s / self.report.step_seconds if self.report.step_seconds else 0.0

    @property
    def thousand_s(self) -> float:
        """Seconds for 1,000 such documents, at the speed of the timed pass."""
        return 1_000 * self.wall_s / self.documents

    def as_record(self) -> dict[str, Any]:
        """All of it by name; seconds and shares as they say, and the counts as results of a run keep them."""
        return {
            "workload": self.kind,
            "title": self.title,
            "documents": self.documents,
            "requests": self.requests,
            "wall_seconds": self.wall_s,
            "compile_seconds": self.compile_s,
            "new_shapes": self.new_shapes,
            "requests_per_second": self.requests_per_s,
            "asked_tokens_per_second": self.asked_per_s,
            "sharing_gain": self.sharing_gain,
            "computed_per_distinct": self.excess or None,
            "idle_share": self.idle_share,
            "path_ratio": self.path_ratio,
            "seconds_per_1000_documents": self.thousand_s,
            "steps": as_record(self.report),
        }


@dataclass(frozen=True)
class LeftOut:
    """A workload that this model cannot do, and why."""

    kind: Kind
    why: str
