"""Measures workloads through a client, as a run: with a running broker, or with an embedded broker and worker."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from birdie_zmq.errors import UnavailableError, UnsupportedRequest
from birdie_zmq.harness.connection import connect
from birdie_zmq.harness.model_args import RunArguments
from birdie_zmq.settings import ClientSettings
from birdie_zmq.tools.bench.figures import Measurement, SkippedWorkload, difference
from birdie_zmq.tools.bench.sizing import PassSizer
from birdie_zmq.tools.bench.workloads import RequestSet, Sizes, Workload, fit_sizes, make_jobs, make_requests, title
from birdie_zmq.types import ModelDescription

logger = logging.getLogger("birdie_zmq.tools.bench")

_FIRST_DOCUMENTS = 8
_MIN_S = 1e-3

OnStatus = Callable[[str], None]


class Bench:
    """A bench that measures one workload after another.

    Args:
        arguments: The arguments of the run: model, broker, engine and limits.
        seconds: Approximate duration of a timed pass.
        max_documents: Maximum number of documents per pass, None for no limit.
        on_status: Called with a short text about the current activity.

    Raises:
        UnavailableError: No broker or no worker answers.
        ModelError: The model cannot be loaded; the worker's traceback is attached.
    """

    def __init__(self, arguments: RunArguments, seconds: float, max_documents: int | None, on_status: OnStatus) -> None:
        self._seconds = seconds
        self._max_documents = max_documents
        self._on_status = on_status
        self._seed = 0
        self.sizes = Sizes()
        self._resources = contextlib.ExitStack()
        try:
            self._client, _ = connect(arguments, None, self._resources)
            on_status(f"loading {arguments.model}")
            started = time.monotonic()
            self.description = self._client.describe()
            self.load_s = time.monotonic() - started
            """Seconds until the model was loaded, including the start of the broker and the worker."""
            self.sizes = self._fit_sizes()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the session with the broker, and stop the embedded broker and worker if there are any."""
        self._resources.close()

    def measure(self, workload: Workload) -> Measurement | SkippedWorkload:
        """Run passes with more and more documents, new ones each time, until a pass is accepted.

        Raises:
            ModelError: The model fails to compute.
            UnavailableError: The model process ended, so its counts are lost.
        """
        if workload == "fewshot" and not self.sizes.shots:
            length = self.description.max_length
            return SkippedWorkload(
                workload, f"one example and a question do not fit into the model's maximum length of {length:,} tokens"
            )
        name = title(workload, self.sizes)
        initial = self.description.report
        sizer = PassSizer(self._seconds, 1 if workload == "long" else _FIRST_DOCUMENTS, self._max_documents)
        while True:
            documents, before = sizer.documents, self.description.report
            self._on_status(f"{name}: {documents:,} documents")
            try:
                requests, wall_s = self._run_pass(workload, documents)
            except UnsupportedRequest as error:
                return SkippedWorkload(workload, error.message)
            report = difference(before, self.description.report)
            if sizer.accepts(wall_s, bool(report.compile_seconds)):
                warmup = difference(initial, before)
                return Measurement(workload, name, documents, requests.requests, wall_s, report, warmup)

    def _run_pass(self, workload: Workload, documents: int) -> tuple[RequestSet, float]:
        """Run one pass with new texts; return its requests and its duration without compilation."""
        self._seed += 1
        requests = make_requests(workload, documents, self._seed, self.sizes)
        jobs = list(make_jobs(workload, requests, self.sizes, ClientSettings()))
        before = self.description
        started = time.monotonic()
        self._client.run(jobs, requests.requests)
        wall_s = time.monotonic() - started
        self.description = self._client.describe()
        if _process(before) != _process(self.description):
            raise UnavailableError(
                "another process serves the model now, so the counts are lost: the model process ended, or several workers "
                "of this broker have the model; measure again without port= or endpoint= in model_args"
            )
        report = difference(before.report, self.description.report)
        if report.requests != requests.requests:
            logger.warning(
                "the model process answered %d requests, but the bench sent %d: it serves other runs too, or other workers "
                "have the model, and the figures include all of them",
                report.requests,
                requests.requests,
            )
        return requests, max(_MIN_S, wall_s - report.compile_seconds)

    def _fit_sizes(self) -> Sizes:
        """Return sizes that fit the model, from the number of tokens of a few questions."""
        before = self.description.report.tokens_requested
        requests, _ = self._run_pass("choice", 1)
        tokens = self.description.report.tokens_requested - before
        return fit_sizes(self.description.max_length, tokens / requests.characters)


def _process(description: ModelDescription) -> tuple[int, int]:
    return description.process_id, description.start_count
