"""Progress of a call and its remaining time, estimated from answers, progress reports and a clock that is passed in."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from birdie_zmq.client.core import Job
from birdie_zmq.client.survival import SurvivalCurve
from birdie_zmq.types import ComputeCounters, GenerateWork, LogLikelihoodWork, ProgressDelta, RollingWork, Work


@dataclass(frozen=True)
class Progress:
    """The progress of a call, as it is shown to the user.

    ``tokens_per_second`` counts computed tokens, padding included, and excludes compile time. ``padding_share`` and
    ``distinct_share`` are between 0 and 1; ``distinct_share`` refers to the tokens of texts to be scored. Values that are
    not known yet are None.
    """

    tokens_per_second: float | None = None
    padding_share: float | None = None
    distinct_share: float | None = None
    seconds_left: float | None = None


_OLD_SHARE = 0.4
"""The rate ignores the oldest samples, up to this share of the finished cost."""

_MIN_SAMPLES = 4
"""The rate uses at least this many samples, however old they are."""

_MAX_COMPILE_RATIO = 1.0
"""A sample with compile time of up to this multiple of its step time still counts as clean, as with a compilation cache."""

_ROWS_PER_SEQUENCE = 1.3
"""Approximate number of decode rows per active sequence at the end of a job, where the rows are halved step by step."""

_MAX_LENGTHS = 1_000
"""Only the latest lengths are kept: more add no information, and later prompts may have other lengths."""


class _WorkEstimate(Protocol):
    """An estimate for one kind of work, in the cost units of workers' reports (prefilled positions)."""

    def progressed(self, job: int, delta: ProgressDelta, computed: ComputeCounters) -> None: ...

    def finished(self, job: int) -> None: ...

    def remaining_cost(self) -> float | None: ...


class ProgressEstimator:
    """An estimator of the progress and the remaining time of one call.

    Args:
        jobs: All jobs of the call, of one kind, in the order in which they are sent.
        now: Seconds on a monotonic clock, as in all methods.
    """

    def __init__(self, jobs: Sequence[Job], now: float) -> None:
        self._reported_at = now
        self._active_s = 0.0
        self._computed = ComputeCounters()
        self._rate = _CostRate()
        self._compile_time = _CompileTimeEstimate(len(jobs))
        self._job_of = {item: number for number, job in enumerate(jobs) for item in job.items}
        self._unanswered = [len(job.items) for job in jobs]
        self._work: _WorkEstimate | None = None
        if jobs and isinstance(jobs[0].work, GenerateWork):
            self._work = _GenerationEstimate(jobs, self._unanswered)
        elif jobs and isinstance(jobs[0].work, LogLikelihoodWork | RollingWork):
            self._work = _ScoringEstimate(jobs, self._unanswered)

    def answered(self, items: Sequence[int]) -> None:
        """Record that some items, by the caller's numbers, have answers."""
        for job, count in Counter(self._job_of[item] for item in items).items():
            self._unanswered[job] -= count
            if self._unanswered[job] == 0:
                self._compile_time.finished(job)
                if self._work is not None:
                    self._work.finished(job)

    def progressed(self, item: int, delta: ProgressDelta, now: float) -> None:
        """Record a progress report of the job that contains this item."""
        computed = delta.computed
        busy_s = computed.seconds + computed.compile_seconds
        passed_s, active_share = now - self._reported_at, computed.seconds / busy_s if busy_s else 1.0
        self._reported_at = now
        self._active_s += passed_s * active_share
        job = self._job_of[item]
        self._compile_time.progressed(job, delta, passed_s * (1.0 - active_share))
        if self._unanswered[job] == 0:
            self._compile_time.finished(job)
        self._computed += computed
        self._rate.update(
            self._computed.done,
            self._active_s,
            is_clean=computed.compile_seconds <= _MAX_COMPILE_RATIO * computed.seconds,
        )
        if self._work is not None:
            self._work.progressed(job, delta, self._computed)

    def at(self, now: float) -> Progress:
        """Return the progress at a time."""
        computed = self._computed
        cost, seconds_per_cost = (
            None if self._work is None else self._work.remaining_cost(),
            self._rate.seconds_per_cost,
        )
        left_s = (
            None
            if cost is None or seconds_per_cost is None
            else cost * seconds_per_cost + self._compile_time.remaining_seconds()
        )
        return Progress(
            tokens_per_second=computed.tokens / self._active_s if computed.tokens and self._active_s else None,
            padding_share=computed.padding / computed.tokens if computed.tokens else None,
            distinct_share=computed.distinct / computed.requested if computed.distinct and computed.requested else None,
            seconds_left=None if left_s is None else max(0.0, left_s - (now - self._reported_at)),
        )


