"""The client's state machine, without a socket or a clock.

The client opens a session with the broker (`session`), then sends work in batches, with a few batches in flight at once
(`batches`). It keeps unanswered items. When a restarted broker refuses it as an unknown peer, it opens a new session and
sends them again.

The first answer to an item counts; any later one is ignored. If a single item fails, the call continues and raises the
error after all other items are answered, so that lm_eval's cache or a journal holds every answer except the failed one.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from birdie_zmq.client.actions import Action, Deliver, DeliverParts, FailCall, FailItem, Log, ReportProgress, Send
from birdie_zmq.client.batches import Batches
from birdie_zmq.client.job import Job, split_short_call
from birdie_zmq.client.session import Session
from birdie_zmq.errors import ProtocolError, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.packing import kind_of, pack_work, unpack_answers
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import ModelSpec, StepLimits


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
        session: The session with the broker.
    """

    def __init__(self, model: ModelSpec, limits: StepLimits, settings: ClientSettings, endpoint: str) -> None:
        self._model = model
        self.identity: str | None = None
        self._limits = limits
        self._settings = settings
        self.session = Session(settings, endpoint)
        self.answered = 0
        self._numbers = count()
        self._batches = Batches([], self._numbers, settings)
        self._failed_items = 0

    @property
    def is_idle(self) -> bool:
        """Whether no item is waiting for an answer."""
        return self._batches.are_settled

    def broker_silent_s(self, now: float) -> float:
        """Return the seconds since the broker's last message, 0 if nothing is waiting for an answer."""
        return 0.0 if self.is_idle else self.session.broker_silent_s(now)

    def worker_missing_s(self) -> float:
        """Return how long the broker has reported no worker, in seconds; 0 if nothing is waiting for an answer."""
        return 0.0 if self.is_idle else self.session.worker_missing_s()

    def begin(self, jobs: Iterable[Job], now: float) -> list[Action]:
        """Start a call; unanswered items of an earlier call are dropped.

        Only the jobs that are sent at once are taken; the others are taken as batches are answered, or by `prepare_all`.
        """
        self._batches = Batches(split_short_call(jobs, self.session.workers), self._numbers, self._settings)
        self._failed_items = 0
        return [*self.session.begin_call(now), *self._fill_window()]

    def prepare_all(self) -> list[Job]:
        """Prepare the remaining jobs of the call, and return all that are unanswered."""
        return self._batches.prepare_all()

    def abandon(self) -> list[Action]:
        """Drop all unanswered items here and at the broker; the next call opens a new session."""
        self._batches = Batches([], self._numbers, self._settings)
        return self.session.close()

    def received(self, message: m.BrokerToClient | m.Refusal, now: float) -> list[Action]:
        """Handle a message of the broker."""
        self.session.broker_seen(now)
        if isinstance(message, m.Answered | m.PartlyAnswered | m.Progressed | m.ItemFailed | m.Notice):
            self.session.worker_seen(now)
        match message:
            case m.SessionOpened():
                return [*self.session.opened(now), *self._fill_window()]
            case m.Pong():
                return [*self.session.pong(message, now), *self._fill_window()]
            case m.Refusal(error=report):
                error = report.to_error()
                return self._open_again(now) if isinstance(error, UnknownPeer) else [FailCall(error)]
        job = self._batches.in_flight(message.batch)
        if job is None:  # of an earlier call or session, or answered by another worker
            return []
        match message:
            case m.Answered():
                return self._answered(job, message)
            case m.PartlyAnswered():
                return self._partly_answered(job, message)
            case m.Progressed(progress=computed):
                return [ReportProgress(computed)]
            case m.ItemFailed():
                return self._item_failed(job, message)
            case m.BatchFailed(batch=number, error=report):
                self._batches.remove(number)
                return [FailCall(report.to_error())]
            case m.Notice(level=level, text=text, once=once):
                return [Log(level, text, once)]

    def tick(self, now: float, stall_s: float = 0.0) -> list[Action]:
        """Handle the passage of time.

        Args:
            now: Seconds on a monotonic clock.
            stall_s: How long this process itself was stopped since the last tick. This time counts for no timeout.
        """
        return [] if self.is_idle else self.session.tick(now, stall_s)

    def _open_again(self, now: float) -> list[Action]:
        """Open a new session with a broker that does not know this client, and send all unanswered items again."""
        if not self.session.is_open:
            return []
        self._batches.send_again()
        return self.session.open(now)

    def _fill_window(self) -> list[Action]:
        """Send batches until the window is full."""
        if not self.session.is_open:
            return []
        return [
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
            for number, job in self._batches.fill_window(self.session.workers)
        ]

    def _answered(self, job: Job, message: m.Answered) -> list[Action]:
        indices = message.indices
        if len(indices) != len(message.answers) or any(not 0 <= i < len(job.items) for i in indices):
            return [FailCall(ProtocolError(f"an answer does not match the items of its batch {message.batch}"))]
        try:
            answers = unpack_answers(kind_of(job.work), message.answers)
        except ProtocolError as error:
            return [FailCall(ProtocolError(f"the broker sent an invalid message: {error}"))]
        first = self._batches.settle(message.batch, indices)
        self.answered += len(first)
        if not first:
            return []
        deliver = Deliver([job.items[i] for i in first], [answers[position] for position in first.values()])
        return [deliver, *self._fill_window()]

    def _partly_answered(self, job: Job, message: m.PartlyAnswered) -> list[Action]:
        indices = message.indices
        if len(indices) != len(message.answers) or any(not 0 <= i < len(job.items) for i in indices):
            return [
                FailCall(ProtocolError(f"a part of an answer does not match the items of its batch {message.batch}"))
            ]
        try:
            parts = unpack_answers(kind_of(job.work), message.answers)
        except ProtocolError as error:
            return [FailCall(ProtocolError(f"the broker sent an invalid message: {error}"))]
        return [DeliverParts([job.items[i] for i in indices], parts)]

    def _item_failed(self, job: Job, message: m.ItemFailed) -> list[Action]:
        if message.index >= len(job.items):
            return [FailCall(ProtocolError(f"a failed item is not in its batch {message.batch}"))]
        if not self._batches.settle(message.batch, [message.index]):
            return []
        self._failed_items += 1
        failed = FailItem(job.items[message.index], message.error.to_error())
        if self._failed_items >= self._settings.max_failed_items:
            return [failed, *self.abandon()]
        return [failed, *self._fill_window()]
