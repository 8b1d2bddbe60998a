"""Scoring: run the steps of a plan, one ahead of the device, and sum the log-probabilities of each request.

Each step is submitted before the scores of the previous one are fetched, so that the device does not wait for the host.
If a step does not fit into device memory, the budget of steps is halved, and the requests without a score are planned
again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import Backend, PendingScores, TokenScores
from birdie_zmq.engine.counters import Counters
from birdie_zmq.engine.planning.cost_model import step_cost
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import ScoredSequence, Step
from birdie_zmq.errors import OutOfDeviceMemory


class FinishedSequences(NamedTuple):
    """Sequences whose scores are complete.

    Attributes:
        numbers: The indices of n sequences.
        loglikelihoods: float64[n], the sum of the log-probabilities of each sequence's scored tokens, in nats.
        greedy: bool[n], whether greedy decoding generates all scored tokens of a sequence.
    """

    numbers: list[int]
    loglikelihoods: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]


class NonFiniteScore(Exception):
    """The logits of a scored or generated token hold NaN or plus infinity, or all are minus infinity."""

    def __init__(self, number: int) -> None:
        super().__init__(f"request {number}")
        self.number = number


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


def score(
    backend: Backend,
    mode: ExecutionMode,
    items: Sequence[ScoredSequence],
    make_buckets: Callable[[], Buckets],
    on_step: Callable[[Step], AbstractContextManager[None]],
    counters: Counters,
    idle: IdleClock,
    out_of_memory: Callable[[OutOfDeviceMemory], None],
) -> Iterator[FinishedSequences]:
    """Score sequences; after each step, yield those that are complete.

    Args:
        backend: The model.
        mode: How the sequences are scored: one of the backend's two modes.
        items: The sequences.
        make_buckets: Returns the shapes of steps for the backend's current budget.
        on_step: Makes the context that is entered around the submission of each step.
        counters: Counts what is planned and what is done.
        idle: Measures the device's idle time.
        out_of_memory: Called after the budget of steps has been halved.

    Raises:
        NonFiniteScore: A sequence cannot be scored.
        OutOfDeviceMemory: Not even the smallest steps fit into device memory.
    """
    remaining = np.array([1 if mode.calls_score else item.count for item in items])
    while (remaining > 0).any():
        numbers = np.flatnonzero(remaining)
        pending_items = [items[int(number)] for number in numbers]
        sums = np.zeros(len(pending_items))
        greedy = np.ones(len(pending_items), np.bool_)
        left = remaining[numbers]
        buckets = make_buckets()
        steps = mode.group(pending_items).plan(buckets, backend.cached_prefixes())
        counters.plan(sum(step_cost(step, backend.budget) for step in steps), (step.shape for step in steps))
        try:
            for step, scores in _pipelined(backend, steps, on_step, idle):
                counters.complete(step_cost(step, backend.budget))
                if not scores.finite.all():
                    raise NonFiniteScore(int(numbers[step.owners[int(np.argmin(scores.finite))]]))
                np.add.at(sums, step.owners, scores.logprobs)  # summed in float64
                np.logical_and.at(greedy, step.owners, scores.greedy)
                np.subtract.at(left, step.owners, 1)
                touched = np.unique(step.owners)
                done = touched[left[touched] == 0]
                if len(done):
                    remaining[numbers[done]] = 0
                    yield FinishedSequences([int(number) for number in numbers[done]], sums[done], greedy[done])
        except OutOfDeviceMemory as error:
            if not backend.halve_budget():
                raise
            out_of_memory(error)


def _pipelined(
    backend: Backend,
    steps: Sequence[Step],
    on_step: Callable[[Step], AbstractContextManager[None]],
    idle: IdleClock,
) -> Iterator[tuple[Step, TokenScores]]:
    backend.start_plan(steps)
    previous: tuple[Step, PendingScores] | None = None
    for step in steps:
        with on_step(step):
            pending = backend.submit(step)
        idle.busy()
        if previous is not None:
            yield previous[0], previous[1].result()
        previous = step, pending
    if previous is not None:
        scores = previous[1].result()
        idle.idle()
        yield previous[0], scores
