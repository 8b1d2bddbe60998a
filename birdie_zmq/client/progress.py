"""Progress of a call and about how long it will take, from answers, progress reports and a clock that is passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from birdie_zmq.client.job import Job
from birdie_zmq.types import ComputeCounters, GenerateWork, LogLikelihoodWork, RollingWork, Work

INTERVAL_S = 0.5
"""Minimum seconds between two reports of the progress of a call."""

_MIN_SHARE = 0.05
"""The time left is unknown until this share of the texts is answered: the first answers say little about the others."""

_MIN_SAMPLES = 5
_OLD_SHARE = 0.5
"""The pace ignores the oldest samples, up to this share of what is answered: the longest texts come first."""

_MIN_GENERATED = 256
"""The time left of generation is unknown until this many prompts are answered, the items of a batch.

Many sequences are decoded side by side. The short answers come first, so fewer answers say little about the pace.
"""


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
    pace, and compilations that may follow do not count towards the time left.

    Args:
        jobs: All jobs of the call.
        now: Seconds on a monotonic clock, as in all methods.
    """

    def __init__(self, jobs: Sequence[Job], now: float) -> None:
        self._size_of = {
            item: size for job in jobs for item, size in zip(job.items, _characters(job.work), strict=True)
        }
        self._left = self._total = sum(self._size_of.values())
        self._answered_items = 0
        self._min_items = _MIN_GENERATED if any(isinstance(job.work, GenerateWork) for job in jobs) else 1
        self._reported_at = now
        self._active_s = 0.0
        self._computed = ComputeCounters()
        self._samples: deque[tuple[float, float]] = deque()
        """The active seconds and the size of what was answered, at the reports that came after new answers."""

    def answered(self, items: Sequence[int]) -> None:
        """Record that some items, by the caller's numbers, have answers or have failed."""
        self._answered_items += len(items)
        self._left -= sum(self._size_of[item] for item in items)

    def progressed(self, computed: ComputeCounters, now: float) -> None:
        """Record what a worker has computed since its last report."""
        active_s = computed.seconds + computed.idle_seconds
        busy_s = active_s + computed.compile_seconds
        self._active_s += (now - self._reported_at) * (active_s / busy_s if busy_s else 1.0)
        self._reported_at = now
        self._computed += computed
        done = self._total - self._left
        if not self._samples or done > self._samples[-1][1]:
            self._samples.append((self._active_s, done))
        while len(self._samples) > _MIN_SAMPLES and self._samples[1][1] <= _OLD_SHARE * done:
            self._samples.popleft()

    def progress(self) -> Progress:
        """Return the progress at the last report."""
        computed = self._computed
        return Progress(
            tokens_per_second=computed.tokens / self._active_s if computed.tokens and self._active_s else None,
            padding_share=computed.padding / computed.tokens if computed.tokens else None,
            distinct_share=computed.distinct / computed.requested if computed.distinct and computed.requested else None,
            seconds_left=self._seconds_left(),
        )

    def _seconds_left(self) -> float | None:
        if len(self._samples) < _MIN_SAMPLES or self._answered_items < self._min_items:
            return None
        (start_s, start), (end_s, end) = self._samples[0], self._samples[-1]
        return self._left * (end_s - start_s) / (end - start) if end >= _MIN_SHARE * self._total else None


def _characters(work: Work) -> list[int]:
    """Return the characters of each item, and 1 more, since a text may be empty."""
    match work:
        case LogLikelihoodWork(pairs=pairs):
            return [len(context) + len(continuation) + 1 for context, continuation in pairs]
        case RollingWork(texts=texts) | GenerateWork(prompts=texts):
            return [len(text) + 1 for text in texts]
        case _:
            return [1] * len(work)
