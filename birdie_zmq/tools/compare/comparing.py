"""Compares two runs of one task sample by sample. Pure: no file is read here.

The samples of the first run are kept in memory, without their documents; those of the second run are streamed. Lists of
differences are bounded, counts are exact.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from birdie_zmq.tools.compare.samples import Sample

MAX_LISTED = 200
"""Maximum number of flips and of differing texts to list per task."""
MAX_POINTS = 5_000
"""Maximum number of plotted responses per task; beyond it, only every n-th response is plotted."""
_CONTEXT_CHARACTERS = 40
"""Characters shown before and after the position at which two texts differ."""


@dataclass(frozen=True)
class Flip:
    """A discrete result of a document that differs between the runs, such as the top choice or a metric of 0 or 1."""

    doc_id: str
    what: str


@dataclass(frozen=True)
class TextPair:
    """Excerpts of two texts generated for one prompt, around the first difference at character ``position``."""

    doc_id: str
    position: int
    a: str
    b: str


@dataclass(frozen=True, order=True)
class WorstResponse:
    """A response whose log-likelihoods differ by ``difference`` nats; ``response`` is its index in the document."""

    difference: float
    doc_id: str = field(compare=False)
    response: int = field(compare=False)
    a: float = field(compare=False)
    b: float = field(compare=False)


@dataclass
class TaskReport:
    """The differences of two runs in one task. All numeric differences are of log-likelihoods, in nats."""

    task: str
    threshold: float = 1e-3
    compared: int = 0
    missing_in_a: list[str] = field(default_factory=list)
    missing_in_b: list[str] = field(default_factory=list)
    request_changed: list[str] = field(default_factory=list)
    responses: int = 0
    max_difference: float = 0.0
    sum_of_differences: float = 0.0
    finite_differences: int = 0
    over_threshold: int = 0
    flip_count: int = 0
    flips: list[Flip] = field(default_factory=list)
    text_count: int = 0
    texts: list[TextPair] = field(default_factory=list)
    worst: list[WorstResponse] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)
    points_stride: int = 1
    metrics: list[tuple[str, float | None, float | None]] = field(default_factory=list)

    @property
    def mean_difference(self) -> float:
        """Mean of the finite absolute differences."""
        return self.sum_of_differences / self.finite_differences if self.finite_differences else 0.0

    @property
    def missing(self) -> int:
        """Number of documents that are in one run only or have different requests."""
        return len(self.missing_in_a) + len(self.missing_in_b) + len(self.request_changed)

    @property
    def agrees(self) -> bool:
        """Whether there is no difference above the threshold, no flip, no differing text and no missing document."""
        return not (self.over_threshold or self.flip_count or self.text_count or self.missing)


def compare_task(
    task: str, a: Iterable[Sample], b: Iterable[Sample], *, threshold: float = 1e-3, max_worst: int = 10
) -> TaskReport:
    """Compare two runs of a task.

    Args:
        task: The name of the task.
        a: The samples of the first run, in any order.
        b: The samples of the second run, in any order.
        threshold: Allowed difference of the two log-likelihoods of a response, in nats.
        max_worst: Number of largest differences to list.
    """
    report = TaskReport(task, threshold)
    unmatched: dict[tuple[str, str], list[Sample]] = {}
    first_filter: str | None = None
    for sample in a:
        first_filter = sample.filter if first_filter is None else first_filter
        unmatched.setdefault((sample.filter, sample.doc_id), []).append(sample)
    for other in b:
        candidates = unmatched.get((other.filter, other.doc_id), [])
        at = next((i for i, one in enumerate(candidates) if _same_document(one, other)), None)
        if at is None:
            report.missing_in_a.append(_name(other))
            continue
        sample = candidates.pop(at)
        if sample.kind != other.kind or (
            sample.request_hash and other.request_hash and sample.request_hash != other.request_hash
        ):
            report.request_changed.append(_name(other))
            continue
        report.compared += 1
        _metric_flips(report, sample, other)
        if other.filter == first_filter:  # Lines of further filters repeat the same responses.
            _responses(report, sample, other, max_worst)
    report.missing_in_b = [_name(sample) for samples in unmatched.values() for sample in samples]
    report.worst.sort(reverse=True)
    return report


def difference(a: float, b: float) -> float:
    """Return the absolute difference: 0 for two NaN or equal infinities, infinite for NaN and a number."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    gap = abs(a - b)
    return math.inf if math.isnan(gap) else gap


def first_difference(a: str, b: str) -> int:
    """Return the position of the first differing character."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _same_document(a: Sample, b: Sample) -> bool:
    return not a.doc_hash or not b.doc_hash or a.doc_hash == b.doc_hash


def _name(sample: Sample) -> str:
    return sample.doc_id if sample.filter == "none" else f"{sample.doc_id} ({sample.filter})"


def _flip(report: TaskReport, doc_id: str, what: str) -> None:
    report.flip_count += 1
    if len(report.flips) < MAX_LISTED:
        report.flips.append(Flip(doc_id, what))


def _metric_flips(report: TaskReport, a: Sample, b: Sample) -> None:
    """Record metrics of a document that are 0 in one run and 1 in the other.

    Other metrics, such as the parts of a perplexity, differ whenever the scores differ.
    """
    others = dict(b.metrics)
    for name, value in a.metrics:
        other = others.get(name)
        if other is not None and value != other and {value, other} <= {0.0, 1.0}:
            _flip(report, _name(a), f"{name} is {value:g} in A and {other:g} in B")


def _responses(report: TaskReport, a: Sample, b: Sample, max_worst: int) -> None:
    if len(a.loglikelihoods) != len(b.loglikelihoods) or len(a.texts) != len(b.texts):
        _flip(report, a.doc_id, "the numbers of responses differ")
    for i, (x, y) in enumerate(zip(a.loglikelihoods, b.loglikelihoods, strict=False)):
        gap = difference(x, y)
        report.max_difference = max(report.max_difference, gap)
        if math.isfinite(gap):
            report.sum_of_differences += gap
            report.finite_differences += 1
        report.over_threshold += gap > report.threshold
        _keep_point(report, x, y)
        report.responses += 1
        if gap:
            item = WorstResponse(gap, a.doc_id, i, x, y)
            if len(report.worst) < max_worst:
                heapq.heappush(report.worst, item)
            elif max_worst:
                heapq.heappushpop(report.worst, item)
    for i, (one, other) in enumerate(zip(a.greedy, b.greedy, strict=False)):
        if one != other:
            _flip(report, a.doc_id, f"is_greedy of response {i} is {one} in A and {other} in B")
    if a.top_choice != b.top_choice:
        _flip(report, a.doc_id, f"the top choice is {a.top_choice} in A and {b.top_choice} in B")
    for text, other_text in zip(a.texts, b.texts, strict=False):
        report.responses += 1
        if text != other_text:
            report.text_count += 1
            if len(report.texts) < MAX_LISTED:
                at = first_difference(text, other_text)
                excerpt = slice(max(0, at - _CONTEXT_CHARACTERS), at + _CONTEXT_CHARACTERS)
                report.texts.append(TextPair(a.doc_id, at, text[excerpt], other_text[excerpt]))


def _keep_point(report: TaskReport, x: float, y: float) -> None:
    if report.responses % report.points_stride or not (math.isfinite(x) and math.isfinite(y)):
        return
    report.points.append((x, y))
    if len(report.points) > MAX_POINTS:
        del report.points[1::2]
        report.points_stride *= 2
