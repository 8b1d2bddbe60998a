"""A survival curve: expected remaining lengths from finished (observed) and unfinished (censored) durations.

The first sequences of a batch to finish are the short ones, so their mean would underestimate the rest. The survival function
is therefore estimated from both finished and unfinished durations, by the method of Kaplan and Meier (Nonparametric Estimation
from Incomplete Observations, 1958). Beyond the longest duration the curve has an exponential tail, as in Brown, Hollander and
Korwar (Nonparametric Tests of Independence for Censored Data, 1974), but with the hazard of the last third of the finished
durations: the hazard of text lengths grows, so the hazard of all durations would give too long a tail.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby

_STEPS = 128
"""Number of steps of the numerical integration over time."""

_TAIL = 6
"""The exponential tail is cut off at this multiple of its mean; 0.2% of it lies beyond."""


class SurvivalCurve:
    """The survival function of durations, some of which are censored.

    Args:
        durations: Complete durations.
        censored: Incomplete durations: the time so far, or until the cut-off.
    """

    def __init__(self, durations: Iterable[float], censored: Iterable[float] = ()) -> None:
        complete = sorted(durations)
        events = sorted([(duration, True) for duration in complete] + [(age, False) for age in censored])
        self._longest = events[-1][0] if events else 0.0
        self._times = [0.0]
        self._survival = [1.0]
        at_risk = len(events)
        for time, group in groupby(events, key=lambda event: event[0]):
            outcomes = [is_complete for _, is_complete in group]
            self._times.append(time)
            self._survival.append(self._survival[-1] * (1 - sum(outcomes) / at_risk))
            at_risk -= len(outcomes)
        self._hazard = _tail_hazard(complete, [time for time, _ in events])

    def at(self, time: float) -> float:
        """Return the probability that a duration is longer than `time`."""
        if time < self._longest:
            return self._survival[bisect_right(self._times, time) - 1]
        return self._survival[-1] * math.exp((self._longest - time) * self._hazard)

    def mean_remaining(self, limit: float, age: float = 0.0) -> float:
        """Return the expected remaining duration after `age`, cut off at `limit`; 0 if no duration reaches that age."""
        alive = self.at(age)
        if age >= limit or alive <= 0:
            return 0.0
        area = 0.0
        begin = max(age, self._longest)
        if begin < limit:
            area += self.at(begin) * self._tail_integral(limit - begin)
        upper = min(limit, self._longest)
        for time, survival in zip(reversed(self._times), reversed(self._survival), strict=True):
            if time < upper:
                area += survival * (upper - max(time, age))
                upper = time
            if time <= age:
                break
        return area / alive

    def mean_until_last(self, active: Sequence[tuple[float, float]]) -> float:
        """Return the expected time until the last of several durations ends.

        Args:
            active: The age and the limit of each duration.
        """
        alive = [(age, limit, self.at(age)) for age, limit in active if age < limit and self.at(age) > 0]
        end = self._longest + _TAIL / self._hazard if self._hazard else math.inf
        step = max((min(limit, max(end, age)) - age for age, limit, _ in alive), default=0.0) / _STEPS
        total = 0.0
        for number in range(_STEPS):
            time = (number + 0.5) * step
            total += 1 - math.prod(1 - self.at(age + time) / now for age, limit, now in alive if age + time < limit)
        return total * step

    def _tail_integral(self, length: float) -> float:
        """Return the integral of the exponential tail, relative to its start."""
        return -math.expm1(-length * self._hazard) / self._hazard if self._hazard else length


def _tail_hazard(complete: Sequence[float], all_durations: Sequence[float]) -> float:
    """Return the hazard in the time span in which the last third of the durations ended; 0 if none has ended.

    The hazard is the number of ends per unit of time and per duration that is still at risk.
    """
    since = complete[len(complete) * 2 // 3 - 1] if len(complete) >= 3 else 0.0
    ends = sum(time > since for time in complete)
    if not ends:
        since, ends = 0.0, len(complete)
    exposure = sum(max(0.0, time - since) for time in all_durations)
    return ends / exposure if exposure else 0.0
