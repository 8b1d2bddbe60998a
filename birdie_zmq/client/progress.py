"""How far a call has come and how long it will take, from answers and a clock that is passed in."""

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
    """What a person may want to know of a call that goes on.

    ``tokens_per_second`` counts computed tokens, padding included, while nothing is compiled; the shares are of 1;
    ``distinct_share`` is of the tokens of texts to be scored. What is not known yet is None.
    """

    tokens_per_second: float | None = None
    padding_share: float | None = None
    distinct_share: float | None = None
    seconds_left: float | None = None


_EARLIER = 0.4
"""Of what is done, so much is too long ago to tell the pace."""

_LEAST_STRETCHES = 4
"""However little is done."""

_MOST_COMPILING = 1.0
"""As long as it was at work, a stretch may have been compiling, as where programs are only read from disk."""

_SPARE = 1.3
"""So many slots there are, about, for each text that goes on, where fewer and fewer do: slots are halved at a time."""

_MOST_LENGTHS = 1_000
"""The last ones; more of them say nothing new, and later prompts may be others."""


class _Work(Protocol):
    """An estimate for one kind of work, in the positions that workers tell of."""

    def advanced(self, job: int, advance: ProgressDelta, computed: ComputeCounters) -> None: ...

    def over(self, job: int) -> None: ...

    def cost_left(self) -> float | None: ...


class Estimate:
    """Follows one call.

    Args:
        jobs: All its work, of one kind, in the order in which it is sent.
        now: Seconds on a monotonic clock, as everywhere here.
    """

    def __init__(self, jobs: Sequence[Job], now: float) -> None:
        self._latest = now
        self._active_s = 0.0
        self._computed = ComputeCounters()
        self._pace = _Pace()
        self._compiling = _Compiling(len(jobs))
        self._job_of = {item: number for number, job in enumerate(jobs) for item in job.items}
        self._open = [len(job.items) for job in jobs]
        self._work: _Work | None = None
        if jobs and isinstance(jobs[0].work, GenerateWork):
            self._work = _Continuing(jobs, self._open)
        elif jobs and isinstance(jobs[0].work, LogLikelihoodWork | RollingWork):
            self._work = _Scoring(jobs, self._open)

    def answered(self, items: Sequence[int]) -> None:
        """Some items, by the caller's numbers, have their answers."""
        for job, count in Counter(self._job_of[item] for item in items).items():
            self._open[job] -= count
            if self._open[job] == 0:
                self._compiling.over(job)
                if self._work is not None:
                    self._work.over(job)

    def advanced(self, item: int, advance: ProgressDelta, now: float) -> None:
        """The job that has this item has come on."""
        computed = advance.computed
        busy = computed.seconds + computed.compile_seconds
        passed_s, active = now - self._latest, computed.seconds / busy if busy else 1.0
        self._latest = now
        self._active_s += passed_s * active
        job = self._job_of[item]
        self._compiling.advanced(job, advance, passed_s * (1.0 - active))
        if self._open[job] == 0:
            self._compiling.over(job)
        self._computed += computed
        self._pace.advanced(
            self._computed.done, self._active_s, is_clean=computed.compile_seconds <= _MOST_COMPILING * computed.seconds
        )
        if self._work is not None:
            self._work.advanced(job, advance, self._computed)

    def at(self, now: float) -> Progress:
        """How it stands."""
        computed = self._computed
        cost, seconds_each = None if self._work is None else self._work.cost_left(), self._pace.seconds_each
        left = None if cost is None or seconds_each is None else cost * seconds_each + self._compiling.left()
        return Progress(
            tokens_per_second=computed.tokens / self._active_s if computed.tokens and self._active_s else None,
            padding_share=computed.padding / computed.tokens if computed.tokens else None,
            distinct_share=computed.distinct / computed.requested if computed.distinct and computed.requested else None,
            seconds_left=None if left is None else max(0.0, left - (now - self._latest)),
        )


@dataclass(frozen=True)
class _Size:
    """The size of texts in characters: all of them, and what is new behind the text that is sent before."""

    whole: int = 0
    new: int = 0

    def __add__(self, other: _Size) -> _Size:
        return _Size(self.whole + other.whole, self.new + other.new)

    def __sub__(self, other: _Size) -> _Size:
        return _Size(self.whole - other.whole, self.new - other.new)

    def shared(self, share: float) -> float:
        """What has to be read where this share of what texts have in common is read once."""
        return self.whole - share * (self.whole - self.new)


