"""What the client does, with no socket and no clock in it.

A session is greeted, then work is sent in batches, a few in flight at once. What is unanswered is kept, and sent again
when the broker turns out to be a new one, which says that it does not know this client::

    GREETING ──SessionOpened──▶ OPEN ──a Refusal: unknown peer──▶ GREETING

The first answer to an item counts; any later one is ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from birdie_zmq._version import __version__
from birdie_zmq.config import ClientSettings
from birdie_zmq.errors import BirdieError, BrokerUnavailable, ProtocolError, UnknownPeer, WorkerUnavailable
from birdie_zmq.wire import messages as m


@dataclass(frozen=True)
class Job:
    """Work to be sent in one message; ``items`` are the caller's numbers of its items."""

    work: m.Work
    items: list[int]


@dataclass(frozen=True)
class Send:
    """Send a message to the broker."""

    message: m.ClientMessage


@dataclass(frozen=True)
class Deliver:
    """Give the caller answers; ``positions`` picks those answers that are the first for their ``items``."""

    items: list[int]
    positions: list[int]
    answers: m.Answers


@dataclass(frozen=True)
class Tell:
    """Tell the person at the prompt."""

    level: m.Level
    text: str


@dataclass(frozen=True)
class Fail:
    """The call cannot be completed; ``item`` is the caller's number of the item at fault, where one is."""

    error: BirdieError
    item: int | None = None


Action = Send | Deliver | Tell | Fail


class _Phase(Enum):
    GREETING = "greeting"
    OPEN = "open"


@dataclass(eq=False)
class _InFlight:
    job: Job
    answered: set[int] = field(default_factory=set)

    def rest(self) -> Job:
        """What is still unanswered, as a job of its own."""
        if not self.answered:
            return self.job
        left = [i for i in range(len(self.job.items)) if i not in self.answered]
        return Job(self.job.work.select(left), [self.job.items[i] for i in left])


