"""Holding two runs of one task against each other, sample by sample. No file is read here.

Of the first run, what a comparison needs is kept for each sample; the second one streams by. What is listed is bounded,
what is counted is not.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from birdie_zmq.tools.compare.samples import Sample

MOST_LISTED = 200
"""Flips, texts and samples of a task that are listed one by one."""
MOST_POINTS = 5_000
"""Points of a task that are drawn; of more, each n-th."""
_AROUND = 40


@dataclass(frozen=True)
class Flip:
    """Something of a document that is one thing in one run and another in the other."""

    doc_id: str
    what: str


@dataclass(frozen=True)
class TextPair:
    """Two texts to one prompt, from a little before the place where they part; ``position`` counts characters."""

    doc_id: str
    position: int
    a: str
    b: str


@dataclass(frozen=True, order=True)
class Worst:
    """A response whose log-likelihoods differ by ``difference`` nats; ``response`` counts those of its document."""

    difference: float
    doc_id: str = field(compare=False)
    response: int = field(compare=False)
    a: float = field(compare=False)
    b: float = field(compare=False)


@dataclass
class TaskReport:
    """What differs in one task. Differences are of log-likelihoods, in nats."""

    task: str
    threshold: float = 1e-3
    samples_a: int = 0
    samples_b: int = 0
    compared: int = 0
    missing_in_a: list[str] = field(default_factory=list)
    missing_in_b: list[str] = field(default_factory=list)
    asked_otherwise: list[str] = field(default_factory=list)
    responses: int = 0
    largest: float = 0.0
    sum_of_differences: float = 0.0
    finite_differences: int = 0
    over_threshold: int = 0
    flip_count: int = 0
    flips: list[Flip] = field(default_factory=list)
    text_count: int = 0
    texts: list[TextPair] = field(default_factory=list)
    worst: list[Worst] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)
    points_step: int = 1
    metrics: list[tuple[str, float | None, float | None]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """The mean absolute difference, of those that are finite."""
        return self.sum_of_differences / self.finite_differences if self.finite_differences else 0.0

    @property
    def missing(self) -> int:
        """How many documents are in one run only, or were asked something else."""
        return len(self.missing_in_a) + len(self.missing_in_b) + len(self.asked_otherwise)

    @property
    def agrees(self) -> bool:
        """Whether nothing is over the threshold, flips, reads otherwise or is missing."""
        return not (self.over_threshold or self.flip_count or self.text_count or self.missing)


def compare_task(
    task: str, a: Iterable[Sample], b: Iterable[Sample], *, threshold: float = 1e-3, most_worst: int = 10
) -> TaskReport:
    """Compare two runs of a task.

    Args:
        task: Its name.
        a: The samples of the one run, in any order.
        b: Those of the other.
        threshold: How many nats two log-likelihoods of one response may differ.
        most_worst: How many of the largest differences are listed.
    """
    report = TaskReport(task, threshold)
    waiting: dict[tuple[str, str], list[Sample]] = {}
    first_filter: str | None = None
    for sample in a:
        first_filter = sample.filter if first_filter is None else first_filter
        waiting.setdefault((sample.filter, sample.doc_id), []).append(sample)
        report.samples_a += 1
    for other in b:
        report.samples_b += 1
        candidates = waiting.get((other.filter, other.doc_id), [])
        at = next((i for i, one in enumerate(candidates) if _same_document(one, other)), None)
        if at is None:
            report.missing_in_a.append(_name(other))
            continue
        sample = candidates.pop(at)
        if sample.kind != other.kind or (sample.asked and other.asked and sample.asked != other.asked):
            report.asked_otherwise.append(_name(other))
            continue
        report.compared += 1
        _metric_flips(report, sample, other)
        if other.filter == first_filter:  # The lines of further filters repeat the same responses.
            _responses(report, sample, other, most_worst)
    report.missing_in_b = [_name(sample) for left in waiting.values() for sample in left]
    report.worst.sort(reverse=True)
    return report


def difference(a: float, b: float) -> float:
    """How far two log-likelihoods are apart; two NaN or two equal infinities not at all, NaN and a number infinitely."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    gap = abs(a - b)
    return math.inf if math.isnan(gap) else gap


def first_difference(a: str, b: str) -> int:
    """The position at which two texts part."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _same_document(a: Sample, b: Sample) -> bool:
    return not a.doc_hash or not b.doc_hash or a.doc_hash == b.doc_hash


def _name(sample: Sample) -> str:
    return sample.doc_id if sample.filter == "none" else f"{sample.doc_id} ({sample.filter})"


def _flip(report: TaskReport, doc_id: str, what: str) -> None:
    report.flip_count += 1
    if len(report.flips) < MOST_LISTED:
        report.flips.append(Flip(doc_id, what))


def _metric_flips(report: TaskReport, a: Sample, b: Sample) -> None:
    """Metrics of a document that are right or wrong; others, such as a perplexity's parts, differ as its scores do."""
    others = dict(b.metrics)
    for name, value in a.metrics:
        other = others.get(name)
        if other is not None and value != other and {value, other} <= {0.0, 1.0}:
            _flip(report, _name(a), f"{name} is {value:g} in A and {other:g} in B")


def _responses(report: TaskReport, a: Sample, b: Sample, most_worst: int) -> None:
    if len(a.loglikelihoods) != len(b.loglikelihoods) or len(a.texts) != len(b.texts):
        _flip(report, a.doc_id, "the numbers of responses differ")
    for i, (x, y) in enumerate(zip(a.loglikelihoods, b.loglikelihoods, strict=False)):
        gap = difference(x, y)
        report.largest = max(report.largest, gap)
        if math.isfinite(gap):
            report.sum_of_differences += gap
            report.finite_differences += 1
        report.over_threshold += gap > report.threshold
        _keep_point(report, x, y)
        report.responses += 1
        if gap:
            item = Worst(gap, a.doc_id, i, x, y)
            if len(report.worst) < most_worst:
                heapq.heappush(report.worst, item)
            elif most_worst:
                heapq.heappushpop(report.worst, item)
    for i, (one, other) in enumerate(zip(a.greedy, b.greedy, strict=False)):
        if one != other:
            _flip(report, a.doc_id, f"is_greedy of response {i} is {one} in A and {other} in B")
    if a.chosen != b.chosen:
        _flip(report, a.doc_id, f"answer {a.chosen} is the likeliest in A and {b.chosen} in B")
    for text, other_text in zip(a.texts, b.texts, strict=False):
        report.responses += 1
        if text != other_text:
            report.text_count += 1
            if len(report.texts) < MOST_LISTED:
                at = first_difference(text, other_text)
                part = slice(max(0, at - _AROUND), at + _AROUND)
                report.texts.append(TextPair(a.doc_id, at, text[part], other_text[part]))


def _keep_point(report: TaskReport, x: float, y: float) -> None:
    if report.responses % report.points_step or not (math.isfinite(x) and math.isfinite(y)):
        return
    report.points.append((x, y))
    if len(report.points) > MOST_POINTS:
        del report.points[1::2]
        report.points_step *= 2