class _Reading:
    """What is left to be read, in the positions that workers tell of.

    Of jobs that have begun they have told it. Others are taken to cost as much for what their texts add to those before
    them; or, where the model shares nothing, for their whole texts. What was planned so far tells which.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._unbegun: dict[int, _Size] = {}
        before = ""
        for number, job in enumerate(jobs):
            size = _Size()
            for text in _texts(job.work):
                size += _Size(len(text), len(text) - common_characters(before, text))
                before = text
            self._unbegun[number] = size
        self._waiting = sum(self._unbegun.values(), _Size())
        self._begun = _Size()
        self._ahead: dict[int, int] = {}
        self._share = 1.0
        self._planned = 0

    @property
    def unbegun(self) -> int:
        """How many jobs have not begun."""
        return len(self._unbegun)

    def advanced(self, job: int, remaining: int, computed: ComputeCounters) -> None:
        size = self._unbegun.pop(job, _Size())
        self._begun += size
        self._waiting -= size
        self._ahead[job] = remaining
        self._planned = computed.planned
        common = self._begun.whole - self._begun.new
        if common and computed.requested:
            read = computed.planned * self._begun.whole / computed.requested
            self._share = min(1.0, max(0.0, (self._begun.whole - read) / common))

    def over(self, job: int) -> None:
        """A job is answered, whatever was planned for it."""
        self._ahead.pop(job, None)
        self._waiting -= self._unbegun.pop(job, _Size())

    def left(self) -> float:
        begun = self._begun.shared(self._share)
        return sum(self._ahead.values()) + (self._waiting.shared(self._share) * self._planned / begun if begun else 0.0)


class _Pace:
    """Seconds for what costs one, by what was done lately, since the longest texts come first.

    A stretch in which much was compiled tells little of it: a step may have been computed meanwhile. It counts only
    where there are no others.
    """

    def __init__(self) -> None:
        self._stretches = _Stretches()
        self._any_stretches = _Stretches()
        self._latest = (0.0, 0)

    def advanced(self, done: int, active_s: float, *, is_clean: bool) -> None:
        """So much is done altogether, after so many seconds."""
        cost, seconds = done - self._latest[1], active_s - self._latest[0]
        self._latest = (active_s, done)
        self._any_stretches.add(cost, seconds)
        if is_clean:
            self._stretches.add(cost, seconds)

    @property
    def seconds_each(self) -> float | None:
        """None where it is not known yet."""
        if self._stretches.count:
            return self._stretches.seconds_each
        return self._any_stretches.seconds_each if self._any_stretches.count >= _LEAST_STRETCHES else None


class _Stretches:
    """What was done, and how long it took."""

    def __init__(self) -> None:
        self._ends = deque([(0.0, 0)])
        self._seconds = 0.0

    @property
    def count(self) -> int:
        return len(self._ends) - 1

    @property
    def seconds_each(self) -> float:
        (since_s, before), (until_s, done) = self._ends[0], self._ends[-1]
        return (until_s - since_s) / (done - before)

    def add(self, cost: int, seconds: float) -> None:
        self._seconds += seconds
        if cost <= 0:
            return
        done = self._ends[-1][1] + cost
        self._ends.append((self._seconds, done))
        while len(self._ends) > _LEAST_STRETCHES + 1 and self._ends[1][1] <= _EARLIER * done:
            self._ends.popleft()


class _Compiling:
    """Seconds in which programs are still to be compiled.

    Workers tell how many of what they have planned. Jobs that have not begun are taken to want as many new ones as those
    did that began after the first, and one for each before there are any.

    Args:
        jobs: How many there are.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._ahead: dict[int, int] = {}
        self._wanted: dict[int, int] = {}
        self._compiled = 0
        self._seconds = 0.0

    def advanced(self, job: int, advance: ProgressDelta, seconds: float) -> None:
        """A job has come on, and it was compiled for so long."""
        programs = advance.computed.executables
        self._compiled += programs
        self._seconds += seconds
        self._ahead[job] = advance.pending_compiles
        self._wanted[job] = self._wanted.get(job, 0) + programs

    def over(self, job: int) -> None:
        """A job is answered, whatever was planned for it."""
        self._ahead[job] = 0
        self._wanted.setdefault(job, 0)

    def left(self) -> float:
        """0 where nothing was compiled yet."""
        if not self._compiled:
            return 0.0
        wanted = [known + self._ahead[job] for job, known in self._wanted.items()]
        each = (sum(wanted[1:]) + 1) / len(wanted)
        programs = sum(self._ahead.values()) + each * (self._jobs - len(wanted))
        return programs * self._seconds / self._compiled


