"""How far a call has come and how long it will take, from answers and a clock that is passed in."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from birdie_zmq.client.lifetimes import Survival
from birdie_zmq.client.state import Job
from birdie_zmq.wire import messages as m


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


_HEAD = 0.2
"""What the head costs at a position, where reading it costs 1: the share of its weights, in models of 0.1 to 8 billion."""

_EARLIER = 0.75
"""Of what is done, so much is too long ago to tell the pace."""

_LEAST_MARKS = 5

_MOST_LIFETIMES = 1_000
"""The last ones; more of them say nothing new, and later prompts may be others."""


class _Work(Protocol):
    """An estimate for one kind of work. Times leave out compiling."""

    def answered(self, items: Sequence[int], computed: m.Computed, continued: int, active_s: float) -> None: ...

    def seconds_left(self) -> float | None: ...


class Estimate:
    """Follows one call.

    Args:
        jobs: All its work, of one kind, in the order in which it is sent.
        now: Seconds on a monotonic clock, as everywhere here.
    """

    def __init__(self, jobs: Sequence[Job], now: float) -> None:
        self._latest = now
        self._active_s = 0.0
        self._computed = m.Computed()
        self._work: _Work | None = None
        if jobs and isinstance(jobs[0].work, m.GenerateWork):
            self._work = _Continuing(jobs)
        elif jobs and isinstance(jobs[0].work, m.LogLikelihoodWork | m.RollingWork):
            self._work = _Scoring(jobs)

    def answered(self, items: Sequence[int], computed: m.Computed, continued: int, now: float) -> None:
        """Some items have their answers.

        Args:
            items: The caller's numbers.
            computed: What was computed since the last answers of the same worker.
            continued: As in `birdie_zmq.wire.messages.Answered`.
            now: When.
        """
        busy = computed.seconds + computed.compile_seconds
        self._active_s += (now - self._latest) * (computed.seconds / busy if busy else 1.0)
        self._latest = now
        self._computed += computed
        if self._work is not None:
            self._work.answered(items, self._computed, continued, self._active_s)

    def at(self, now: float) -> Progress:
        """How it stands."""
        computed = self._computed
        left = None if self._work is None else self._work.seconds_left()
        return Progress(
            tokens_per_second=computed.tokens / self._active_s if computed.tokens and self._active_s else None,
            padding_share=computed.padding / computed.tokens if computed.tokens else None,
            distinct_share=computed.distinct / computed.requested if computed.distinct and computed.requested else None,
            seconds_left=None if left is None else max(0.0, left - (now - self._latest)),
        )


@dataclass(frozen=True)
class _Cost:
    """What a text costs, in characters that are read: all of it, and what is new behind the text that is sent before."""

    whole: int = 0
    new: int = 0

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(self.whole + other.whole, self.new + other.new)

    def __sub__(self, other: _Cost) -> _Cost:
        return _Cost(self.whole - other.whole, self.new - other.new)

    def shared(self, share: float) -> float:
        """What has to be computed where this share of what texts have in common is computed once."""
        return self.whole - share * (self.whole - self.new)


class _Scoring:
    """Texts to be scored are computed up to where they differ.

    So an answer costs what its text adds to the one before it; or, where the model shares nothing, its whole text. What
    was computed so far tells which. What is scored costs more than what is only read, since the head runs there. The pace is
    that of what was done lately: the longest texts come first, and what came before the first answers was starting up.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._costs: dict[int, _Cost] = {}
        self._job_of: dict[int, int] = {}
        self._unbegun: dict[int, int] = {}
        self._begun_characters = 0
        self._done = _Cost()
        self._left = _Cost()
        self._marks = deque([(0.0, _Cost())])
        self._used_tokens = 0
        self._share = 1.0
        before = ""
        for number, job in enumerate(jobs):
            for item, (text, scored) in zip(job.items, _texts(job.work), strict=True):
                head = int(_HEAD * scored)
                cost = _Cost(len(text) + head, len(text) - common_characters(before, text) + head)
                before = text
                self._costs[item], self._job_of[item] = cost, number
                self._left += cost
            self._unbegun[number] = sum(self._costs[item].whole for item in job.items)

    def answered(self, items: Sequence[int], computed: m.Computed, continued: int, active_s: float) -> None:
        del continued
        for item in items:
            cost = self._costs.pop(item)
            self._done += cost
            self._left -= cost
            self._begun_characters += self._unbegun.pop(self._job_of[item], 0)
        self._marks.append((active_s, self._done))
        if len(self._marks) > 2 and self._marks[0][1] == _Cost():
            self._marks.popleft()  # Up to the first answers, it was starting up as well.
        while len(self._marks) > _LEAST_MARKS and self._marks[1][1].whole <= _EARLIER * self._done.whole:
            self._marks.popleft()
        # The step behind these answers was given to the device before they came.
        common = self._done.whole - self._done.new
        if common and computed.requested and self._used_tokens:
            used = self._used_tokens * self._begun_characters / computed.requested
            self._share = min(1.0, max(0.0, (self._done.whole - used) / common))
        self._used_tokens = computed.tokens - computed.padding

    def seconds_left(self) -> float | None:
        (since_s, before), (until_s, done) = self._marks[0], self._marks[-1]
        seconds, work = until_s - since_s, (done - before).shared(self._share)
        if seconds <= 0 or work <= 0:
            return None
        return self._left.shared(self._share) * seconds / work


