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

_STEPS = 64
"""Of an integral over time."""

_TAIL = 6
"""Of an exponential tail, what lies behind so many of its means is left out: 0.2%."""


class Survival:
    """The survival function of durations, of which some are not over.

    Args:
        ended: Durations that are over.
        ages: How long the others have lasted so far.

    Raises:
        ValueError: Nothing has ended, or not after a time above 0.
    """

    def __init__(self, ended: Sequence[float], ages: Iterable[float] = ()) -> None:
        if not any(duration > 0 for duration in ended):
            raise ValueError("a duration above 0 is needed")
        events = sorted([(duration, True) for duration in ended] + [(age, False) for age in ages])
        self._longest = events[-1][0]
        self._times = [0.0]
        self._survives = [1.0]
        at_risk = len(events)
        for time, group in groupby(events, key=lambda event: event[0]):
            outcomes = [is_over for _, is_over in group]
            self._times.append(time)
            self._survives.append(self._survives[-1] * (1 - sum(outcomes) / at_risk))
            at_risk -= len(outcomes)
        self._scale = _mean_beyond(sorted(ended), [time for time, _ in events]) if self._survives[-1] > 0 else 0.0

    def at(self, time: float) -> float:
        """The share that lasts longer."""
        if time < self._longest:
            return self._survives[bisect_right(self._times, time) - 1]
        return self._survives[-1] * math.exp((self._longest - time) / self._scale) if self._scale else 0.0

    def until_all_end(self, ages: Sequence[float]) -> float:
        """How long it is expected to take until the last of some has ended, that have lasted so long."""
        alive = [(age, self.at(age)) for age in ages if self.at(age) > 0]
        step = (self._longest + _TAIL * self._scale) / _STEPS
        total = 0.0
        for number in range(_STEPS):
            time = (number + 0.5) * step
            total += 1 - math.prod(1 - self.at(age + time) / now for age, now in alive)
        return total * step

    @property
    def mean(self) -> float:
        """How long one lasts."""
        return self.residual(0.0)

    def residual(self, age: float) -> float:
        """How much longer one lasts that has lasted so long; 0 where none has lasted so long and ended."""
        last = self._survives[-1]
        if age >= self._longest:
            return self._scale
        index = bisect_right(self._times, age) - 1
        here = self._survives[index]
        area = last * self._scale
        upper = self._longest
        for time, survives in zip(reversed(self._times[index:]), reversed(self._survives[index:]), strict=True):
            area += survives * (upper - max(time, age))
            upper = time
        return area / here if here > 0 else 0.0


def _mean_beyond(ended: Sequence[float], lasted: Sequence[float]) -> float:
    """One over the hazard in the time of the last third of what has ended: how long things lasted then, for each end."""
    since = ended[len(ended) * 2 // 3 - 1] if len(ended) >= 3 else 0.0
    ends = sum(time > since for time in ended)
    if not ends:
        since, ends = 0.0, len(ended)
    return sum(max(0.0, time - since) for time in lasted) / ends
