"""A client of a model in the caller's own process: the interface of `birdie_zmq.client.Client`, without broker or worker.

The same engine computes the answers.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from birdie_zmq.client.actions import Deliver, DeliverParts, FailItem
from birdie_zmq.client.collector import CallEvent, collect
from birdie_zmq.client.job import Job
from birdie_zmq.client.progress import INTERVAL_S, Progress, ProgressEstimator
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.events import Answered, CompilationFinished, ItemFailed, Notice, PartlyAnswered, StepStarting
from birdie_zmq.engine.model_api import CheckpointFingerprint
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.errors import UsageError
from birdie_zmq.types import Answer, Level, ModelDescription, ModelSpec, StepLimits
from birdie_zmq.worker.engine_registry import DEFAULT, import_engine
from birdie_zmq.worker.model_arguments import parse_arguments
from birdie_zmq.worker.model_loader import assemble
from birdie_zmq.worker.served_model import ModelOrigin, ServedModel

logger = logging.getLogger("lm_eval.birdie_zmq")

ORIGIN = "the caller's process"


class InProcessClient:
    """A client that answers requests in this process. Calls from several threads run one after another.

    Args:
        spec: The name of the model in results, and the model_args that the engine reads.
        model: Any value that ``load_model`` of a user module may return.
        tokenizer: Any value that ``load_tokenizer`` of a user module may return.
        limits: Limits of the rows per step.
        max_failed_items: Number of failed items after which the rest of a call is not computed.
        engine: The engine, as `birdie_zmq.worker.engine_registry.find_engine` returns it.

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
    ) -> None:
        self._limits = limits
        self._max_failed_items = max_failed_items
        self._lock = threading.Lock()
        self._logged: set[str] = set()
        # No compile cache directory is set: in its own process, the caller decides where executables are cached.
        arguments = parse_arguments(spec)
        adapter = TokenizerAdapter(tokenizer, arguments.add_bos_token, arguments.prefix_token_id)
        imported = import_engine(engine)
        origin = ModelOrigin(spec=spec, arguments=arguments, engine=imported, api=ORIGIN, api_sha256="")
        served = assemble(origin, adapter, model, imported.make_mesh(arguments.mesh))
        self._served: ServedModel | None = _with_fingerprint(served, served.fingerprint)

    @property
    def has_fingerprint(self) -> bool:
        """Whether the caller identified the weights with a fingerprint; otherwise their identity is random."""
        return not self._served_model().origin.api_sha256

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
            served.evaluator.forget_scores()
            self._served = _with_fingerprint(served, fingerprint)

    def close(self) -> None:
        """Release the model. Further calls do nothing."""
        with self._lock:
            self._served = None

    def run(self, jobs: Iterable[Job], count: int) -> list[Answer]:
        """Return the answers to all items of the jobs, as `birdie_zmq.client.Client.run`."""
        return collect(self.stream(jobs), count)

    def stream(self, jobs: Iterable[Job], *, with_progress: bool = False) -> Generator[CallEvent, None, None]:
        """Compute jobs, and yield the answers to their items, as `birdie_zmq.client.Client.stream`.

        Raises:
            UsageError: The client is closed.
            ModelError: The model fails to compute.
        """
        jobs = list(jobs)
        with self._lock, self._served_model().evaluator.clock.work():
            served = self._served_model()
            progress = _Progress(served.evaluator, jobs) if with_progress else None
            failed_items = 0
            for job in jobs:
                settled: set[int] = set()
                while len(settled) < len(job.items) and failed_items < self._max_failed_items:
                    remaining = job.select([i for i, item in enumerate(job.items) if item not in settled])
                    try:
                        yield from self._compute(served, remaining, settled, progress)
                    except ItemFailed as failure:
                        failed_items += 1
                        item = remaining.items[failure.index]
                        settled.add(item)
                        yield FailItem(item, failure.error)
            if progress is not None:
                yield progress.report()

    def _compute(
        self, served: ServedModel, job: Job, settled: set[int], progress: _Progress | None
    ) -> Iterator[CallEvent]:
        """Compute a job, yield its answers, and add the items that are answered to `settled`."""
        with contextlib.closing(served.answer(job.work, self._limits)) as events:
            for event in events:
                match event:
                    case Notice(level=level, text=text):
                        self._log_once(level, text)
                    case Answered(indices=indices, answers=answers):
                        items = [job.items[index] for index in indices]
                        settled.update(items)
                        if progress is not None:
                            progress.estimate.answered(items)
                        yield Deliver(items, list(answers))
                    case PartlyAnswered(indices=indices, parts=parts):
                        yield DeliverParts([job.items[index] for index in indices], list(parts))
                    case StepStarting() | CompilationFinished():
                        pass
                if progress is not None and progress.is_due:
                    yield progress.report()

    def _served_model(self) -> ServedModel:
        if self._served is None:
            raise UsageError("this model has been closed")
        return self._served

    def _log_once(self, level: Level, text: str) -> None:
        """Log a message unless it has been logged before."""
        if text not in self._logged:
            self._logged.add(text)
            logger.log(logging.WARNING if level == "warning" else logging.INFO, text)


class _Progress:
    """The progress of a call.

    Args:
        evaluator: Counts what is computed.
        jobs: The jobs of the call.
    """

    def __init__(self, evaluator: Evaluator, jobs: Sequence[Job]) -> None:
        self.estimate = ProgressEstimator(jobs, time.monotonic())
        self._evaluator = evaluator
        self._reported = evaluator.computed
        self._reported_at = -math.inf

    @property
    def is_due(self) -> bool:
        """Whether the last report is long ago."""
        return time.monotonic() - self._reported_at >= INTERVAL_S

    def report(self) -> Progress:
        """Return the progress with what was computed since the last report."""
        now = time.monotonic()
        before, self._reported, self._reported_at = self._reported, self._evaluator.computed, now
        self.estimate.progressed(self._reported.since(before), now)
        return self.estimate.progress()


def _with_fingerprint(served: ServedModel, fingerprint: str | None) -> ServedModel:
    """Return the model identified by a fingerprint of its weights; without one, by a random unique identity.

    The fingerprint of a checkpoint is none: the weights may have been trained since they were loaded.
    """
    if isinstance(fingerprint, CheckpointFingerprint):
        fingerprint = None
    unique = "" if fingerprint is not None else uuid.uuid4().hex
    origin = replace(served.origin, api_sha256=unique)
    return replace(served, origin=origin, fingerprint=fingerprint or unique)