class _Rows:
    """Of one job: which items go on, as far as is known, and since when. They begin in their order."""

    def __init__(self, items: Sequence[int], now_s: float) -> None:
        self._unbegun = deque(items)
        self.began: dict[int, float] = {}
        self.heard_s = now_s

    def begin(self, count: int) -> None:
        """So many more have begun since something was heard last."""
        while count > 0 and self._unbegun:
            self.began[self._unbegun.popleft()] = self.heard_s
            count -= 1

    def end(self, item: int, now_s: float) -> float:
        """An item has ended; how long it lasted."""
        if item in self.began:
            return now_s - self.began.pop(item)
        # It began out of order: in the place of one that was taken to have begun.
        with contextlib.suppress(ValueError):
            self._unbegun.remove(item)
        other = next(iter(self.began), None)
        if other is None:
            return now_s - self.heard_s
        self._unbegun.appendleft(other)
        return now_s - self.began.pop(other)


class _Continuing:
    """Texts that are continued end when they end; some go on side by side, and one that ends makes room for another."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = [job.items for job in jobs]
        self._job_of = {item: number for number, job in enumerate(jobs) for item in job.items}
        self._rows: dict[int, _Rows] = {}
        self._heard_s = 0.0
        self._side_by_side = 1
        self._ended = 0
        self._lasted = deque[float](maxlen=_MOST_LIFETIMES)

    def answered(self, items: Sequence[int], computed: m.Computed, continued: int, active_s: float) -> None:
        del computed
        continued = min(continued, len(self._job_of) - self._ended - len(items))
        for item in items:
            # A job that is new has begun when the one before it was done with, as far as is known.
            job = self._job_of[item]
            if job not in self._rows:
                self._rows[job] = _Rows(self._jobs[job], self._heard_s)
            rows = self._rows[job]
            rows.begin(continued + 1 - len(rows.began))
            self._side_by_side = max(self._side_by_side, sum(len(each.began) for each in self._rows.values()))
            self._lasted.append(rows.end(item, active_s))
            rows.heard_s = self._heard_s = active_s
            self._ended += 1

    def seconds_left(self) -> float | None:
        if not any(self._lasted):
            return None
        ages = [self._heard_s - began for rows in self._rows.values() for began in rows.began.values()]
        survival = Survival(list(self._lasted), ages)
        mean, waiting = survival.mean, max(0, len(self._job_of) - self._ended - len(ages))
        left_s = waiting * mean / self._side_by_side + survival.until_all_end(ages)
        # Where a batch ends, fewer and fewer go on, until the last one lets the next batch begin.
        unbegun = len(self._jobs) - len(self._rows)
        if unbegun:
            waste_s = survival.until_all_end([0.0] * self._side_by_side) - mean
            left_s += max(0.0, waste_s) * unbegun / max(1, sum(bool(rows.began) for rows in self._rows.values()))
        return left_s


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


def _texts(work: m.Work) -> Iterable[tuple[str, int]]:
    """Texts to be scored, and how many characters of each are."""
    match work:
        case m.LogLikelihoodWork(pairs=pairs):
            return [(context + continuation, len(continuation)) for context, continuation in pairs]
        case m.RollingWork(texts=texts):
            return [(text, len(text)) for text in texts]
    return []
