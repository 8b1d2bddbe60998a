"""A model that is asked: behind a broker that runs already, or one of the bench's own, as a run would start it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from birdie_zmq.client import Client
from birdie_zmq.client.embedded import CONNECT_S, EmbeddedProcesses
from birdie_zmq.errors import UnavailableError, UnsupportedRequest
from birdie_zmq.harness.model_args import RunArguments
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.bench.figures import LeftOut, Measured, difference
from birdie_zmq.tools.bench.sizing import Sizing
from birdie_zmq.tools.bench.workloads import Asked, Kind, Sizes, draw, fit, jobs_of, title
from birdie_zmq.types import ModelDescription
from birdie_zmq.worker.devices import device_of_lm_eval

logger = logging.getLogger("birdie_zmq.tools.bench")

_FIRST_DOCUMENTS = 8
_LEAST_S = 1e-3

Tell = Callable[[str], None]


class Bench:
    """Measures workloads, one after another.

    Args:
        arguments: What the model is, and where.
        seconds: How long a timed pass is to take, about.
        most_documents: The most documents of a pass, None for no bound.
        tell: Told what is done at the moment.

    Raises:
        UnavailableError: No broker or no worker answers.
        ModelError: The model cannot be loaded; the worker's traceback is attached.
    """

    def __init__(self, arguments: RunArguments, seconds: float, most_documents: int | None, tell: Tell) -> None:
        self._seconds = seconds
        self._most = most_documents
        self._tell = tell
        self._seed = 0
        self.sizes = Sizes()
        self._settings = ClientSettings() if arguments.endpoint else ClientSettings(connect_s=CONNECT_S)
        self._open = contextlib.ExitStack()
        try:
            self._client = self._connected(arguments)
            tell(f"loading {arguments.model}")
            began = time.monotonic()
            self.description = self._client.describe()
            self.load_s = time.monotonic() - began
            """Seconds until the model was there; those of starting broker and worker are among them."""
            self.sizes = self._fitted()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session, and the broker and worker if they are the bench's own."""
        self._open.close()

    def _connected(self, arguments: RunArguments) -> Client:
        """A client of the broker that model_args name, or of one of the bench's own."""
        embedded: EmbeddedProcesses | None = None
        endpoint = arguments.endpoint
        if endpoint is None:
            embedded = EmbeddedProcesses(arguments.api, device_of_lm_eval(arguments.device), engine=arguments.engine)
            self._open.callback(embedded.close)
            endpoint = embedded.endpoint
        client = Client(
            endpoint,
            arguments.model,
            arguments.limits,
            self._settings,
            supervisor=embedded,
            log=logger,
            key_file=arguments.key_file,
        )
        self._open.callback(client.close)
        return client

    def measure(self, kind: Kind) -> Measured | LeftOut:
        """Pass a workload with more and more documents, other ones each time, until a pass counts.

        Raises:
            ModelError: The model does not compute.
            UnavailableError: Its process ended, so its counts are lost.
        """
        if kind == "fewshot" and not self.sizes.shots:
            length = self.description.max_length
            return LeftOut(
                kind, f"the model reads {length:,} tokens at once, which an example and a question do not fit"
            )
        name = title(kind, self.sizes)
        begun = self.description.report
        sizing = Sizing(self._seconds, 1 if kind == "long" else _FIRST_DOCUMENTS, self._most)
        while True:
            documents, before = sizing.documents, self.description.report
            self._tell(f"{name}: {documents:,} documents")
            try:
                asked, wall_s = self._pass(kind, documents)
            except UnsupportedRequest as error:
                return LeftOut(kind, error.message)
            counted = difference(before, self.description.report)
            if sizing.counts(wall_s, bool(counted.compile_seconds)):
                return Measured(kind, name, documents, asked.requests, wall_s, counted, difference(begun, before))

    def _pass(self, kind: Kind, documents: int) -> tuple[Asked, float]:
        """Ask other texts than ever before; what was asked, and how long it took, without compiling."""
        self._seed += 1
        asked = draw(kind, documents, self._seed, self.sizes)
        jobs = list(jobs_of(kind, asked, self.sizes, self._settings))
        before = self.description
        began = time.monotonic()
        self._client.run(jobs, asked.requests)
        wall_s = time.monotonic() - began
        self.description = self._client.describe()
        if _process(before) != _process(self.description):
            raise UnavailableError(
                "another process has the model now, so what was counted is lost: it ended, or several workers of this "
                "broker have the model; measure again, without port= or endpoint= in model_args"
            )
        counted = difference(before.report, self.description.report)
        if counted.requests != asked.requests:
            logger.warning(
                "the model's process answered %d requests while %d were asked: it serves other runs too, or other workers "
                "have the model, and figures are of all of them",
                counted.requests,
                asked.requests,
            )
        return asked, max(_LEAST_S, wall_s - counted.compile_seconds)

    def _fitted(self) -> Sizes:
        """Sizes by what the tokenizer makes of a few questions."""
        before = self.description.report.tokens_requested
        asked, _ = self._pass("choice", 1)
        tokens = self.description.report.tokens_requested - before
        return fit(self.description.max_length, tokens / asked.characters)


def _process(description: ModelDescription) -> tuple[int, int]:
    return description.process_id, description.start_count
