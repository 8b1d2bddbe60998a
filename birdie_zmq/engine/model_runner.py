"""A model as scoring and generation call it: its backend, the shapes of its steps, its counters and its clocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.counters import Counters
from birdie_zmq.engine.events import CompilationFinished, Event, StepStarting
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import Buckets, Shape
from birdie_zmq.types import ComputeCounters, RunStatistics, StepLimits

T = TypeVar("T")


class WorkClock:
    """Sums the seconds of computing and of idling, while there is work.

    There is work from the arrival of a request until its answers are ready. The device computes from the submission of a
    step until its result has been fetched. It is idle in the rest of that time, while the host encodes texts, plans steps
    or sends answers. So the two add up to the time in which there is work, by definition. Without work nothing is
    counted. The methods may be called in any thread.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._unfinished = 0
        self._is_computing = False
        self._since = 0.0
        self._computing = 0.0
        self._idle = 0.0

    def arrived(self) -> None:
        """Note that work has arrived."""
        with self._lock:
            self._count()
            self._unfinished += 1

    def finished(self) -> None:
        """Note that work that has arrived is done."""
        with self._lock:
            self._count()
            self._unfinished -= 1

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count the context as work, which may be part of other work."""
        self.arrived()
        try:
            yield
        finally:
            self.finished()

    def computing(self) -> None:
        """Note that a step is submitted."""
        self._change(is_computing=True)

    def idle(self) -> None:
        """Note that no submitted step is left whose result has not been fetched."""
        self._change(is_computing=False)

    @property
    def seconds(self) -> tuple[float, float]:
        """The seconds of computing and of idling so far."""
        with self._lock:
            self._count()
            # Seconds of compilation are known at its end: until then, the clock has run on, and steps back later.
            return max(0.0, self._computing), max(0.0, self._idle)

    def _change(self, *, is_computing: bool) -> None:
        with self._lock:
            self._count()
            self._is_computing = is_computing

    def _count(self) -> None:
        """Count the time since the last change."""
        now = self._clock()
        if self._unfinished:
            if self._is_computing:
                self._computing += now - self._since
            else:
                self._idle += now - self._since
        self._since = now


class ModelRunner:
    """A loaded model with the counters of what it has computed.

    Args:
        backend: The model.
        max_length: The maximum length of a row, in tokens.
        clock: A monotonic clock, in seconds.
        compiled_before: The shapes that the backend was called with before, if its weights have been swapped.

    Attributes:
        backend: The model.
        max_length: The maximum length of a row, in tokens.
        counters: What was computed so far.
        clock: Splits the time in which there is work into computing and idle. A device that waits for a compilation is
            idle too, but that time is counted as compilation.
    """

    def __init__(
        self,
        backend: Backend,
        max_length: int,
        clock: Callable[[], float] = time.monotonic,
        compiled_before: frozenset[Shape] = frozenset(),
    ) -> None:
        self.backend = backend
        self.max_length = max_length
        self._seconds = clock
        probed = set(backend.probe_shapes)
        self.counters = Counters(shapes=probed, possible_shapes=set(probed), compiled_before=compiled_before)
        self._compiled_before = backend.compile_seconds + backend.tracing_seconds
        self.clock = WorkClock(self._seconds_without_compilation)

    def with_new_counters(self) -> ModelRunner:
        """Return a runner of the same backend that counts from 0; the shapes that are compiled are not new to it."""
        compiled = self.counters.compiled_before | self.counters.shapes
        return ModelRunner(self.backend, self.max_length, self._seconds, compiled)

    @property
    def compile_seconds(self) -> float:
        """Seconds of compilation and of tracing since the model was loaded."""
        return self.backend.compile_seconds + self.backend.tracing_seconds - self._compiled_before

    def statistics(self, tokenizer_seconds: float) -> RunStatistics:
        """Return all counts since the model was loaded.

        Args:
            tokenizer_seconds: The seconds in which the tokenizer was called.
        """
        computing, idle = self.clock.seconds
        return self.counters.statistics(
            step_seconds=computing,
            compile_seconds=self.compile_seconds,
            idle_seconds=idle,
            tokenizer_seconds=tokenizer_seconds,
            states_evicted=self.backend.states_evicted,
        )

    @property
    def computed(self) -> ComputeCounters:
        """The counts to report while work is in progress; may be read in another thread."""
        counters = self.counters
        computing, idle = self.clock.seconds
        return ComputeCounters(
            tokens=counters.tokens_computed,
            padding=counters.tokens_padding,
            generated=counters.tokens_generated,
            executables=len(counters.shapes - counters.compiled_before),
            seconds=computing,
            compile_seconds=self.compile_seconds,
            idle_seconds=idle,
            requested=counters.tokens_requested,
            distinct=counters.tokens_distinct,
        )

    def buckets(self, mode: ExecutionMode, limits: StepLimits, max_tokens: int | None = None) -> Buckets:
        """Return the shapes of steps in an execution mode.

        Args:
            mode: The execution mode.
            limits: The limits that the user set for the rows of a step.
            max_tokens: The maximum number of tokens of a step; None for that of the backend's current budget.
        """
        backend = self.backend
        budget = backend.budget
        if max_tokens is not None:
            budget = replace(budget, tokens=min(budget.tokens, max_tokens))
        # A model's own score may compute the logits of all positions.
        vocab_size = backend.vocab_size if backend.makes_logits or mode.calls_score else 0
        buckets = Buckets(self.max_length, vocab_size, budget, limits)
        self.counters.allow_shapes(mode.shapes(buckets))
        return buckets

    def call(self, shapes: Sequence[Shape], call: Callable[[], T]) -> Generator[Event, None, T]:
        """Announce a call of the model, make it, and return its result.

        The device computes from now on; the caller notes in the `clock` when it has fetched the result.

        Args:
            shapes: The shapes of the steps that the call computes.
            call: Calls the model.
        """
        new = self.counters.new_shapes(shapes)
        yield StepStarting(new)
        self.clock.computing()
        result = call()
        if new:
            yield CompilationFinished()
        return result

    def _seconds_without_compilation(self) -> float:
        """Return the time of a clock that stops during compilation."""
        return self._seconds() - self.compile_seconds
