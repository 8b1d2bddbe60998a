"""The client's state machine, without a socket or a clock.

The client opens a session with the broker, then sends work in batches, with a few batches in flight at once. It keeps
unanswered items. When a restarted broker refuses it as an unknown peer, it opens a new session and sends them again::

    OPENING ──SessionOpened──▶ OPEN ──a Refusal: unknown peer──▶ OPENING

The first answer to an item counts; any later one is ignored. If a single item fails, the call continues and raises the
error after all other items are answered, so that lm_eval's cache or a journal holds every answer except the failed one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from birdie_zmq._version import __version__
from birdie_zmq.client.batch_splitting import MIN_ITEMS, split_batch
from birdie_zmq.errors import BirdieError, BrokerUnavailable, ProtocolError, UnknownPeer, WorkerUnavailable
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.packing import kind_of, pack_work, unpack_answers
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answer, ComputeCounters, Level, ModelSpec, StepLimits, Work


@dataclass(frozen=True)
class Job:
    """Work to be sent in one message.

    ``items`` holds the caller's numbers of its items, ``characters`` is the total size of its texts, and ``prefix`` is the
    field of `birdie_zmq.protocol.messages.Submit`.
    """

    work: Work
    items: list[int]
    prefix: str | None = None
    characters: int = 0

    def split(self, count: int) -> list[Job]:
        """Split the job into at most `count` jobs."""
        parts = split_batch(self.work, count)
        if len(parts) < 2:
            return [self]
        return [
            replace(
                self,
                work=self.work.select(part),
                items=[self.items[i] for i in part],
                characters=self.characters * len(part) // len(self.items),
            )
            for part in parts
        ]


@dataclass(frozen=True)
class Send:
    """Send a message to the broker."""

    message: m.ClientMessage


@dataclass(frozen=True)
class Deliver:
    """Deliver the first answers to some items to the caller."""

    items: list[int]
    answers: list[Answer]


@dataclass(frozen=True)
class ReportProgress:
    """Report what a worker has computed for this call since its last report."""

    computed: ComputeCounters


@dataclass(frozen=True)
class Log:
    """Log a line for the user; with ``once``, only the first time in a run."""

    level: Level
    text: str
    once: bool = False


@dataclass(frozen=True)
class FailCall:
    """Fail the whole call with an error."""

    error: BirdieError


@dataclass(frozen=True)
class FailItem:
    """Fail one item, by the caller's number; the other items are still answered."""

    item: int
    error: BirdieError


Action = Send | Deliver | ReportProgress | Log | FailCall | FailItem


_WARN_SILENCE_S = 10.0
"""Seconds of silence after which the client warns that the broker does not answer."""

_BATCHES_PER_WORKER = 2


class _Phase(Enum):
    OPENING = "opening"
    OPEN = "open"


@dataclass(eq=False)
class _InFlight:
    job: Job
    settled: set[int] = field(default_factory=set)

    def unsettled(self) -> Job:
        """Return the items that have neither an answer nor an error, as a job of their own."""
        if not self.settled:
            return self.job
        unsettled = [i for i in range(len(self.job.items)) if i not in self.settled]
        return replace(self.job, work=self.job.work.select(unsettled), items=[self.job.items[i] for i in unsettled])


