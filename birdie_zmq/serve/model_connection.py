"""The connection to the model: clients of a broker, or of an embedded broker and worker, and whether they answer."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from birdie_zmq.client import Client
from birdie_zmq.client.client import Liveness, Supervisor
from birdie_zmq.client.embedded import CONNECT_S
from birdie_zmq.errors import BirdieError, UnavailableError
from birdie_zmq.harness.connection import start_processes
from birdie_zmq.harness.model_args import RunArguments
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import ModelDescription

logger = logging.getLogger("birdie_zmq.serve")

_NEVER = 2**31
_WORKER_WAIT_S = 60.0


class SharedSupervisor:
    """A supervisor that several clients check, each in its own thread, and that sees the answers of all of them.

    Args:
        supervisor: The supervisor.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._lock = threading.Lock()
        self._answered: dict[int, int] = {}

    def for_client(self) -> Supervisor:
        """Return the supervisor of one more client."""
        number = len(self._answered)
        self._answered[number] = 0
        return _ClientSupervisor(lambda liveness: self._check(number, liveness))

    def _check(self, number: int, liveness: Liveness) -> None:
        with self._lock:
            self._answered[number] = liveness.answered
            self._supervisor.check(replace(liveness, answered=sum(self._answered.values())))


class _ClientSupervisor:
    def __init__(self, check: Callable[[Liveness], None]) -> None:
        self._check = check

    def check(self, liveness: Liveness) -> None:
        self._check(liveness)


class ModelConnection:
    """Clients of one model, and what is known of it.

    Args:
        arguments: The model, and the broker or the options of the embedded worker.

    Raises:
        UsageError: The endpoint or the key file is invalid or cannot be read.
    """

    def __init__(self, arguments: RunArguments) -> None:
        self._arguments = arguments
        self._resources = contextlib.ExitStack()
        self._supervisor: SharedSupervisor | None = None
        self._endpoint = arguments.endpoint or ""
        self._probed: Client | None = None
        self._lock = threading.Lock()
        self._error: BirdieError | None = None
        self._description: ModelDescription | None = None
        self._seen_at = 0.0
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            if arguments.endpoint is None:
                embedded = start_processes(arguments)
                self._resources.callback(embedded.close)
                self._supervisor = SharedSupervisor(embedded)
                self._endpoint = embedded.endpoint
            self._probed = self.client()
            on_failure.pop_all()

    @property
    def is_embedded(self) -> bool:
        """Whether the broker and the worker are those of this server."""
        return self._supervisor is not None

    def client(self) -> Client:
        """Return a client of its own session, which one thread may use."""
        arguments = self._arguments
        settings = ClientSettings(
            connect_s=CONNECT_S if self.is_embedded else ClientSettings.connect_s,
            worker_wait_s=_WORKER_WAIT_S,
            # A prompt that fails is no reason to give up those of other clients.
            max_failed_items=_NEVER,
        )
        supervisor = None if self._supervisor is None else self._supervisor.for_client()
        client = Client(
            self._endpoint,
            arguments.model,
            arguments.limits,
            settings,
            supervisor,
            arguments.key_file,
            arguments.allow_group_readable_keys,
        )
        return self._resources.enter_context(client)

    def close(self) -> None:
        """Close the clients, and end the embedded processes."""
        self._resources.close()

    @property
    def description(self) -> ModelDescription | None:
        """The model, with its last statistics; None before it is loaded."""
        return self._description

    @property
    def error(self) -> BirdieError | None:
        """Why the model cannot be used now; None if it can, or is being loaded for the first time."""
        return self._error

    def probe(self) -> None:
        """Ask for the description of the model, which loads it if necessary; called in one thread at a time."""
        assert self._probed is not None
        with self._lock:
            try:
                self._description = self._probed.describe()
            except BirdieError as error:
                self.failed(error)
            else:
                self._seen_at = time.monotonic()
                self._recovered()

    def failed(self, error: BirdieError) -> None:
        """Note that a call failed; only a process that does not answer makes the model unavailable."""
        if isinstance(error, UnavailableError) or self._description is None:
            if self._error is None:
                logger.warning("the model is not available: %s", error.message)
            self._error = error
        else:
            logger.warning("a call failed: %s", error.code)

    def answered(self) -> None:
        """Note that a call was answered."""
        self._recovered()

    def _recovered(self) -> None:
        if self._error is not None:
            logger.info("the model is available again")
        self._error = None
