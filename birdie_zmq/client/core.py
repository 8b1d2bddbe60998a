"""What the client does, with no socket and no clock in it.

A session is greeted, then work is sent in batches, a few in flight at once. What is unanswered is kept, and sent again
when the broker turns out to be a new one, which says that it does not know this client::

    GREETING ──SessionOpened──▶ OPEN ──a Refusal: unknown peer──▶ GREETING

The first answer to an item counts; any later one is ignored. An item that fails alone does not end the call: it fails
once everything else is answered, so that what lm_eval or a journal keeps of a call is all but the item at fault.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from birdie_zmq._version import __version__
from birdie_zmq.client.batch_splitting import LEAST_ITEMS, cut
from birdie_zmq.errors import BirdieError, BrokerUnavailable, ProtocolError, UnknownPeer, WorkerUnavailable
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answers, Level, ModelSpec, ProgressDelta, StepLimits, Work


@dataclass(frozen=True)
class Job:
    """Work to be sent in one message, of texts with so many ``characters``.

    ``items`` are the caller's numbers of its items, ``beginning`` as in `m.Submit`.
    """

    work: Work
    items: list[int]
    prefix: str | None = None
    characters: int = 0

    def cut(self, count: int) -> list[Job]:
        """The same in at most so many jobs."""
        runs = cut(self.work, count)
        if len(runs) < 2:
            return [self]
        return [
            replace(
                self,
                work=self.work.select(run),
                items=[self.items[i] for i in run],
                characters=self.characters * len(run) // len(self.items),
            )
            for run in runs
        ]


@dataclass(frozen=True)
class Send:
    """Send a message to the broker."""

    message: m.ClientMessage


@dataclass(frozen=True)
class Deliver:
    """Give the caller answers; ``positions`` picks those answers that are the first for their ``items``."""

    items: list[int]
    positions: list[int]
    answers: Answers


@dataclass(frozen=True)
class Follow:
    """A job, which has this item, has come on."""

    item: int
    advance: ProgressDelta


@dataclass(frozen=True)
class Tell:
    """Tell the person at the prompt; ``once`` in a run."""

    level: Level
    text: str
    once: bool = False


@dataclass(frozen=True)
class Fail:
    """The call cannot be completed."""

    error: BirdieError


@dataclass(frozen=True)
class FailItem:
    """One item, by the caller's number, will have no answer."""

    item: int
    error: BirdieError


Action = Send | Deliver | Follow | Tell | Fail | FailItem


_TELL_OF_SILENCE_S = 10.0

_BATCHES_PER_WORKER = 2


class _Phase(Enum):
    GREETING = "greeting"
    OPEN = "open"


@dataclass(eq=False)
class _InFlight:
    job: Job
    settled: set[int] = field(default_factory=set)

    def rest(self) -> Job:
        """What is neither answered nor failed, as a job of its own."""
        if not self.settled:
            return self.job
        left = [i for i in range(len(self.job.items)) if i not in self.settled]
        return replace(self.job, work=self.job.work.select(left), items=[self.job.items[i] for i in left])


