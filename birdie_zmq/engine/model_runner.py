"""A model as scoring and generation call it: its backend, the shapes of its steps, its counters and its clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.counters import Counters
from birdie_zmq.engine.events import CompilationFinished, Event, StepStarting
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import Buckets, Shape
from birdie_zmq.types import ComputeCounters, RunStatistics, StepLimits

T = TypeVar("T")


class IdleClock:
    """Sums the seconds in which the device was idle between two steps.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self.seconds = 0.0

    def busy(self) -> None:
        """Note that a step was submitted."""
        if self._since is not None:
            self.seconds += self._clock() - self._since
            self._since = None

    def idle(self) -> None:
        """Note that the last submitted step is done."""
        self._since = self._clock()

    def pause(self) -> None:
        """Stop counting until the next step, because there is no work."""
        self._since = None


class ModelRunner:
    """A loaded model with the counters of what it has computed.

    Args:
        backend: The model.
        max_length: The maximum length of a row, in tokens.
        clock: A monotonic clock, in seconds.

    Attributes:
        backend: The model.
        max_length: The maximum length of a row, in tokens.
        counters: What was computed so far.
        idle: The device's idle time. A device that waits for a compilation is idle too, but that time is counted as
            compilation.
    """

    def __init__(self, backend: Backend, max_length: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.backend = backend
        self.max_length = max_length
        self._clock = clock
        self.counters = Counters(shapes=set(backend.probe_shapes), possible_shapes=set(backend.probe_shapes))
        self.idle = IdleClock(self._seconds_now)
        self._busy_since: float | None = None
        self._traced_before = backend.tracing_seconds

    @property
    def statistics(self) -> RunStatistics:
        """All counts since the model was loaded."""
        return self.counters.statistics(
            compile_seconds=self.backend.compile_seconds,
            idle_seconds=self.idle.seconds,
            states_evicted=self.backend.states_evicted,
        )

    @property
    def computed(self) -> ComputeCounters:
        """The counts to report while work is in progress; may be read in another thread."""
        counters, since = self.counters, self._busy_since
        tracing = self.backend.tracing_seconds - self._traced_before
        seconds = counters.seconds + (0.0 if since is None else self._seconds_now() - since)
        return ComputeCounters(
            tokens=counters.tokens_computed,
            padding=counters.tokens_padding,
            generated=counters.tokens_generated,
            executables=len(counters.shapes),
            seconds=max(0.0, seconds - tracing),
            compile_seconds=self.backend.compile_seconds + tracing,
            requested=counters.tokens_requested,
            distinct=counters.tokens_distinct,
        )

    def buckets(self, mode: ExecutionMode, limits: StepLimits) -> Buckets:
        """Return the shapes of steps in an execution mode, for the backend's current budget and the user's limits."""
        backend = self.backend
        # A model's own score may compute the logits of all positions.
        vocab_size = backend.vocab_size if backend.makes_logits or mode.calls_score else 0
        buckets = Buckets(self.max_length, vocab_size, backend.budget, limits)
        self.counters.allow_shapes(mode.shapes(buckets))
        return buckets

    def call(self, shapes: Sequence[Shape], call: Callable[[], T]) -> Generator[Event, None, T]:
        """Announce a call of the model, make it, and return its result.

        Args:
            shapes: The shapes of the steps that the call computes.
            call: Calls the model.
        """
        new = self.counters.new_shapes(shapes)
        yield StepStarting(new)
        result = call()
        if new:
            yield CompilationFinished()
        return result

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time within the context as seconds of work."""
        self._busy_since = started = self._seconds_now()
        try:
            yield
        finally:
            self.counters.seconds += self._seconds_now() - started
            self._busy_since = None

    def _seconds_now(self) -> float:
        """Return the time of a clock that stops during compilation."""
        return self._clock() - self.backend.compile_seconds
