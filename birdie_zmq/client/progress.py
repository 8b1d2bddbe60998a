"""Progress of a call and about how long it will take, from answers, progress reports and a clock that is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from birdie_zmq.client.core import Job
from birdie_zmq.types import ComputeCounters

INTERVAL_S = 0.5
"""Minimum seconds between two calls of `ProgressEstimator.at`."""

_MIN_SHARE = 0.05
"""The time left is unknown until this share of the texts is answered: the first answers say little about the others."""

_MIN_SAMPLES = 4
_OLD_SHARE = 0.4
"""The pace ignores the oldest samples, up to this share of what is answered: the longest texts come first."""


@dataclass(frozen=True)
class Progress:
    """The progress of a call, as it is shown to the user.

    ``tokens_per_second`` counts computed tokens, padding included, and excludes compile time. ``padding_share`` and
    ``distinct_share`` are between 0 and 1; ``distinct_share`` refers to the tokens of texts to be scored. ``seconds_left``
    is a rough estimate. Values that are not known yet are None.
    """

    tokens_per_second: float | None = None
    padding_share: float | None = None
    distinct_share: float | None = None
    seconds_left: float | None = None


class ProgressEstimator:
    """An estimator of the progress and the remaining time of one call.

    The time left is what remains of the texts, in characters, at the recent pace. Compile time does not count towards the
    pace.

    Args:
        jobs: All jobs of the call, in the order in which they are sent.
        now: Seconds on a monotonic clock, as in all methods.
    """

    def __init__(self, jobs: Sequence[Job], now: float) -> None:
        self._size_of = {item: (job.characters + 1) / len(job.items) for job in jobs for item in job.items}
        self._left = self._total = sum(self._size_of.values())
        self._reported_at = now
        self._active_s = 0.0
        self._computed = ComputeCounters()
        self._samples = deque([(0.0, 0.0)])
        """The active seconds and the size of what was answered, at some reports."""

    def answered(self, items: Sequence[int]) -> None:
        """Record that some items, by the caller's numbers, have answers or have failed."""
        self._left -= sum(self._size_of[item] for item in items)

    def progressed(self, computed: ComputeCounters, now: float) -> None:
        """Record what a worker has computed since its last report."""
        busy_s = computed.seconds + computed.compile_seconds
        self._active_s += (now - self._reported_at) * (computed.seconds / busy_s if busy_s else 1.0)
        self._reported_at = now
        self._computed += computed
        done = self._total - self._left
        if done > self._samples[-1][1]:
            self._samples.append((self._active_s, done))
        while len(self._samples) > _MIN_SAMPLES + 1 and self._samples[1][1] <= _OLD_SHARE * done:
            self._samples.popleft()

    def at(self, now: float) -> Progress:
        """Return the progress at a time."""
        computed = self._computed
        left_s = self._seconds_left()
        return Progress(
            tokens_per_second=computed.tokens / self._active_s if computed.tokens and self._active_s else None,
            padding_share=computed.padding / computed.tokens if computed.tokens else None,
            distinct_share=computed.distinct / computed.requested if computed.distinct and computed.requested else None,
            seconds_left=None if left_s is None else max(0.0, left_s - (now - self._reported_at)),
        )

    def _seconds_left(self) -> float | None:
        (start_s, start), (end_s, end) = self._samples[0], self._samples[-1]
        if len(self._samples) <= _MIN_SAMPLES or end < _MIN_SHARE * self._total:
            return None
        return self._left * (end_s - start_s) / (end - start)
