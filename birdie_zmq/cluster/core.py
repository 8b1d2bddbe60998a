"""When a worker is placed again. Pure: events come in with the time, and what is to be done goes out.

Ray could restart an actor by itself, but it would not see that the worker's own process has died, nor say where the next
one is. So one place decides for both. Of the work it knows nothing: what was lost with a worker, the broker hands out again.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

USAGE_STATUS = 2
"""The exit status of a worker that a person must help: another try would end alike."""

_LONGEST_PAUSE_S = 60.0
_STEADY_S = 60.0
"""A worker that has stood so long is placed again at once if it is lost."""
_PENDING_S = 10.0
"""How long a worker may wait for its place until that is said."""
_SAY_AGAIN_S = 60.0


@dataclass(frozen=True)
class Placed:
    """A worker's process runs at a place, such as ``node-3, GPU 0, process 411``."""

    worker: int
    place: str


@dataclass(frozen=True)
class Ended:
    """A worker's process has ended by itself, with an exit status (below 0: by that signal) and what it wrote last."""

    worker: int
    status: int
    last_words: str


@dataclass(frozen=True)
class Lost:
    """A worker's actor is gone, or its node, or it could not be made."""

    worker: int
    why: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Place:
    """Ask Ray for a place for a worker."""

    worker: int


@dataclass(frozen=True)
class Say:
    """A line for the person who watches."""

    level: Literal["info", "warning"]
    text: str


@dataclass(frozen=True)
class SayWaiting:
    """Say that workers have waited for a place for some time, with what Ray has."""

    workers: tuple[int, ...]


Event = Placed | Ended | Lost | Tick
Action = Place | Say | SayWaiting


@dataclass
class _Worker:
    """Where one is. ``asked_at`` is set while Ray looks for a place, ``due_at`` while it is not asked yet."""

    asked_at: float | None = None
    due_at: float | None = None
    placed_at: float | None = None
    place: str | None = None
    quick_losses: int = 0
    is_given_up: bool = False


@dataclass
class ClusterCore:
    """Workers by their numbers, 1 and up.

    Attributes:
        last_words: What the last worker that was given up wrote last, None while there is none.
    """

    size: int
    last_words: str | None = None
    _workers: dict[int, _Worker] = field(init=False)
    _said_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self._workers = {number: _Worker() for number in range(1, self.size + 1)}

    @property
    def is_given_up(self) -> bool:
        """Whether no worker is left that another try could help."""
        return all(worker.is_given_up for worker in self._workers.values())

    def begin(self, now: float) -> list[Action]:
        """What is to be done first."""
        return [self._ask(number, now) for number in self._workers]

    def handle(self, event: Event, now: float) -> list[Action]:
        """What an event asks for; `now` is in seconds of a clock that never goes back."""
        match event:
            case Placed(number, place):
                return self._placed(number, place, now)
            case Ended(number, status, last_words) if status == USAGE_STATUS:
                return self._give_up(number, last_words)
            case Ended(number, status, _):
                return self._again(number, f"its process ended {_how(status)}", now)
            case Lost(number, why):
                return self._again(number, why, now)
            case Tick():
                return self._tick(now)

    def _ask(self, number: int, now: float) -> Place:
        worker = self._workers[number]
        worker.asked_at, worker.due_at, worker.placed_at = now, None, None
        return Place(number)

    def _placed(self, number: int, place: str, now: float) -> list[Action]:
        worker = self._workers[number]
        again = "" if worker.place is None else " again"
        worker.asked_at, worker.placed_at, worker.place = None, now, place
        return [Say("info", f"worker {number} is placed{again}: {place}")]

    def _give_up(self, number: int, last_words: str) -> list[Action]:
        worker = self._workers[number]
        worker.is_given_up, worker.asked_at, worker.due_at = True, None, None
        self.last_words = last_words
        return [Say("warning", f"worker {number}{_at(worker)} cannot work and is not placed again: {last_words}")]

    def _again(self, number: int, why: str, now: float) -> list[Action]:
        worker = self._workers[number]
        where = _at(worker)
        stood_s = 0.0 if worker.placed_at is None else now - worker.placed_at
        worker.quick_losses = 1 if stood_s >= _STEADY_S else worker.quick_losses + 1
        worker.asked_at, worker.placed_at = None, None
        # At once the first time, then after 1, 2, 4, … seconds.
        pause_s = 0.0 if worker.quick_losses == 1 else min(2.0 ** min(worker.quick_losses - 2, 16), _LONGEST_PAUSE_S)
        if pause_s == 0.0:
            said = Say("warning", f"worker {number}{where} is lost: {why}; Ray is asked for another place")
            return [said, self._ask(number, now)]
        worker.due_at = now + pause_s
        return [Say("warning", f"worker {number}{where} is lost: {why}; another place is asked for in {pause_s:.0f} s")]

    def _tick(self, now: float) -> list[Action]:
        due = [n for n, worker in self._workers.items() if worker.due_at is not None and worker.due_at <= now]
        actions: list[Action] = [self._ask(number, now) for number in due]
        pending = tuple(self._waiting(now))
        if pending and now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            actions.append(SayWaiting(pending))
        return actions

    def _waiting(self, now: float) -> Iterable[int]:
        for number, worker in self._workers.items():
            if worker.asked_at is not None and now - worker.asked_at >= _PENDING_S:
                yield number


def _at(worker: _Worker) -> str:
    return "" if worker.placed_at is None else f" ({worker.place})"


def _how(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"
