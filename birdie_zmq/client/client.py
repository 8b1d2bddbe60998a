"""The synchronous client: one call sends many items and returns their answers in order."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

from birdie_zmq.client.state import Action, Deliver, Fail, Job, Send, Session, Tell
from birdie_zmq.config import ClientSettings
from birdie_zmq.errors import BirdieError, ProtocolError, UsageError, VersionMismatch
from birdie_zmq.wire import messages as m
from birdie_zmq.wire.codec import decoder, encode
from birdie_zmq.wire.endpoints import parse_endpoint
from birdie_zmq.wire.transport import Dealer, wait

logger = logging.getLogger("birdie_zmq.client")

_decode = decoder(m.BrokerToClient | m.Refusal)

Answer = tuple[float, bool] | float | str | m.ModelDescription
OnAnswer = Callable[[int, Answer], None]
_POLL_S = 0.25


class Supervisor(Protocol):
    """Whoever keeps the broker and the worker of a run alive."""

    def check(self) -> None:
        """Raise if they cannot be kept alive."""
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

    Raises:
        UsageError: The endpoint cannot be read.
    """

    def __init__(
        self,
        endpoint: str,
        model: m.ModelSpec,
        limits: m.StepLimits | None = None,
        settings: ClientSettings | None = None,
        supervisor: Supervisor | None = None,
        log: logging.Logger = logger,
    ) -> None:
        self._settings = settings or ClientSettings()
        self._session = Session(model, limits or m.StepLimits(), self._settings, endpoint)
        self._dealer = Dealer(parse_endpoint(endpoint))
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
        """Say goodbye, so that the broker drops what is still queued, and close the socket; a second time, do nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._session.is_open:
                with contextlib.suppress(BirdieError):
                    self._dealer.send(encode(m.CloseSession()))
            self._dealer.close()

    def describe(self) -> m.ModelDescription:
        """The model, which is loaded for this if it is not yet.

        Raises:
            BirdieError: As for `run`.
        """
        (description,) = self.run([Job(m.DescribeWork(), [0])], 1)
        assert isinstance(description, m.ModelDescription)
        return description

    def run(self, jobs: Iterable[Job], count: int, on_answer: OnAnswer | None = None) -> list[Answer]:
        """Send jobs and wait for the answers to all their items.

        Args:
            jobs: The work, whose items are numbered 0 to ``count`` - 1 altogether.
            count: How many items there are.
            on_answer: Called with the number and the answer of each item as soon as it is there.

        Returns:
            The answers, by number: ``(loglikelihood, is_greedy)``, a loglikelihood, a text, or a description.

        Raises:
            UsageError: The client has been closed.
            BrokerUnavailable: No broker answers.
            WorkerUnavailable: The broker has no worker for too long.
            ModelError: The model cannot be loaded or does not compute; the worker's traceback is attached.
            RequestError: One of the items cannot be answered as asked.
        """
        answers: dict[int, Answer] = {}

        def act(actions: list[Action]) -> None:
            for action in actions:
                match action:
                    case Send(message):
                        self._dealer.send(encode(message))
                    case Deliver(items, positions, received):
                        values = _values(received)
                        for item, position in zip(items, positions, strict=True):
                            answers[item] = values[position]
                            if on_answer is not None:
                                on_answer(item, values[position])
                    case Tell(level, text):
                        self._tell(level, text)
                    case Fail(error):
                        raise error

        with self._lock:
            if self._closed:
                raise UsageError("this client has been closed")
            act(self._session.begin(jobs, time.monotonic()))
            while not self._session.is_idle:
                wait(self._dealer, _POLL_S)
                while (frame := self._dealer.receive()) is not None:
                    act(self._session.received(self._decoded(frame), time.monotonic()))
                act(self._session.tick(time.monotonic()))
                if self._supervisor is not None:
                    self._supervisor.check()
        if len(answers) != count:
            raise ProtocolError(f"{count} items were asked and {len(answers)} answered")
        return [answers[item] for item in range(count)]

    def _decoded(self, frame: bytes) -> m.BrokerToClient | m.Refusal:
        try:
            message: m.BrokerToClient | m.Refusal = _decode(frame)
        except VersionMismatch:
            raise
        except ProtocolError as error:
            raise ProtocolError(f"the broker sent what this client cannot read: {error}") from error
        return message

    def _tell(self, level: m.Level, text: str) -> None:
        """Log a line once, however many batches it is said of."""
        if text not in self._told:
            self._told.add(text)
            self._log.log(logging.WARNING if level == "warning" else logging.INFO, text)


def _values(answers: m.Answers) -> Sequence[Answer]:
    match answers:
        case m.Scores(loglikelihoods=loglikelihoods, greedy=greedy):
            return list(zip(loglikelihoods.tolist(), greedy.tolist(), strict=True))
        case m.RollingScores(loglikelihoods=loglikelihoods):
            values: list[float] = loglikelihoods.tolist()
            return values
        case m.Texts(texts=texts):
            return texts
        case m.ModelDescription():
            return [answers]