class Session:
    """The client's whole behaviour.

    Args:
        model: The model that all work is for.
        limits: What the user said of the rows of a step.
        settings: Timeouts and bounds.
        endpoint: Where the broker is, for messages.
    """

    def __init__(self, model: m.ModelSpec, limits: m.StepLimits, settings: ClientSettings, endpoint: str) -> None:
        self._model = model
        self._limits = limits
        self._settings = settings
        self._endpoint = endpoint
        self._phase = _Phase.GREETING
        self._greeted_at: float | None = None
        self._heard_at = 0.0
        self._pinged_at = 0.0
        self._workers_seen_at = 0.0
        self._told_of_no_worker = False
        self._waiting: deque[Job] = deque()
        self._in_flight: dict[int, _InFlight] = {}
        self._next_batch = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is waiting for an answer."""
        return not self._waiting and not self._in_flight

    @property
    def is_open(self) -> bool:
        """Whether the broker has answered the greeting."""
        return self._phase is _Phase.OPEN

    def begin(self, jobs: Iterable[Job], now: float) -> list[Action]:
        """Take on work; what an earlier call left behind is forgotten."""
        self._waiting = deque(jobs)
        self._in_flight.clear()
        self._heard_at = self._workers_seen_at = now
        self._told_of_no_worker = False
        if self._greeted_at is None:
            return self._greet(now)
        if self._phase is _Phase.GREETING:
            self._greeted_at = now  # An earlier call was interrupted while it waited; this one waits as long.
        return self._fill()

    def received(self, message: m.BrokerToClient | m.Refusal, now: float) -> list[Action]:
        """Take in what the broker says."""
        self._heard_at = now
        match message:
            case m.SessionOpened():
                if self._phase is _Phase.OPEN:
                    return []
                self._phase = _Phase.OPEN
                self._pinged_at = now
                return self._fill()
            case m.Answered():
                self._workers_seen_at = now
                return self._answered(message)
            case m.BatchFailed(batch=number, error=report, index=index):
                in_flight = self._in_flight.pop(number, None)
                if in_flight is None:
                    return []
                known = index is not None and index < len(in_flight.job.items)
                return [Fail(report.to_error(), in_flight.job.items[index] if known and index is not None else None)]
            case m.Notice(batch=number, level=level, text=text):
                self._workers_seen_at = now
                return [Tell(level, text)] if number in self._in_flight else []
            case m.Pong(workers=workers):
                return self._count_workers(workers, now)
            case m.Refusal(error=report):
                error = report.to_error()
                if not isinstance(error, UnknownPeer):
                    return [Fail(error)]
                return self._greet(now) if self._phase is _Phase.OPEN else []

    def tick(self, now: float) -> list[Action]:
        """Take in that time has passed."""
        if self._phase is _Phase.GREETING:
            if self._greeted_at is not None and now - self._greeted_at > self._settings.connect_s:
                self._greeted_at = None
                return [Fail(self._no_broker(self._settings.connect_s))]
            return []
        if self.is_idle:
            return []
        if now - self._heard_at > self._settings.broker_timeout_s:
            return [Fail(self._no_broker(self._settings.broker_timeout_s))]
        if now - self._pinged_at >= self._settings.ping_s:
            self._pinged_at = now
            return [Send(m.Ping())]
        return []

    def _greet(self, now: float) -> list[Action]:
        self._phase = _Phase.GREETING
        self._greeted_at = now
        unanswered = [in_flight.rest() for in_flight in self._in_flight.values()]
        self._waiting.extendleft(reversed(unanswered))
        self._in_flight.clear()
        return [Send(m.OpenSession(package_version=__version__))]

    def _fill(self) -> list[Action]:
        """Send as many batches as may be in flight."""
        actions: list[Action] = []
        if self._phase is not _Phase.OPEN:
            return actions
        while self._waiting and len(self._in_flight) < self._settings.window:
            job = self._waiting.popleft()
            number, self._next_batch = self._next_batch, self._next_batch + 1
            self._in_flight[number] = _InFlight(job)
            actions.append(Send(m.Submit(batch=number, model=self._model, work=job.work, limits=self._limits)))
        return actions

    def _answered(self, message: m.Answered) -> list[Action]:
        in_flight = self._in_flight.get(message.batch)
        if in_flight is None:
            return []
        indices = message.indices.tolist()
        if len(indices) != len(message.answers) or any(not 0 <= i < len(in_flight.job.items) for i in indices):
            return [Fail(ProtocolError("an answer does not fit the batch that it names"))]
        first: dict[int, int] = {}
        for position, i in enumerate(indices):
            if i not in in_flight.answered:
                first.setdefault(i, position)
        in_flight.answered.update(first)
        items = [in_flight.job.items[i] for i in first]
        actions: list[Action] = [Deliver(items, list(first.values()), message.answers)] if items else []
        if len(in_flight.answered) == len(in_flight.job.items):
            del self._in_flight[message.batch]
            actions += self._fill()
        return actions

    def _count_workers(self, workers: int, now: float) -> list[Action]:
        if workers:
            self._workers_seen_at = now
            return []
        if now - self._workers_seen_at > self._settings.worker_wait_s:
            text = (
                f"the broker at {self._endpoint} has had no worker for {self._settings.worker_wait_s:.0f} s; start one "
                f"with: python -m workers.jax_worker --connect {self._endpoint}"
            )
            return [Fail(WorkerUnavailable(text))]
        if self._told_of_no_worker:
            return []
        self._told_of_no_worker = True
        text = f"the broker has no worker yet; start one with: python -m workers.jax_worker --connect {self._endpoint}"
        return [Tell("warning", text)]

    def _no_broker(self, seconds: float) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"no broker answered at {self._endpoint} within {seconds:.0f} s; start one with: python broker.py --bind "
            f"{self._endpoint} (or leave port= and endpoint= out of model_args, and the run starts its own)"
        )
