"""The synchronous client: one call sends many items and returns their answers in order."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from birdie_zmq.client.actions import Action, Deliver, DeliverParts, FailCall, FailItem, Log, ReportProgress, Send
from birdie_zmq.client.collector import CallEvent, collect
from birdie_zmq.client.core import ClientCore
from birdie_zmq.client.job import Job
from birdie_zmq.client.progress import INTERVAL_S, ProgressEstimator
from birdie_zmq.errors import BirdieError, BrokerUnavailable, ProtocolError, UsageError, VersionMismatch
from birdie_zmq.processes.ticker import Ticker
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.security.keys import read_peer_key
from birdie_zmq.protocol.transport import wait
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answer, DescribeWork, Level, ModelDescription, ModelSpec, StepLimits

logger = logging.getLogger("lm_eval.birdie_zmq")

_decode = decoder(m.BrokerToClient | m.Refusal)

_POLL_S = 0.25
_HINT_S = 10.0
"""Seconds of silence after which the probable cause is logged."""


@dataclass(frozen=True)
class Liveness:
    """The liveness of the broker and its workers, as this client observes it.

    ``broker_silent_s`` is the time since the broker's last message, ``worker_missing_s`` how long the broker has had no
    worker; both are 0 while no item waits for an answer. ``answered`` counts all answers so far.
    """

    broker_silent_s: float
    worker_missing_s: float
    answered: int


class Supervisor(Protocol):
    """The interface of an object that keeps the broker and the worker of a run alive."""

    def check(self, liveness: Liveness) -> None:
        """Restart processes that have ended or hang; raise if that does not help."""
        ...


class Client:
    """A session with a broker, for one model. Calls from several threads run one after another.

    Args:
        endpoint: The broker's endpoint, such as ``tcp://127.0.0.1:5555``.
        model: The model that all work is for.
        limits: The user's limits on the rows of a step.
        settings: Timeouts and batch sizes.
        supervisor: Checked while waiting, if the run has an embedded broker and worker.
        key_file: The client's private key file, for a broker with keys.
        allow_group_readable_keys: Whether the group of the key file may read it.

    Raises:
        UsageError: The endpoint or the key file is invalid or cannot be read.
    """

    def __init__(
        self,
        endpoint: str,
        model: ModelSpec,
        limits: StepLimits | None = None,
        settings: ClientSettings | None = None,
        supervisor: Supervisor | None = None,
        key_file: Path | None = None,
        allow_group_readable_keys: bool = False,
    ) -> None:
        self._settings = settings or ClientSettings()
        self._core = ClientCore(model, limits or StepLimits(), self._settings, endpoint)
        key = None if key_file is None else read_peer_key(key_file, allow_group_readable_keys)
        self._dealer = Dealer(parse_endpoint(endpoint), key)
        self._supervisor = supervisor
        self._lock = threading.Lock()
        self._closed = False
        self._logged: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the session, so that the broker drops queued work, and close the socket; a second call does nothing.

        A call that is waiting in another thread fails with a UsageError.
        """
        if self._closed:
            return
        self._closed = True
        with self._lock:
            if self._core.session.is_open:
                with contextlib.suppress(BirdieError):
                    self._dealer.send(encode(m.CloseSession()))
            self._dealer.close()

    def describe(self) -> ModelDescription:
        """Return the description of the model, which is loaded if necessary.

        From then on, only a model with the same identity may answer this client.

        Raises:
            ModelChanged: The model is not the same as at the first call.
            BirdieError: As for `run`.
        """
        (description,) = self.run([Job(DescribeWork(), [0])], 1)
        assert isinstance(description, ModelDescription)
        self._core.identity = description.identity
        return description

    @property
    def model_switches(self) -> int:
        """Number of model switches of the broker's workers while this client waited."""
        return self._core.session.model_switches

    @property
    def retries(self) -> int:
        """Number of retries after the death of a worker or model process while this client waited."""
        return self._core.session.retries

    def run(self, jobs: Iterable[Job], count: int) -> list[Answer]:
        """Return the answers to all items of some jobs, which are numbered 0 to ``count`` - 1.

        Raises:
            BirdieError: As for `stream`; an error of a single item is raised after all other items have been answered.
        """
        return collect(self.stream(jobs), count)

    def stream(self, jobs: Iterable[Job], *, with_progress: bool = False) -> Generator[CallEvent, None, None]:
        """Send jobs, and yield the answers to their items as they arrive. To give up the call, close the generator.

        Args:
            jobs: The work, all of one kind, with a number for each item.
            with_progress: Whether to yield the progress of the call as well, at most twice a second and at the end, and
                what a worker reports that it has computed.

        Yields:
            Answers: ``(loglikelihood, is_greedy)``, a loglikelihood, a text, or a description. Items that fail. Progress.
            What was computed, before the last answers.

        Raises:
            UsageError: The client has been closed.
            BrokerUnavailable: No broker answers.
            NotAllowed: The broker does not allow this client's key, or requires one.
            WorkerUnavailable: The broker has had no worker for too long.
            ModelError: The model cannot be loaded or fails; the worker's traceback is attached.
        """
        estimate: ProgressEstimator | None = None
        report_at = 0.0
        with self._lock:
            if self._closed:
                raise UsageError("this client has been closed")
            try:
                yield from self._act(self._core.begin(jobs, time.monotonic()), None)
                # The workers compute the first batches while this process prepares the others.
                prepared = self._core.prepare_all()
                if with_progress:
                    estimate = ProgressEstimator(prepared, time.monotonic())
                while not self._core.is_idle:
                    yield from self._wait(estimate)
                    if estimate is not None and (time.monotonic() >= report_at or self._core.is_idle):
                        report_at = time.monotonic() + INTERVAL_S
                        yield estimate.progress()
                    if self._closed:
                        raise UsageError("this client was closed while it was waiting for answers")
            except BaseException:
                for _ in self._act(self._core.abandon(), None):
                    pass
                raise

    def _wait(self, estimate: ProgressEstimator | None) -> Iterator[CallEvent]:
        """Wait for messages for at most one poll interval, and act on them and on the time that has passed."""
        ticker = Ticker(_POLL_S, first_at=time.monotonic() + _POLL_S)
        wait(self._dealer, _POLL_S)
        while (frame := self._dealer.receive()) is not None:
            yield from self._act(self._core.received(self._decoded(frame), time.monotonic()), estimate)
        now = time.monotonic()
        yield from self._act(self._core.tick(now, ticker.tick(now) or 0.0), estimate)
        silent_s, missing_s = self._core.broker_silent_s(now), self._core.worker_missing_s()
        if silent_s > _HINT_S and (hint := self._dealer.hint) is not None:
            self._log_line("warning", f"cannot reach the broker: {hint}", once=True)
        if self._supervisor is not None:
            self._supervisor.check(Liveness(silent_s, missing_s, self._core.answered))

    def _act(self, actions: Sequence[Action], estimate: ProgressEstimator | None) -> Iterator[CallEvent]:
        """Carry out actions of the core, and yield those that are for the caller."""
        for action in actions:
            match action:
                case Send(message):
                    self._dealer.send(encode(message))
                case Deliver(items=items):
                    if estimate is not None:
                        estimate.answered(items)
                    yield action
                case DeliverParts():
                    yield action
                case FailItem(item=item):
                    if estimate is not None:
                        estimate.answered([item])
                    yield action
                case ReportProgress(computed):
                    if estimate is not None:
                        estimate.progressed(computed, time.monotonic())
                        yield action
                case Log(level, text, once):
                    self._log_line(level, text, once=once)
                case FailCall(BrokerUnavailable() as error) if (hint := self._dealer.hint) is not None:
                    raise BrokerUnavailable(f"{error.message}; {hint}")
                case FailCall(error):
                    raise error

    def _decoded(self, frame: bytes) -> m.BrokerToClient | m.Refusal:
        try:
            message: m.BrokerToClient | m.Refusal = _decode(frame)
        except VersionMismatch:
            raise
        except ProtocolError as error:
            raise ProtocolError(f"the broker sent an invalid message: {error}") from error
        return message

    def _log_line(self, level: Level, text: str, *, once: bool = False) -> None:
        """Log a line; with `once`, only the first time, however many batches report it."""
        if not once or text not in self._logged:
            self._logged.add(text)
            logger.log(logging.WARNING if level == "warning" else logging.INFO, text)
