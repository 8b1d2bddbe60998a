"""A client of a model in the caller's own process: the interface of `birdie_zmq.client.Client`, without broker or worker.

The same engine computes the answers.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from birdie_zmq.client.client import NameOf, OnAnswer, OnProgress, combine_failures
from birdie_zmq.client.core import Job
from birdie_zmq.client.progress import ProgressEstimator
from birdie_zmq.engine.evaluator import ItemFailed
from birdie_zmq.engine.model_api import CheckpointFingerprint
from birdie_zmq.engine.progress_reporter import ProgressReporter
from birdie_zmq.errors import BirdieError, UsageError
from birdie_zmq.types import Answer, Level, ModelDescription, ModelSpec, StepLimits
from birdie_zmq.worker.engine_registry import DEFAULT, import_engine
from birdie_zmq.worker.model_loader import ModelSource, ServedModel, adapt_tokenizer, assemble, mesh_for

ORIGIN = "the caller's process"

_PROGRESS_INTERVAL_S = 0.5
"""Minimum seconds between two progress reports of a call."""


class InProcessClient:
    """A client that answers requests in this process. Calls from several threads run one after another.

    Args:
        spec: The name of the model in results, and the model_args that the engine reads.
        model: Any value that ``load_model`` of a user module may return.
        tokenizer: Any value that ``load_tokenizer`` of a user module may return.
        limits: Limits of the rows per step.
        max_failed_items: Number of failed items after which the rest of a call is not computed.
        engine: The engine, as `birdie_zmq.worker.engine_registry.find_engine` returns it.
        log: Logger for messages to the user.

    Raises:
        ModelError: The model or the tokenizer cannot be used.
        EngineError: The engine's framework is not installed.
    """

    retries = 0
    model_switches = 0

    def __init__(
        self,
        spec: ModelSpec,
        model: object,
        tokenizer: object,
        limits: StepLimits,
        max_failed_items: int,
        engine: str = DEFAULT,
        log: logging.Logger | None = None,
    ) -> None:
        self._limits = limits
        self._max_failed_items = max_failed_items
        self._log = log or logging.getLogger(__name__)
        self._lock = threading.Lock()
        self._logged: set[str] = set()
        # No compile cache directory is set: in its own process, the caller decides where executables are cached.
        adapter = adapt_tokenizer(spec, tokenizer)
        imported = import_engine(engine)
        served = assemble(spec, imported, ModelSource(ORIGIN, ""), adapter, model, mesh=mesh_for(spec, imported))
        self._served: ServedModel | None = _with_fingerprint(served, served.fingerprint)

    @property
    def has_fingerprint(self) -> bool:
        """Whether the caller identified the weights with a fingerprint; otherwise their identity is random."""
        return not self._served_model().source.sha256

    def describe(self) -> ModelDescription:
        """Return the description of the model, with the statistics so far."""
        served = self._served_model()
        for text in served.warnings:
            self._log_once("warning", text)
        return served.describe()

    def update(self, params: Any, fingerprint: str | None) -> None:
        """Replace the weights by others with the same tree structure, shapes and dtypes.

        Raises:
            UsageError: The params have another structure, or the client is closed.
        """
        with self._lock:
            served = self._served_model()
            served.backend.update(params)
            self._served = _with_fingerprint(served, fingerprint)

    def close(self) -> None:
        """Release the model. Further calls do nothing."""
        with self._lock:
            self._served = None

    def run(
        self,
        jobs: Iterable[Job],
        count: int,
        on_answer: OnAnswer | None = None,
        name_of: NameOf = "item {}".format,
        on_progress: OnProgress | None = None,
    ) -> list[Answer]:
        """Return the answers to all items of the jobs, as `birdie_zmq.client.Client.run`.

        An error of a single item is raised after all other items have been answered.

        Raises:
            UsageError: The client is closed.
            ModelError: The model fails to compute.
            RequestError: An item cannot be answered.
        """
        answers: dict[int, Answer] = {}
        failures: dict[int, BirdieError] = {}

        jobs = list(jobs)

        with self._lock:
            served = self._served_model()
            estimate = ProgressEstimator(jobs, time.monotonic())
            reporter = ProgressReporter(served.evaluator)
            reported_at = 0.0

            def deliver(batch: dict[int, Answer]) -> None:
                estimate.answered(list(batch))
                answers.update(batch)
                if on_answer is not None:
                    for item, answer in batch.items():
                        on_answer(item, answer)

            def report_progress(_: int, *, force: bool = False) -> None:
                nonlocal reported_at
                now = time.monotonic()
                if on_progress is not None and (force or now - reported_at >= _PROGRESS_INTERVAL_S):
                    reported_at = now
                    estimate.progressed(reporter.since_last(), now)
                    on_progress(estimate.at(now))

            for job in jobs:
                remaining = job
                while remaining.items and len(failures) < self._max_failed_items:
                    listener = _Listener(remaining.items, deliver, report_progress, self._log_once)
                    try:
                        served.answer(remaining.work, self._limits, listener)
                    except ItemFailed as failure:
                        item = remaining.items[failure.index]
                        failures[item] = failure.error
                        if count > 1:
                            self._log_once("warning", f"{name_of(item)} has no answer: {failure.error.message}")
                    unanswered = [
                        i for i, item in enumerate(remaining.items) if item not in answers and item not in failures
                    ]
                    remaining = Job(remaining.work.select(unanswered), [remaining.items[i] for i in unanswered])
                report_progress(job.items[0], force=True)
            served.evaluator.pause_idle_clock()
        if failures:
            raise combine_failures(failures, count, len(answers), name_of)
        return [answers[item] for item in range(count)]

    def _served_model(self) -> ServedModel:
        if self._served is None:
            raise UsageError("this model has been closed")
        return self._served

    def _log_once(self, level: Level, text: str) -> None:
        """Log a message unless it has been logged before."""
        if text not in self._logged:
            self._logged.add(text)
            self._log.log(logging.WARNING if level == "warning" else logging.INFO, text)


class _Listener:
    """A listener that maps indices of the remaining work to item numbers, and passes answers and progress on."""

    def __init__(
        self,
        items: Sequence[int],
        deliver: Callable[[dict[int, Answer]], None],
        report_progress: Callable[[int], None],
        log: Callable[[Level, str], None],
    ) -> None:
        self._items = items
        self._deliver = deliver
        self._report_progress = report_progress
        self.notice = log

    def answered(self, indices: Sequence[int], answers: Sequence[Answer]) -> None:
        items = [self._items[index] for index in indices]
        self._deliver(dict(zip(items, answers, strict=True)))
        self._report_progress(self._items[0])

    def compiling(self, detail: str) -> None:
        pass

    def running(self) -> None:
        pass

    def step(self) -> None:
        self._report_progress(self._items[0])


def _with_fingerprint(served: ServedModel, fingerprint: str | None) -> ServedModel:
    """Return the model identified by a fingerprint of its weights; without one, by a random unique identity.

    The fingerprint of a checkpoint is none: the weights may have been trained since they were loaded.
    """
    if isinstance(fingerprint, CheckpointFingerprint):
        fingerprint = None
    unique = "" if fingerprint is not None else uuid.uuid4().hex
    return replace(served, source=ModelSource(ORIGIN, unique), fingerprint=fingerprint or unique)
