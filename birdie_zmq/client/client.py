"""The synchronous client: one call sends many items and returns their answers in order."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from birdie_zmq.client.core import Action, ClientCore, Deliver, FailCall, FailItem, Job, Log, ReportProgress, Send
from birdie_zmq.client.progress import INTERVAL_S, Progress, ProgressEstimator
from birdie_zmq.errors import BirdieError, BrokerUnavailable, ProtocolError, UsageError, VersionMismatch
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.endpoints import parse_endpoint
from birdie_zmq.protocol.security.keys import read_peer_key
from birdie_zmq.protocol.sockets import Dealer, wait
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answer, DescribeWork, Level, ModelDescription, ModelSpec, StepLimits

logger = logging.getLogger("birdie_zmq.client")

_decode = decoder(m.BrokerToClient | m.Refusal)

OnAnswer = Callable[[int, Answer], None]
OnProgress = Callable[[Progress], None]
NameOf = Callable[[int], str]
_POLL_S = 0.25
_MIN_STALL_S = 3.0
"""A poll that takes this much longer than its timeout means that the process, or its machine, was stopped."""


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
        log: The logger for messages to the user.
        key_file: The client's private key file, for a broker with keys.

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
        log: logging.Logger = logger,
        key_file: Path | None = None,
    ) -> None:
        self._settings = settings or ClientSettings()
        self._core = ClientCore(model, limits or StepLimits(), self._settings, endpoint)
        self._dealer = Dealer(parse_endpoint(endpoint), None if key_file is None else read_peer_key(key_file))
        self._supervisor = supervisor
        self._lock = threading.Lock()
        self._log = log
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
            if self._core.is_open:
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
        return self._core.model_switches

    @property
    def retries(self) -> int:
        """Number of retries after the death of a worker or model process while this client waited."""
        return self._core.retries

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
            jobs: The work, all of one kind; its items are numbered 0 to ``count`` - 1 across all jobs.
            count: The number of items.
            on_answer: Called with the number and the answer of each item as soon as it arrives.
            name_of: Returns the user's name for an item, for messages about an item that fails.
            on_progress: Called with the progress of the call at most twice a second; None computes no progress.

        Returns:
            The answers, by number: ``(loglikelihood, is_greedy)``, a loglikelihood, a text, or a description.

        Raises:
            UsageError: The client has been closed.
            BrokerUnavailable: No broker answers.
            NotAllowed: The broker does not allow this client's key, or requires one.
            WorkerUnavailable: The broker has had no worker for too long.
            ModelError: The model cannot be loaded or fails; the worker's traceback is attached.
            RequestError: One of the items cannot be answered.

        An error of a single item is raised after all other items have been answered.
        """
        answers: dict[int, Answer] = {}
        failures: dict[int, BirdieError] = {}
        jobs = self._core.split_jobs(list(jobs))
        estimate = None if on_progress is None else ProgressEstimator(jobs, time.monotonic())
        report_at = 0.0

        def act(actions: list[Action]) -> None:
            for action in actions:
                match action:
                    case Send(message):
                        self._dealer.send(encode(message))
                    case Deliver(items, received):
                        if estimate is not None:
                            estimate.answered(items)
                        answers.update(zip(items, received, strict=True))
                        if on_answer is not None:
                            for item, answer in zip(items, received, strict=True):
                                on_answer(item, answer)
                    case ReportProgress(computed):
                        if estimate is not None:
                            estimate.progressed(computed, time.monotonic())
                    case Log(level, text, once):
                        self._log_line(level, text, once=once)
                    case FailItem(item, error):
                        failures[item] = error
                        if estimate is not None:
                            estimate.answered([item])
                        if count > 1:
                            self._log_line("warning", f"{name_of(item)} has no answer: {error.message}")
                    case FailCall(BrokerUnavailable() as error) if (hint := self._dealer.handshake_hint) is not None:
                        raise BrokerUnavailable(f"{error.message}; {hint}")
                    case FailCall(error):
                        raise error

        with self._lock:
            if self._closed:
                raise UsageError("this client has been closed")
            try:
                act(self._core.begin(jobs, time.monotonic()))
                while not self._core.is_idle:
                    self._wait(act)
                    if on_progress is not None and estimate is not None and time.monotonic() >= report_at:
                        report_at = time.monotonic() + INTERVAL_S
                        on_progress(estimate.at(time.monotonic()))
                    if self._closed:
                        raise UsageError("this client was closed while it was waiting for answers")
            except BaseException:
                act(self._core.abandon())
                raise
        if failures:
            raise combine_failures(failures, count, len(answers), name_of)
        if len(answers) != count:
            raise ProtocolError(f"the broker answered {len(answers)} of {count} items")
        return [answers[item] for item in range(count)]

    def _wait(self, act: Callable[[list[Action]], None]) -> None:
        """Wait for messages for at most one poll interval, and pass the resulting actions to `act`."""
        started_at = time.monotonic()
        wait(self._dealer, _POLL_S)
        while (frame := self._dealer.receive()) is not None:
            act(self._core.received(self._decoded(frame), time.monotonic()))
        now = time.monotonic()
        stall_s = now - started_at - _POLL_S
        act(self._core.tick(now, stall_s if stall_s > _MIN_STALL_S else 0.0))
        if self._supervisor is not None:
            silent_s, missing_s = self._core.broker_silent_s(now), self._core.worker_missing_s()
            self._supervisor.check(Liveness(silent_s, missing_s, self._core.answered))

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
            self._log.log(logging.WARNING if level == "warning" else logging.INFO, text)


def combine_failures(failures: dict[int, BirdieError], count: int, answered: int, name_of: NameOf) -> BirdieError:
    """Return one error for all items that failed: the error of the first one, with the number of the others."""
    item, first = next(iter(failures.items()))
    if count == 1:
        return first
    others = f", and {len(failures) - 1} more failed (see above)" if len(failures) > 1 else ""
    text = f"{name_of(item)} has no answer{others}; {answered} of {count} requests were answered. {first.message}"
    combined = type(first)(text, remote_traceback=first.remote_traceback)
    combined.__cause__ = first.__cause__  # the user's own exception, if it was raised in this process
    return combined