@dataclass(frozen=True)
class _TextSize:
    """The size of texts in characters: in total, and without the prefix that each shares with the text before it."""

    total: int = 0
    distinct: int = 0

    def __add__(self, other: _TextSize) -> _TextSize:
        return _TextSize(self.total + other.total, self.distinct + other.distinct)

    def __sub__(self, other: _TextSize) -> _TextSize:
        return _TextSize(self.total - other.total, self.distinct - other.distinct)

    def prefill_size(self, reuse: float) -> float:
        """Return the characters to prefill if this share of the common prefixes is computed once."""
        return self.total - reuse * (self.total - self.distinct)


class _PrefillEstimate:
    """The remaining cost of prefill, in the cost units of workers' reports.

    Workers report the remaining cost of jobs that have started. The cost of the other jobs is estimated from the characters
    of their texts without common prefixes or, if the model does not share prefixes, from all their characters. The cost
    planned so far shows how much is shared.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._not_started: dict[int, _TextSize] = {}
        previous = ""
        for number, job in enumerate(jobs):
            size = _TextSize()
            for text in _texts(job.work):
                size += _TextSize(len(text), len(text) - common_characters(previous, text))
                previous = text
            self._not_started[number] = size
        self._waiting_size = sum(self._not_started.values(), _TextSize())
        self._started_size = _TextSize()
        self._remaining: dict[int, int] = {}
        self._reuse = 1.0
        self._planned = 0

    @property
    def jobs_not_started(self) -> int:
        """Number of jobs that have not started."""
        return len(self._not_started)

    def progressed(self, job: int, remaining: int, computed: ComputeCounters) -> None:
        size = self._not_started.pop(job, _TextSize())
        self._started_size += size
        self._waiting_size -= size
        self._remaining[job] = remaining
        self._planned = computed.planned
        common = self._started_size.total - self._started_size.distinct
        if common and computed.requested:
            prefilled = computed.planned * self._started_size.total / computed.requested
            self._reuse = min(1.0, max(0.0, (self._started_size.total - prefilled) / common))

    def finished(self, job: int) -> None:
        """Drop what was planned for a job that is answered."""
        self._remaining.pop(job, None)
        self._waiting_size -= self._not_started.pop(job, _TextSize())

    def remaining_cost(self) -> float:
        started = self._started_size.prefill_size(self._reuse)
        waiting = self._waiting_size.prefill_size(self._reuse) * self._planned / started if started else 0.0
        return sum(self._remaining.values()) + waiting


class _CostRate:
    """The recent rate in seconds per unit of cost. Old samples are ignored, because the longest texts come first.

    A sample with much compile time is inaccurate, since steps may have run meanwhile. Such samples count only if there are no
    others.
    """

    def __init__(self) -> None:
        self._clean_samples = _RateWindow()
        self._all_samples = _RateWindow()
        self._last = (0.0, 0)

    def update(self, done: int, active_s: float, *, is_clean: bool) -> None:
        """Add a sample from the total finished cost and the total active seconds."""
        cost, seconds = done - self._last[1], active_s - self._last[0]
        self._last = (active_s, done)
        self._all_samples.add(cost, seconds)
        if is_clean:
            self._clean_samples.add(cost, seconds)

    @property
    def seconds_per_cost(self) -> float | None:
        """Seconds per unit of cost, None if it is not known yet."""
        if self._clean_samples.count:
            return self._clean_samples.seconds_per_cost
        return self._all_samples.seconds_per_cost if self._all_samples.count >= _MIN_SAMPLES else None


class _RateWindow:
    """A window of the latest samples of cost and time."""

    def __init__(self) -> None:
        self._totals = deque([(0.0, 0)])
        self._seconds = 0.0

    @property
    def count(self) -> int:
        return len(self._totals) - 1

    @property
    def seconds_per_cost(self) -> float:
        (start_s, start_cost), (end_s, end_cost) = self._totals[0], self._totals[-1]
        return (end_s - start_s) / (end_cost - start_cost)

    def add(self, cost: int, seconds: float) -> None:
        self._seconds += seconds
        if cost <= 0:
            return
        done = self._totals[-1][1] + cost
        self._totals.append((self._seconds, done))
        while len(self._totals) > _MIN_SAMPLES + 1 and self._totals[1][1] <= _OLD_SHARE * done:
            self._totals.popleft()


class _CompileTimeEstimate:
    """The remaining compile time.

    Workers report the pending compilations of the jobs that have started. A job that has not started is expected to need the
    mean number of new compilations of the started jobs, where the first job counts as one compilation: it compiles more than
    later jobs.

    Args:
        jobs: The number of jobs.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._pending: dict[int, int] = {}
        self._compiled_by_job: dict[int, int] = {}
        self._compiled = 0
        self._seconds = 0.0

    def progressed(self, job: int, delta: ProgressDelta, seconds: float) -> None:
        """Record a progress report and the compile seconds in it."""
        compiled = delta.computed.executables
        self._compiled += compiled
        self._seconds += seconds
        self._pending[job] = delta.pending_compiles
        self._compiled_by_job[job] = self._compiled_by_job.get(job, 0) + compiled

    def finished(self, job: int) -> None:
        """Drop what was planned for a job that is answered."""
        self._pending[job] = 0
        self._compiled_by_job.setdefault(job, 0)

    def remaining_seconds(self) -> float:
        """Return the remaining compile seconds, 0 if nothing was compiled yet."""
        if not self._compiled:
            return 0.0
        needed = [compiled + self._pending[job] for job, compiled in self._compiled_by_job.items()]
        mean_needed = (sum(needed[1:]) + 1) / len(needed)
        compilations = sum(self._pending.values()) + mean_needed * (self._jobs - len(needed))
        return compilations * self._seconds / self._compiled


