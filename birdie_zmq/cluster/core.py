"""The placement of workers on a Ray cluster, as a state machine without Ray or a clock.

Ray could restart an actor by itself, but it would not notice that the worker's own process has died, and it would not
report the location of the next actor. So this module decides when to place a worker again, both after the loss of an actor
and after the exit of a process. It knows nothing of requests: the broker retries the leases of a dead worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from birdie_zmq.processes.restart_policy import RestartPolicy
from birdie_zmq.processes.signals import signal_name

USAGE_STATUS = 2
"""The exit status of a worker with a usage error, which another attempt would not fix."""

_MAX_PAUSE_S = 60.0
_STABLE_S = 60.0
"""A worker that has run for this many seconds is placed again at once after it is lost."""
_REPORT_WAITING_AFTER_S = 10.0
"""Seconds that a worker waits for its placement before the wait is logged."""
_REPORT_WAITING_INTERVAL_S = 60.0


@dataclass(frozen=True)
class Placed:
    """A worker's process runs at a location, such as ``node-3, GPU 0, process 411``."""

    worker: int
    location: str


@dataclass(frozen=True)
class WorkerExited:
    """A worker's process exited by itself.

    Attributes:
        worker: The number of the worker.
        status: The exit status, negative for a signal.
        last_line: The last line of its output.
    """

    worker: int
    status: int
    last_line: str


@dataclass(frozen=True)
class ActorLost:
    """A worker's actor or its node is gone, or the actor could not be created."""

    worker: int
    reason: str


@dataclass(frozen=True)
class Tick:
    """Time passed; the first tick requests a placement for every worker."""


@dataclass(frozen=True)
class PlaceWorker:
    """Request an actor for a worker from Ray."""

    worker: int


@dataclass(frozen=True)
class Log:
    """Write a line to the log."""

    level: Literal["info", "warning"]
    text: str


@dataclass(frozen=True)
class LogWaiting:
    """Log that workers have waited for their placement for some time, with the resources that Ray reports."""

    workers: tuple[int, ...]


Event = Placed | WorkerExited | ActorLost | Tick
Action = PlaceWorker | Log | LogWaiting


@dataclass
class _Worker:
    """The state of a worker.

    ``requested_at`` is set while Ray looks for a placement.
    """

    requested_at: float | None = None
    placed_at: float | None = None
    location: str | None = None
    has_failed: bool = False
    restarts: RestartPolicy = field(
        default_factory=lambda: RestartPolicy(first_pause_s=1.0, max_pause_s=_MAX_PAUSE_S, immediate_restarts=1)
    )

    def is_due(self, now: float) -> bool:
        """Return whether a placement is to be requested."""
        is_absent = self.requested_at is None and self.placed_at is None and not self.has_failed
        return is_absent and self.restarts.may_start(now)


@dataclass
class ClusterCore:
    """The workers by their numbers, from 1.

    Attributes:
        size: The number of workers.
        last_line: The last output line of the latest worker that failed for good, None while there is none.
    """

    size: int
    last_line: str | None = None
    _workers: dict[int, _Worker] = field(init=False)
    _waiting_reported_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self._workers = {number: _Worker() for number in range(1, self.size + 1)}

    @property
    def has_failed(self) -> bool:
        """Whether every worker has failed with a usage error, which another attempt would not fix."""
        return all(worker.has_failed for worker in self._workers.values())

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle one event and return the actions to take, in order.

        Args:
            event: The event.
            now: The time in monotonic seconds.
        """
        match event:
            case Placed(number, location):
                return self._on_placed(number, location, now)
            case WorkerExited(number, status, last_line) if status == USAGE_STATUS:
                return self._fail(number, last_line)
            case WorkerExited(number, status, _):
                return self._place_again(number, f"its process exited {_describe_exit(status)}", now)
            case ActorLost(number, reason):
                return self._place_again(number, reason, now)
            case Tick():
                return self._on_tick(now)

    def _request(self, number: int, now: float) -> PlaceWorker:
        worker = self._workers[number]
        worker.requested_at, worker.placed_at = now, None
        return PlaceWorker(number)

    def _on_placed(self, number: int, location: str, now: float) -> list[Action]:
        worker = self._workers[number]
        again = "" if worker.location is None else " again"
        worker.requested_at, worker.placed_at, worker.location = None, now, location
        return [Log("info", f"worker {number} is placed{again}: {location}")]

    def _fail(self, number: int, last_line: str) -> list[Action]:
        worker = self._workers[number]
        worker.has_failed, worker.requested_at = True, None
        self.last_line = last_line
        return [Log("warning", f"worker {number}{_at(worker)} failed and is not placed again: {last_line}")]

    def _place_again(self, number: int, reason: str, now: float) -> list[Action]:
        worker = self._workers[number]
        where = _at(worker)
        uptime_s = 0.0 if worker.placed_at is None else now - worker.placed_at
        if uptime_s >= _STABLE_S:
            worker.restarts.succeeded()
        worker.requested_at, worker.placed_at = None, None
        pause_s = worker.restarts.failed(now)
        when = f"in {pause_s:.0f} s" if pause_s else "from Ray"
        log = Log("warning", f"worker {number}{where} is gone: {reason}; requesting a new placement {when}")
        return [log] if pause_s else [log, self._request(number, now)]

    def _on_tick(self, now: float) -> list[Action]:
        actions: list[Action] = [self._request(n, now) for n, worker in self._workers.items() if worker.is_due(now)]
        waiting = tuple(self._waiting(now))
        if waiting and now - self._waiting_reported_at >= _REPORT_WAITING_INTERVAL_S:
            self._waiting_reported_at = now
            actions.append(LogWaiting(waiting))
        return actions

    def _waiting(self, now: float) -> Iterable[int]:
        for number, worker in self._workers.items():
            if worker.requested_at is not None and now - worker.requested_at >= _REPORT_WAITING_AFTER_S:
                yield number


def _at(worker: _Worker) -> str:
    return "" if worker.placed_at is None else f" ({worker.location})"


def _describe_exit(status: int) -> str:
    return f"with status {status}" if status >= 0 else f"by {signal_name(-status)}"
