"""A model of the caller's own process, asked as a client asks one behind a broker: the same engine, no other process."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from birdie_zmq.client.client import Answer, NameOf, OnAnswer, OnProgress, answer_values, failure_of
from birdie_zmq.client.core import Job
from birdie_zmq.client.progress import Estimate
from birdie_zmq.engine.evaluator import ItemFailed
from birdie_zmq.engine.progress_delta import ProgressReporter
from birdie_zmq.errors import BirdieError, UsageError
from birdie_zmq.types import Answers, Level, ModelDescription, ModelSpec, StepLimits
from birdie_zmq.worker.engine_registry import DEFAULT, import_engine
from birdie_zmq.worker.model_loader import ModelSource, ServedModel, assemble, mesh_for, text_tokenizer

ORIGIN = "the caller's process"

_BETWEEN_S = 0.25
"""Between two looks at how far a call has come."""


class InProcessClient:
    """Answers work in this process. Calls from several threads follow one another.

    Args:
        spec: What results call the model, and the model_args that the engine reads.
        model: What a page's load_model may return.
        tokenizer: What a page's load_tokenizer may return.
        limits: What the user said of the rows of a step.
        max_failed_items: After so many items without an answer, the rest of a call is not waited for.
        engine: The engine, as `birdie_zmq.worker.engine_registry.find_engine` gives it.
        log: Where lines for the person at the prompt go.

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
        self._told: set[str] = set()
        # Compiled programs stay with this process: where its own are kept is for the caller to say.
        texts = text_tokenizer(spec, tokenizer)
        imported = import_engine(engine)
        loaded = assemble(spec, imported, ModelSource(ORIGIN, ""), texts, model, mesh=mesh_for(spec, imported))
        self._loaded: ServedModel | None = _told_apart(loaded, loaded.fingerprint)

    @property
    def has_fingerprint(self) -> bool:
        """Whether the weights are told from others by what the caller said, and not by chance."""
        return self._open().fingerprint is not None

    def describe(self) -> ModelDescription:
        """The model, with what has been computed so far."""
        loaded = self._open()
        for text in loaded.warnings:
            self._tell("warning", text)
        return loaded.describe()

    def update(self, params: Any, fingerprint: str | None) -> None:
        """Go on with other weights of the same form.

        Raises:
            UsageError: They have another form, or the client is closed.
        """
        with self._lock:
            loaded = self._open()
            loaded.backend.update(params)
            self._loaded = _told_apart(loaded, fingerprint)

    def close(self) -> None:
        """Let go of the model; a second time, do nothing."""
        with self._lock:
            self._loaded = None

    def run(
        self,
        jobs: Iterable[Job],
        count: int,
        on_answer: OnAnswer | None = None,
        name_of: NameOf = "item {}".format,
        on_progress: OnProgress | None = None,
    ) -> list[Answer]:
        """The answers to all items of some jobs, as `birdie_zmq.client.Client.run` gives them.

        Raises:
            UsageError: The client is closed.
            ModelError: The model does not compute.
            RequestError: One of the items cannot be answered as asked.

        An error that concerns one item alone is raised after all others have been answered.
        """
        answers: dict[int, Answer] = {}
        failures: dict[int, BirdieError] = {}

        jobs = list(jobs)

        with self._lock:
            loaded = self._open()
            estimate = Estimate(jobs, time.monotonic())
            advances = ProgressReporter(loaded.evaluator)
            asked_at = 0.0

            def deliver(given: dict[int, Answer]) -> None:
                estimate.answered(list(given))
                answers.update(given)
                if on_answer is not None:
                    for item, answer in given.items():
                        on_answer(item, answer)

            def come_on(item: int, *, at_once: bool = False) -> None:
                nonlocal asked_at
                now = time.monotonic()
                if on_progress is not None and (at_once or now - asked_at >= _BETWEEN_S):
                    asked_at = now
                    estimate.advanced(item, advances.since_last(), now)
                    on_progress(estimate.at(now))

            for job in jobs:
                left = job
                while left.items and len(failures) < self._max_failed_items:
                    listener = _Listener(left.items, deliver, come_on, self._tell)
                    try:
                        loaded.answer(left.work, self._limits, listener)
                    except ItemFailed as failure:
                        item = left.items[failure.index]
                        failures[item] = failure.error
                        if count > 1:
                            self._tell("warning", f"{name_of(item)} has no answer: {failure.error.message}")
                    waiting = [i for i, item in enumerate(left.items) if item not in answers and item not in failures]
                    left = Job(left.work.select(waiting), [left.items[i] for i in waiting])
                come_on(job.items[0], at_once=True)
            loaded.evaluator.rest()
        if failures:
            raise failure_of(failures, count, len(answers), name_of)
        return [answers[item] for item in range(count)]

    def _open(self) -> ServedModel:
        if self._loaded is None:
            raise UsageError("this model has been closed")
        return self._loaded

    def _tell(self, level: Level, text: str) -> None:
        """Log a line once, however often it is said."""
        if text not in self._told:
            self._told.add(text)
            self._log.log(logging.WARNING if level == "warning" else logging.INFO, text)


class _Listener:
    """Passes answers on by the numbers of their items."""

    def __init__(
        self,
        items: Sequence[int],
        deliver: Callable[[dict[int, Answer]], None],
        come_on: Callable[[int], None],
        tell: Callable[[Level, str], None],
    ) -> None:
        self._items = items
        self._deliver = deliver
        self._come_on = come_on
        self.notice = tell

    def answered(self, indices: Sequence[int], answers: Answers) -> None:
        items = [self._items[index] for index in indices]
        self._deliver(dict(zip(items, answer_values(answers), strict=True)))
        self._come_on(self._items[0])

    def compiling(self, detail: str) -> None:
        pass

    def running(self) -> None:
        pass

    def step(self) -> None:
        self._come_on(self._items[0])


def _told_apart(loaded: ServedModel, fingerprint: str | None) -> ServedModel:
    """The same model, known by the fingerprint of its weights, or where there is none by chance: no two are the same."""
    origin = ModelSource(ORIGIN, "" if fingerprint is not None else uuid.uuid4().hex)
    return replace(loaded, origin=origin, fingerprint=fingerprint)