class ClientCore:
    """The client's state machine: takes messages and time, returns actions.

    Args:
        model: The model that all work is for.
        limits: The user's limits on the rows of a step.
        settings: Timeouts and limits.
        endpoint: The broker's endpoint, for messages to the user.

    Attributes:
        identity: The identity that the model must have, None until it is known.
        answered: Number of items answered so far.
        model_switches: Number of model switches of the broker's workers while this client waited.
        retries: Number of retries after the death of a worker or model process while this client waited.
    """

    def __init__(self, model: ModelSpec, limits: StepLimits, settings: ClientSettings, endpoint: str) -> None:
        self._model = model
        self.identity: str | None = None
        self._limits = limits
        self._settings = settings
        self._endpoint = endpoint
        self._phase = _Phase.OPENING
        self._opening_since: float | None = None
        self._open_sent_at = 0.0
        self._was_open = False
        self._received_at = 0.0
        self._pinged_at = 0.0
        self._workers_seen_at = 0.0
        self._warned_no_worker = False
        self._warned_no_broker = False
        self._last_pong = m.Pong(workers=0)
        self._failed_items = 0
        self.answered = 0
        self.model_switches = 0
        self.retries = 0
        self._waiting: deque[Job] = deque()
        self._in_flight: dict[int, _InFlight] = {}
        self._next_batch = 0

    @property
    def is_idle(self) -> bool:
        """Whether no item is waiting for an answer."""
        return not self._waiting and not self._in_flight

    @property
    def is_open(self) -> bool:
        """Whether the broker has opened the session."""
        return self._phase is _Phase.OPEN

    def broker_silent_s(self, now: float) -> float:
        """Return the seconds since the broker's last message, 0 if nothing is waiting for an answer."""
        return 0.0 if self.is_idle else now - self._received_at

    def worker_missing_s(self) -> float:
        """Return how long the broker has reported no worker, in seconds; 0 if nothing is waiting for an answer."""
        return 0.0 if self.is_idle else max(0.0, self._received_at - self._workers_seen_at)

    def split_jobs(self, jobs: Sequence[Job]) -> list[Job]:
        """Split the jobs of a call if there are no more jobs than workers.

        Each worker then has a job, and a second one that an idle worker can steal.
        """
        workers = self._last_pong.workers
        if workers < 2 or len(jobs) > workers:
            return list(jobs)
        total = sum(len(job.items) for job in jobs)
        target = workers * (_BATCHES_PER_WORKER if total >= _BATCHES_PER_WORKER * workers * MIN_ITEMS else 1)
        return [part for job in jobs for part in job.split(round(len(job.items) * target / total))]

    def begin(self, jobs: Iterable[Job], now: float) -> list[Action]:
        """Start a call; unanswered items of an earlier call are dropped."""
        self._waiting = deque(jobs)
        self._in_flight.clear()
        self._received_at = self._workers_seen_at = now
        self._warned_no_worker = self._warned_no_broker = False
        self._failed_items = 0
        if self._opening_since is None:
            return self._open_session(now)
        if self._phase is _Phase.OPENING:
            self._opening_since = now  # An earlier call was interrupted while it waited; this call waits the full time.
            return []
        # The Pong comes before any other answer, so that the number of workers is up to date.
        self._pinged_at = now
        return [Send(m.Ping()), *self._fill_window()]

    def abandon(self) -> list[Action]:
        """Drop all unanswered items here and at the broker; the next call opens a new session."""
        was_open = self.is_open
        self._waiting.clear()
        self._in_flight.clear()
        self._phase, self._opening_since = _Phase.OPENING, None
        return [Send(m.CloseSession())] if was_open else []

    def received(self, message: m.BrokerToClient | m.Refusal, now: float) -> list[Action]:
        """Handle a message of the broker."""
        self._received_at = now
        self._warned_no_broker = False
        match message:
            case m.SessionOpened():
                if self._phase is _Phase.OPEN:
                    return []
                self._phase = _Phase.OPEN
                self._was_open = True
                self._last_pong = m.Pong(workers=0)
                # As at the start of a call: the next call is split by the number of workers counted now.
                self._pinged_at = now
                return [Send(m.Ping()), *self._fill_window()]
            case m.Answered():
                self._workers_seen_at = now
                return self._answered(message)
            case m.Progressed():
                self._workers_seen_at = now
                return [ReportProgress(message.progress)] if message.batch in self._in_flight else []
            case m.ItemFailed():
                self._workers_seen_at = now
                return self._item_failed(message)
            case m.BatchFailed(batch=number, error=report):
                return [FailCall(report.to_error())] if self._in_flight.pop(number, None) is not None else []
            case m.Notice(batch=number, level=level, text=text, once=once):
                self._workers_seen_at = now
                return [Log(level, text, once)] if number in self._in_flight else []
            case m.Pong():
                self.model_switches += max(0, message.model_switches - self._last_pong.model_switches)
                self.retries += max(0, message.retries - self._last_pong.retries)
                self._last_pong = message
                actions = self._check_workers(message.workers, now)
                return [*actions, *self._fill_window()] if message.workers else actions
            case m.Refusal(error=report):
                error = report.to_error()
                if not isinstance(error, UnknownPeer):
                    return [FailCall(error)]
                return self._open_session(now) if self._phase is _Phase.OPEN else []

    def tick(self, now: float, stall_s: float = 0.0) -> list[Action]:
        """Handle the passage of time.

        Args:
            now: Seconds on a monotonic clock.
            stall_s: How long this process itself was stopped since the last tick. This time counts for no timeout.
        """
        self._received_at += stall_s
        self._workers_seen_at += stall_s
        if self._opening_since is not None:
            self._opening_since += stall_s
        if self._phase is _Phase.OPENING and self._opening_since is not None:
            return self._wait_for_session(self._opening_since, now)
        if self.is_idle:
            return []
        if now - self._received_at > self._settings.broker_timeout_s:
            return [FailCall(self._no_broker_error(self._settings.broker_timeout_s))]
        actions = self._warn_of_silence(now)
        if now - self._pinged_at >= self._settings.ping_s:
            self._pinged_at = now
            actions.append(Send(m.Ping()))
        return actions

    def _wait_for_session(self, since: float, now: float) -> list[Action]:
        timeout_s = self._settings.broker_timeout_s if self._was_open else self._settings.connect_s
        if now - since > timeout_s:
            self._opening_since = None
            return [FailCall(self._no_broker_error(timeout_s))]
        if now - self._open_sent_at < self._settings.open_retry_s:
            return []
        # The broker that received the last OpenSession may have died before reading it, or may be stopping.
        self._open_sent_at = now
        return [*self._warn_of_silence(now), Send(m.OpenSession(package_version=__version__))]

    def _warn_of_silence(self, now: float) -> list[Action]:
        silent_s = now - self._received_at
        if not self._was_open or self._warned_no_broker or silent_s < _WARN_SILENCE_S:
            return []
        self._warned_no_broker = True
        left_s = self._settings.broker_timeout_s - silent_s
        text = f"the broker at {self._endpoint} has been silent for {silent_s:.0f} s; waiting {left_s:.0f} s more"
        return [Log("warning", text)]

    def _open_session(self, now: float) -> list[Action]:
        self._phase = _Phase.OPENING
        self._opening_since = self._open_sent_at = now
        unanswered = [in_flight.unsettled() for in_flight in self._in_flight.values()]
        self._waiting.extendleft(reversed(unanswered))
        self._in_flight.clear()
        return [Send(m.OpenSession(package_version=__version__))]

    def _may_send(self, job: Job) -> bool:
        """Return whether one more batch may be in flight.

        Each worker should have one batch in computation and one waiting. Beyond the minimum window, the characters in flight
        are limited, so that they stay within the broker's limits for one client.
        """
        count, settings = len(self._in_flight), self._settings
        if count < settings.window:
            return True
        if count >= min(_BATCHES_PER_WORKER * self._last_pong.workers + 1, settings.max_window):
            return False
        characters = sum(in_flight.job.characters for in_flight in self._in_flight.values())
        return characters + job.characters <= settings.max_characters_in_flight

    def _fill_window(self) -> list[Action]:
        """Send batches until the window is full."""
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
                        work=pack_work(job.work),
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
            return [FailCall(ProtocolError(f"an answer does not match the items of its batch {message.batch}"))]
        try:
            answers = unpack_answers(kind_of(in_flight.job.work), message.answers)
        except ProtocolError as error:
            return [FailCall(ProtocolError(f"the broker sent an invalid message: {error}"))]
        first_positions: dict[int, int] = {}
        for position, i in enumerate(indices):
            if i not in in_flight.settled:
                first_positions.setdefault(i, position)
        in_flight.settled.update(first_positions)
        self.answered += len(first_positions)
        items = [in_flight.job.items[i] for i in first_positions]
        deliver = [Deliver(items, [answers[position] for position in first_positions.values()])] if items else []
        return [*deliver, *self._send_next(message.batch, in_flight)]

    def _item_failed(self, message: m.ItemFailed) -> list[Action]:
        in_flight = self._in_flight.get(message.batch)
        if in_flight is None or message.index in in_flight.settled:
            return []
        if message.index >= len(in_flight.job.items):
            return [FailCall(ProtocolError(f"a failed item is not in its batch {message.batch}"))]
        in_flight.settled.add(message.index)
        self._failed_items += 1
        failed = FailItem(in_flight.job.items[message.index], message.error.to_error())
        if self._failed_items >= self._settings.max_failed_items:
            return [failed, *self.abandon()]
        return [failed, *self._send_next(message.batch, in_flight)]

    def _send_next(self, number: int, in_flight: _InFlight) -> list[Action]:
        """Send the next batches if this one is complete."""
        if len(in_flight.settled) < len(in_flight.job.items):
            return []
        del self._in_flight[number]
        return self._fill_window()

    def _check_workers(self, workers: int, now: float) -> list[Action]:
        if workers:
            self._workers_seen_at = now
            return []
        if now - self._workers_seen_at > self._settings.worker_wait_s:
            text = (
                f"the broker at {self._endpoint} has had no worker for {self._settings.worker_wait_s:.0f} s; start one "
                f"with: python -m workers.jax_worker --connect {self._endpoint}"
            )
            return [FailCall(WorkerUnavailable(text))]
        if self._warned_no_worker:
            return []
        self._warned_no_worker = True
        text = f"the broker has no worker yet; start one with: python -m workers.jax_worker --connect {self._endpoint}"
        return [Log("warning", text)]

    def _no_broker_error(self, seconds: float) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"no broker answered at {self._endpoint} within {seconds:.0f} s; start one with: python broker.py --bind "
            f"{self._endpoint} (or leave port= and endpoint= out of model_args to start an embedded broker and worker)"
        )