class _Scoring:
    """Texts to be scored: what is left to be read.

    Args:
        jobs: All of them.
        still_open: How many items of each have no answer yet, which others keep up to date.
    """

    def __init__(self, jobs: Sequence[Job], still_open: Sequence[int]) -> None:
        self._reading = _Reading(jobs)
        self._open = still_open

    def over(self, job: int) -> None:
        self._reading.over(job)

    def advanced(self, job: int, advance: ProgressDelta, computed: ComputeCounters) -> None:
        if self._open[job]:
            self._reading.advanced(job, advance.remaining, computed)

    def cost_left(self) -> float | None:
        return self._reading.left()


class _Continuing:
    """Texts that are continued end when they end; some go on side by side, and one that ends makes room for another.

    Their lengths are counted in rounds, each of which gives another token to all that go on. What reading their prompts
    costs comes on top.

    Args:
        jobs: All of them.
        still_open: How many items of each have no answer yet, which others keep up to date.
    """

    def __init__(self, jobs: Sequence[Job], still_open: Sequence[int]) -> None:
        self._reading = _Reading(jobs)
        self._open = still_open
        self._longest = max(self._open)
        self._most = [job.work.settings.max_gen_toks for job in jobs if isinstance(job.work, GenerateWork)]
        self._going: dict[int, tuple[int, ...]] = {}
        self._ended = deque[int](maxlen=_MOST_LENGTHS)
        self._cut = deque[int](maxlen=_MOST_LENGTHS)
        self._slots = 1
        self._round_cost = 0
        self._row_cost = 0

    def over(self, job: int) -> None:
        self._reading.over(job)
        self._going.pop(job, None)

    def advanced(self, job: int, advance: ProgressDelta, computed: ComputeCounters) -> None:
        for length in advance.finished_lengths:
            (self._ended if length < self._most[job] else self._cut).append(length)
        if advance.decode_rows >= self._slots and advance.decode_step_cost:  # Where few go on, so do fewer slots.
            self._slots, self._round_cost = min(advance.decode_rows, self._longest), advance.decode_step_cost
            self._row_cost = min(advance.decode_row_cost, advance.decode_step_cost // advance.decode_rows)
        if self._open[job]:
            self._reading.advanced(job, advance.remaining, computed)
            self._going[job] = advance.active_lengths[: self._open[job]]

    def cost_left(self) -> float | None:
        active_lengths = [(length, self._most[job]) for job, lengths in self._going.items() for length in lengths]
        if not self._round_cost:
            return None
        survival = SurvivalCurve(self._ended, [*self._cut, *(length for length, _ in active_lengths)])
        waiting = Counter[int]()
        for job, count in enumerate(self._open):
            waiting[self._most[job]] += count - len(self._going.get(job, ()))
        rounds = sum(count * survival.mean(most) for most, count in waiting.items()) / self._slots
        if self._slots == 1:
            rounds += sum(survival.mean(most, length) for length, most in active_lengths)
            return rounds * self._round_cost + self._reading.left()
        cost = rounds * self._round_cost + self._ending_cost(survival, active_lengths)
        # Where a job ends, fewer and fewer go on, until the last one lets the next job begin.
        if self._reading.unbegun:
            most = self._most[-1]
            ending = self._ending_cost(survival, [(0, most)] * self._slots)
            cost += self._reading.unbegun * max(0.0, ending - survival.mean(most) * self._round_cost)
        return cost + self._reading.left()

    def _ending_cost(self, survival: SurvivalCurve, active_lengths: Sequence[tuple[int, int]]) -> float:
        """Of the rounds until all these texts have ended, which have fewer slots as there are fewer texts."""
        rounds = survival.until_all_end(active_lengths)
        tokens = sum(survival.mean(most, length) for length, most in active_lengths)
        narrowed = rounds * (self._round_cost - self._slots * self._row_cost) + _SPARE * tokens * self._row_cost
        return min(rounds * self._round_cost, narrowed)


def common_characters(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    least = 0
    while most - least > 1:  # They agree on `least` characters, and not on `most`.
        middle = (least + most) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle
    return least


def _texts(work: Work) -> list[str]:
    """What is to be read."""
    match work:
        case LogLikelihoodWork(pairs=pairs):
            return [context + continuation for context, continuation in pairs]
        case RollingWork(texts=texts) | GenerateWork(prompts=texts):
            return texts
    return []