class ClientCore:
    """The client's whole behaviour.

    Args:
        model: The model that all work is for.
        limits: What the user said of the rows of a step.
        settings: Timeouts and bounds.
        endpoint: Where the broker is, for messages.
    """

    def __init__(self, model: ModelSpec, limits: StepLimits, settings: ClientSettings, endpoint: str) -> None:
        self._model = model
        self.identity: str | None = None
        self._limits = limits
        self._settings = settings
        self._endpoint = endpoint
        self._phase = _Phase.GREETING
        self._greeting_since: float | None = None
        self._greeted_at = 0.0
        self._was_open = False
        self._heard_at = 0.0
        self._pinged_at = 0.0
        self._workers_seen_at = 0.0
        self._told_of_no_worker = False
        self._told_of_no_broker = False
        self._counts = m.Pong(workers=0)
        self._failed_items = 0
        self.answered = 0
        self.model_switches = 0
        self.retries = 0
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

    def broker_silent_s(self, now: float) -> float:
        """How long the broker has said nothing although it was asked."""
        return 0.0 if self.is_idle else now - self._heard_at

    def worker_missing_s(self) -> float:
        """How long the broker has had no worker, as far as it has said."""
        return 0.0 if self.is_idle else max(0.0, self._heard_at - self._workers_seen_at)

    def cut(self, jobs: Sequence[Job]) -> list[Job]:
        """Cut a call that has no more jobs than there are workers, so that each has one and another that it may share."""
        workers = self._counts.workers
        if workers < 2 or len(jobs) > workers:
            return list(jobs)
        total = sum(len(job.items) for job in jobs)
        wanted = workers * (_BATCHES_PER_WORKER if total >= _BATCHES_PER_WORKER * workers * LEAST_ITEMS else 1)
        return [piece for job in jobs for piece in job.cut(round(len(job.items) * wanted / total))]

    def begin(self, jobs: Iterable[Job], now: float) -> list[Action]:
        """Take on work; what an earlier call left behind is forgotten."""
        self._waiting = deque(jobs)
        self._in_flight.clear()
        self._heard_at = self._workers_seen_at = now
        self._told_of_no_worker = self._told_of_no_broker = False
        self._failed_items = 0
        if self._greeting_since is None:
            return self._greet(now)
        if self._phase is _Phase.GREETING:
            self._greeting_since = now  # An earlier call was interrupted while it waited; this one waits as long.
            return []
        # The answer to the ping comes before any other, so that what is counted is up to date.
        self._pinged_at = now
        return [Send(m.Ping()), *self._fill()]

    def abandon(self) -> list[Action]:
        """Give up what is not answered, and have the broker drop it; the next call greets it anew."""
        was_open = self.is_open
        self._waiting.clear()
        self._in_flight.clear()
        self._phase, self._greeting_since = _Phase.GREETING, None
        return [Send(m.CloseSession())] if was_open else []

    def received(self, message: m.BrokerToClient | m.Refusal, now: float) -> list[Action]:
        """Take in what the broker says."""
        self._heard_at = now
        self._told_of_no_broker = False
        match message:
            case m.SessionOpened():
                if self._phase is _Phase.OPEN:
                    return []
                self._phase = _Phase.OPEN
                self._was_open = True
                self._counts = m.Pong(workers=0)
                # As at the beginning of a call: the next one is cut by what is counted now.
                self._pinged_at = now
                return [Send(m.Ping()), *self._fill()]
            case m.Answered():
                self._workers_seen_at = now
                return self._answered(message)
            case m.Progressed():
                self._workers_seen_at = now
                in_flight = self._in_flight.get(message.batch)
                return [] if in_flight is None else [Follow(in_flight.job.items[0], message.progress)]
            case m.ItemFailed():
                self._workers_seen_at = now
                return self._item_failed(message)
            case m.BatchFailed(batch=number, error=report):
                return [Fail(report.to_error())] if self._in_flight.pop(number, None) is not None else []
            case m.Notice(batch=number, level=level, text=text, once=once):
                self._workers_seen_at = now
                return [Tell(level, text, once)] if number in self._in_flight else []
            case m.Pong():
                self.model_switches += max(0, message.model_switches - self._counts.model_switches)
                self.retries += max(0, message.retries - self._counts.retries)
                self._counts = message
                actions = self._count_workers(message.workers, now)
                return [*actions, *self._fill()] if message.workers else actions
            case m.Refusal(error=report):
                error = report.to_error()
                if not isinstance(error, UnknownPeer):
                    return [Fail(error)]
                return self._greet(now) if self._phase is _Phase.OPEN else []

    def tick(self, now: float, stall_s: float = 0.0) -> list[Action]:
        """Take in that time has passed, ``late_s`` more of it than should have, because this process was stopped."""
        self._heard_at += stall_s
        self._workers_seen_at += stall_s
        if self._greeting_since is not None:
            self._greeting_since += stall_s
        if self._phase is _Phase.GREETING and self._greeting_since is not None:
            return self._wait_for_greeting(self._greeting_since, now)
        if self.is_idle:
            return []
        if now - self._heard_at > self._settings.broker_timeout_s:
            return [Fail(self._no_broker(self._settings.broker_timeout_s))]
        actions = self._tell_of_silence(now)
        if now - self._pinged_at >= self._settings.ping_s:
            self._pinged_at = now
            actions.append(Send(m.Ping()))
        return actions

    def _wait_for_greeting(self, since: float, now: float) -> list[Action]:
        patience_s = self._settings.broker_timeout_s if self._was_open else self._settings.connect_s
        if now - since > patience_s:
            self._greeting_since = None
            return [Fail(self._no_broker(patience_s))]
        if now - self._greeted_at < self._settings.greet_s:
            return []
        # A greeting may have gone to a broker that died before it read it, or that is stopping.
        self._greeted_at = now
        return [*self._tell_of_silence(now), Send(m.OpenSession(package_version=__version__))]

    def _tell_of_silence(self, now: float) -> list[Action]:
        silent_s = now - self._heard_at
        if not self._was_open or self._told_of_no_broker or silent_s < _TELL_OF_SILENCE_S:
            return []
        self._told_of_no_broker = True
        left_s = self._settings.broker_timeout_s - silent_s
        text = f"the broker at {self._endpoint} has been silent for {silent_s:.0f} s; it is waited for, {left_s:.0f} s more"
        return [Tell("warning", text)]

    def _greet(self, now: float) -> list[Action]:
        self._phase = _Phase.GREETING
        self._greeting_since = self._greeted_at = now
        unanswered = [in_flight.rest() for in_flight in self._in_flight.values()]
        self._waiting.extendleft(reversed(unanswered))
        self._in_flight.clear()
        return [Send(m.OpenSession(package_version=__version__))]

    def _may_send(self, job: Job) -> bool:
        """Whether one more may be in flight: each worker should have one at work and one that waits for it.

        Beyond the least window, the texts in flight have no more characters than a broker surely takes from one client.
        """
        count, settings = len(self._in_flight), self._settings
        if count < settings.window:
            return True
        if count >= min(_BATCHES_PER_WORKER * self._counts.workers + 1, settings.max_window):
            return False
        held = sum(in_flight.job.characters for in_flight in self._in_flight.values())
        return held + job.characters <= settings.max_characters_in_flight

    def _fill(self) -> list[Action]:
        """Send as many batches as may be in flight."""
        actions: list[Action] = []
        if self._phase is not _Phase.OPEN:
            return actions
        while self._waiting and self._may_send(self._waiting[0]):
            job = self._waiting.popleft()
            number, self._next_batch = self._next_batch, self._next_batch + 1
            self._in_flight[number] = _InFlight(job)
            actions.append(
                Send(
                    m.Submit(
                        batch=number,
                        model=self._model,
                        work=job.work,
                        limits=self._limits,
                        identity=self.identity,
                        prefix=job.prefix,
                    )
                )
            )
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
            if i not in in_flight.settled:
                first.setdefault(i, position)
        in_flight.settled.update(first)
        self.answered += len(first)
        items = [in_flight.job.items[i] for i in first]
        positions = list(first.values())
        deliver = [Deliver(items, positions, message.answers)] if items else []
        return [*deliver, Follow(in_flight.job.items[0], message.progress), *self._go_on(message.batch, in_flight)]

    def _item_failed(self, message: m.ItemFailed) -> list[Action]:
        in_flight = self._in_flight.get(message.batch)
        if in_flight is None or message.index in in_flight.settled:
            return []
        if message.index >= len(in_flight.job.items):
            return [Fail(ProtocolError("a failure does not fit the batch that it names"))]
        in_flight.settled.add(message.index)
        self._failed_items += 1
        failed = FailItem(in_flight.job.items[message.index], message.error.to_error())
        if self._failed_items >= self._settings.max_failed_items:
            return [failed, *self.abandon()]
        return [failed, *self._go_on(message.batch, in_flight)]

    def _go_on(self, number: int, in_flight: _InFlight) -> list[Action]:
        """Send the next batch if this one is settled."""
        if len(in_flight.settled) < len(in_flight.job.items):
            return []
        del self._in_flight[number]
        return self._fill()

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
