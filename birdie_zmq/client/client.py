"""The synchronous client: one call sends many items and returns their answers in order."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from birdie_zmq.client.core import Action, ClientCore, Deliver, Fail, FailItem, Follow, Job, Send, Tell
from birdie_zmq.client.progress import Estimate, Progress
from birdie_zmq.errors import BirdieError, BrokerUnavailable, ProtocolError, UsageError, VersionMismatch
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.security.keys import read_peer_key
from birdie_zmq.protocol.sockets import Dealer, wait
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import (
    Answers,
    DescribeWork,
    Level,
    ModelDescription,
    ModelSpec,
    RollingScores,
    Scores,
    StepLimits,
    Texts,
)

logger = logging.getLogger("birdie_zmq.client")

_decode = decoder(m.BrokerToClient | m.Refusal)

Answer = tuple[float, bool] | float | str | ModelDescription
OnAnswer = Callable[[int, Answer], None]
OnProgress = Callable[[Progress], None]
NameOf = Callable[[int], str]
_POLL_S = 0.25
_STOPPED_S = 3.0
"""A loop that comes round so much too late was stopped, or its machine was."""


@dataclass(frozen=True)
class Pulse:
    """How the broker and the workers seem from here.

    ``broker_silent_s`` and ``worker_missing_s`` are how long nothing was heard of the one and of any of the others, 0
    while nothing is waited for; ``answered`` counts all answers so far.
    """

    broker_silent_s: float
    worker_missing_s: float
    answered: int


class Supervisor(Protocol):
    """Whoever keeps the broker and the worker of a run alive."""

    def check(self, pulse: Pulse) -> None:
        """Start again what has ended or hangs; raise if that does not help."""
        ...


class Client:
    """A session with a broker, for one model. Calls from several threads follow one another.

    Args:
        endpoint: Where the broker is, such as ``tcp://127.0.0.1:5555``.
        model: The model that all work is for.
        limits: What the user said of the rows of a step.
        settings: Timeouts and the size of batches.
        supervisor: Asked while waiting, if the run has a broker and worker of its own.
        log: Where lines for the person at the prompt go.
        key_file: The private key file that this client was given, for a broker with keys.

    Raises:
        UsageError: The endpoint or the key file cannot be read.
    """

    def __init__(
        self,
        endpoint: str,
        model: ModelSpec,
        limits: StepLimits | None = None,
        settings: ClientSettings | None = None,
        supervisor: Supervisor | None = None,
        log: logging.Logger = logger,
        key_file: Path | None = None,
    ) -> None:
        self._settings = settings or ClientSettings()
        self._session = ClientCore(model, limits or StepLimits(), self._settings, endpoint)
        self._dealer = Dealer(parse_endpoint(endpoint), None if key_file is None else read_peer_key(key_file))
        self._supervisor = supervisor
        self._lock = threading.Lock()
        self._log = log
        self._closed = False
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye, so that the broker drops what is still queued, and close the socket; a second time, do nothing.

        A call that another thread is waiting in is given up.
        """
        if self._closed:
            return
        self._closed = True
        with self._lock:
            if self._session.is_open:
                with contextlib.suppress(BirdieError):
                    self._dealer.send(encode(m.CloseSession()))
            self._dealer.close()

    def describe(self) -> ModelDescription:
        """The model, which is loaded for this if it is not yet. From then on no other answers this client.

        Raises:
            ModelChanged: It is another one than at the first call.
            BirdieError: As for `run`.
        """
        (description,) = self.run([Job(DescribeWork(), [0])], 1)
        assert isinstance(description, ModelDescription)
        self._session.identity = description.identity
        return description

    @property
    def model_switches(self) -> int:
        """How often a worker of the broker has changed from one model to another while this client waited."""
        return self._session.model_switches

    @property
    def retries(self) -> int:
        """How often a worker or a model process has died at its work while this client waited."""
        return self._session.retries

    def run(
        self,
        jobs: Iterable[Job],
        count: int,
        on_answer: OnAnswer | None = None,
        name_of: NameOf = "item {}".format,
        on_progress: OnProgress | None = None,
    ) -> list[Answer]:
        """Send jobs and wait for the answers to all their items.

        Args:
            jobs: The work, of one kind, whose items are numbered 0 to ``count`` - 1 altogether.
            count: How many items there are.
            on_answer: Called with the number and the answer of each item as soon as it is there.
            name_of: What a person calls an item, for what is said of one that fails.
            on_progress: Told how far the call has come, some times a second.

        Returns:
            The answers, by number: ``(loglikelihood, is_greedy)``, a loglikelihood, a text, or a description.

        Raises:
            UsageError: The client has been closed.
            BrokerUnavailable: No broker answers.
            NotAllowed: The broker does not let this client's key in, or wants one.
            WorkerUnavailable: The broker has no worker for too long.
            ModelError: The model cannot be loaded or does not compute; the worker's traceback is attached.
            RequestError: One of the items cannot be answered as asked.

        An error that concerns one item alone is raised after all others have been answered.
        """
        answers: dict[int, Answer] = {}
        failures: dict[int, BirdieError] = {}
        jobs = self._session.cut(list(jobs))
        estimate = Estimate(jobs, time.monotonic())

        def act(actions: list[Action]) -> None:
            for action in actions:
                match action:
                    case Send(message):
                        self._dealer.send(encode(message))
                    case Deliver(items, positions, received):
                        estimate.answered(items)
                        values = answer_values(received)
                        for item, position in zip(items, positions, strict=True):
                            answers[item] = values[position]
                            if on_answer is not None:
                                on_answer(item, values[position])
                    case Follow(item, advance):
                        estimate.advanced(item, advance, time.monotonic())
                    case Tell(level, text, once):
                        self._tell(level, text, once=once)
                    case FailItem(item, error):
                        failures[item] = error
                        estimate.answered([item])
                        if count > 1:
                            self._tell("warning", f"{name_of(item)} has no answer: {error.message}")
                    case Fail(BrokerUnavailable() as error) if (doubt := self._dealer.doubt) is not None:
                        raise BrokerUnavailable(f"{error.message}; {doubt}")
                    case Fail(error):
                        raise error

        with self._lock:
            if self._closed:
                raise UsageError("this client has been closed")
            try:
                act(self._session.begin(jobs, time.monotonic()))
                while not self._session.is_idle:
                    self._wait(act)
                    if on_progress is not None:
                        on_progress(estimate.at(time.monotonic()))
                    if self._closed:
                        raise UsageError("this client was closed while it was waiting for answers")
            except BaseException:
                act(self._session.abandon())
                raise
        if failures:
            raise failure_of(failures, count, len(answers), name_of)
        if len(answers) != count:
            raise ProtocolError(f"{count} items were asked and {len(answers)} answered")
        return [answers[item] for item in range(count)]

    def _wait(self, act: Callable[[list[Action]], None]) -> None:
        """Wait for whatever comes next, and let it be acted upon."""
        began = time.monotonic()
        wait(self._dealer, _POLL_S)
        while (frame := self._dealer.receive()) is not None:
            act(self._session.received(self._decoded(frame), time.monotonic()))
        now = time.monotonic()
        stall_s = now - began - _POLL_S
        act(self._session.tick(now, stall_s if stall_s > _STOPPED_S else 0.0))
        if self._supervisor is not None:
            silent_s, missing_s = self._session.broker_silent_s(now), self._session.worker_missing_s()
            self._supervisor.check(Pulse(silent_s, missing_s, self._session.answered))

    def _decoded(self, frame: bytes) -> m.BrokerToClient | m.Refusal:
        try:
            message: m.BrokerToClient | m.Refusal = _decode(frame)
        except VersionMismatch:
            raise
        except ProtocolError as error:
            raise ProtocolError(f"the broker sent what this client cannot read: {error}") from error
        return message

    def _tell(self, level: Level, text: str, *, once: bool = False) -> None:
        """Log a line; once, however many batches say it, where that is asked for."""
        if not once or text not in self._told:
            self._told.add(text)
            self._log.log(logging.WARNING if level == "warning" else logging.INFO, text)


def failure_of(failures: dict[int, BirdieError], count: int, answered: int, name_of: NameOf) -> BirdieError:
    """One error for all items that failed: the first one's, which says how many there are."""
    item, first = next(iter(failures.items()))
    if count == 1:
        return first
    others = f", and {len(failures) - 1} more like it (see above)" if len(failures) > 1 else ""
    text = f"{name_of(item)} has no answer{others}; {answered} of {count} requests have theirs. {first.message}"
    return type(first)(text, remote_traceback=first.remote_traceback)


def answer_values(answers: Answers) -> Sequence[Answer]:
    """One answer an item, as `Client.run` gives them."""
    match answers:
        case Scores(loglikelihoods=loglikelihoods, greedy=greedy):
            return list(zip(loglikelihoods.tolist(), greedy.tolist(), strict=True))
        case RollingScores(loglikelihoods=loglikelihoods):
            values: list[float] = loglikelihoods.tolist()
            return values
        case Texts(texts=texts):
            return texts
        case ModelDescription():
            return [answers]