class _ScoringEstimate:
    """The remaining cost of texts to be scored, which is the cost of their prefill.

    Args:
        jobs: All jobs.
        unanswered: The number of unanswered items of each job, which the caller keeps up to date.
    """

    def __init__(self, jobs: Sequence[Job], unanswered: Sequence[int]) -> None:
        self._prefill = _PrefillEstimate(jobs)
        self._unanswered = unanswered

    def finished(self, job: int) -> None:
        self._prefill.finished(job)

    def progressed(self, job: int, delta: ProgressDelta, computed: ComputeCounters) -> None:
        if self._unanswered[job]:
            self._prefill.progressed(job, delta.remaining, computed)

    def remaining_cost(self) -> float | None:
        return self._prefill.remaining_cost()


class _GenerationEstimate:
    """The remaining cost of generation, where the lengths of the answers are not known in advance.

    Sequences are decoded in parallel, and a finished sequence frees its row for the next prompt. Lengths are counted in
    decode steps, each of which adds a token to every active sequence. The cost of prefill is added.

    Args:
        jobs: All jobs.
        unanswered: The number of unanswered items of each job, which the caller keeps up to date.
    """

    def __init__(self, jobs: Sequence[Job], unanswered: Sequence[int]) -> None:
        self._prefill = _PrefillEstimate(jobs)
        self._unanswered = unanswered
        self._largest_job = max(self._unanswered)
        self._limits = [job.work.settings.max_gen_toks for job in jobs if isinstance(job.work, GenerateWork)]
        self._active_lengths: dict[int, tuple[int, ...]] = {}
        self._finished_lengths = deque[int](maxlen=_MAX_LENGTHS)
        self._truncated_lengths = deque[int](maxlen=_MAX_LENGTHS)
        self._rows = 1
        self._step_cost = 0
        self._row_cost = 0

    def finished(self, job: int) -> None:
        self._prefill.finished(job)
        self._active_lengths.pop(job, None)

    def progressed(self, job: int, delta: ProgressDelta, computed: ComputeCounters) -> None:
        for length in delta.finished_lengths:
            (self._finished_lengths if length < self._limits[job] else self._truncated_lengths).append(length)
        if (
            delta.decode_rows >= self._rows and delta.decode_step_cost
        ):  # With few active sequences there are fewer rows.
            self._rows, self._step_cost = min(delta.decode_rows, self._largest_job), delta.decode_step_cost
            self._row_cost = min(delta.decode_row_cost, delta.decode_step_cost // delta.decode_rows)
        if self._unanswered[job]:
            self._prefill.progressed(job, delta.remaining, computed)
            self._active_lengths[job] = delta.active_lengths[: self._unanswered[job]]

    def remaining_cost(self) -> float | None:
        active = [(length, self._limits[job]) for job, lengths in self._active_lengths.items() for length in lengths]
        if not self._step_cost:
            return None
        curve = SurvivalCurve(self._finished_lengths, [*self._truncated_lengths, *(length for length, _ in active)])
        waiting = Counter[int]()
        for job, count in enumerate(self._unanswered):
            waiting[self._limits[job]] += count - len(self._active_lengths.get(job, ()))
        steps = sum(count * curve.mean_remaining(limit) for limit, count in waiting.items()) / self._rows
        if self._rows == 1:
            steps += sum(curve.mean_remaining(limit, length) for length, limit in active)
            return steps * self._step_cost + self._prefill.remaining_cost()
        cost = steps * self._step_cost + self._drain_cost(curve, active)
        # At the end of a job fewer and fewer sequences are active, and the next job starts only after the last one.
        if self._prefill.jobs_not_started:
            limit = self._limits[-1]
            drain_cost = self._drain_cost(curve, [(0, limit)] * self._rows)
            extra = max(0.0, drain_cost - curve.mean_remaining(limit) * self._step_cost)
            cost += self._prefill.jobs_not_started * extra
        return cost + self._prefill.remaining_cost()

    def _drain_cost(self, curve: SurvivalCurve, active: Sequence[tuple[int, int]]) -> float:
        """Return the cost of the decode steps until all active sequences have finished.

        The rows of a step decrease with the number of active sequences.
        """
        steps = curve.mean_until_last(active)
        tokens = sum(curve.mean_remaining(limit, length) for length, limit in active)
        cost = steps * (self._step_cost - self._rows * self._row_cost) + _ROWS_PER_SEQUENCE * tokens * self._row_cost
        return min(steps * self._step_cost, cost)


def common_characters(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts, in characters."""
    upper = min(len(one), len(other))
    if one[:upper] == other[:upper]:
        return upper
    lower = 0
    while upper - lower > 1:  # The texts agree on `lower` characters, but not on `upper`.
        middle = (lower + upper) // 2
        if one[lower:middle] == other[lower:middle]:
            lower = middle
        else:
            upper = middle
    return lower


def _texts(work: Work) -> list[str]:
    """Return the texts to prefill."""
    match work:
        case LogLikelihoodWork(pairs=pairs):
            return [context + continuation for context, continuation in pairs]
        case RollingWork(texts=texts) | GenerateWork(prompts=texts):
            return texts
    return []
