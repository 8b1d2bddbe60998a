"""How long things last, from those that have ended and those that go on still.

The first of a crowd to end are the short ones: their mean would make the rest look shorter than it is. So the survival
function is estimated from both, by Kaplan and Meier (Nonparametric Estimation from Incomplete Observations, 1958). Beyond
the longest it has an exponential tail, as that of Brown, Hollander and Korwar (Nonparametric Tests of Independence for
Censored Data, 1974), but with the hazard of the last third of what has ended: lifetimes whose hazard grows, as that of texts
does, would have too long a tail by the hazard of all.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby

_STEPS = 128
"""Of an integral over time."""

_TAIL = 6
"""Of an exponential tail, what lies behind so many of its means is left out: 0.2%."""


class SurvivalCurve:
    """The survival function of durations, of which some are not over.

    Args:
        ended: Durations that are over by themselves.
        going: How long others have lasted so far, or had lasted when they were cut off.
    """

    def __init__(self, ended: Iterable[float], going: Iterable[float] = ()) -> None:
        over = sorted(ended)
        events = sorted([(duration, True) for duration in over] + [(age, False) for age in going])
        self._longest = events[-1][0] if events else 0.0
        self._times = [0.0]
        self._survives = [1.0]
        at_risk = len(events)
        for time, group in groupby(events, key=lambda event: event[0]):
            outcomes = [is_over for _, is_over in group]
            self._times.append(time)
            self._survives.append(self._survives[-1] * (1 - sum(outcomes) / at_risk))
            at_risk -= len(outcomes)
        self._hazard = _late_hazard(over, [time for time, _ in events])

    def at(self, time: float) -> float:
        """The share that lasts longer."""
        if time < self._longest:
            return self._survives[bisect_right(self._times, time) - 1]
        return self._survives[-1] * math.exp((self._longest - time) * self._hazard)

    def mean(self, most: float, age: float = 0.0) -> float:
        """How much longer one lasts that has lasted so long, if it is cut off at `most`; 0 where none has lasted so long."""
        here = self.at(age)
        if age >= most or here <= 0:
            return 0.0
        area = 0.0
        begin = max(age, self._longest)
        if begin < most:
            area += self.at(begin) * self._tail(most - begin)
        upper = min(most, self._longest)
        for time, survives in zip(reversed(self._times), reversed(self._survives), strict=True):
            if time < upper:
                area += survives * (upper - max(time, age))
                upper = time
            if time <= age:
                break
        return area / here

    def until_all_end(self, going: Sequence[tuple[float, float]]) -> float:
        """How long it is expected to take until the last has ended of some that have lasted so long, and are cut off then."""
        alive = [(age, most, self.at(age)) for age, most in going if age < most and self.at(age) > 0]
        end = self._longest + _TAIL / self._hazard if self._hazard else math.inf
        step = max((min(most, max(end, age)) - age for age, most, _ in alive), default=0.0) / _STEPS
        total = 0.0
        for number in range(_STEPS):
            time = (number + 0.5) * step
            total += 1 - math.prod(1 - self.at(age + time) / now for age, most, now in alive if age + time < most)
        return total * step

    def _tail(self, length: float) -> float:
        """The integral of the exponential tail."""
        return -math.expm1(-length * self._hazard) / self._hazard if self._hazard else length


def _late_hazard(ended: Sequence[float], lasted: Sequence[float]) -> float:
    """How many end in a unit of the time in which the last third of them did, for each that lasted; 0 where none has."""
    since = ended[len(ended) * 2 // 3 - 1] if len(ended) >= 3 else 0.0
    ends = sum(time > since for time in ended)
    if not ends:
        since, ends = 0.0, len(ended)
    exposed = sum(max(0.0, time - since) for time in lasted)
    return ends / exposed if exposed else 0.0
