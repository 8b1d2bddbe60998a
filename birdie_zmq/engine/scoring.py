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

from birdie_zmq.engine.backend import Backend, ExecutionMode, PendingScores, TokenScores
from birdie_zmq.engine.counters import Counters
from birdie_zmq.engine.planning.cost_model import step_cost
from birdie_zmq.engine.planning.fork_planner import chunk_lengths, plan_forks
from birdie_zmq.engine.planning.row_planner import plan_pairs, plan_rows
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import Extend, Fork, ScoredSequence, Step
from birdie_zmq.engine.planning.tree_planner import plan_trees, row_lengths
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


def plan_scoring(backend: Backend, items: Sequence[ScoredSequence], buckets: Buckets) -> list[Step]:
    """Plan the steps that score sequences, by the backend's execution mode and its cached prefixes."""
    if backend.execution_mode == "rows":
        return plan_rows(items, buckets)
    planner = plan_trees if backend.execution_mode == "branches" else plan_forks
    capacity = 0
    while True:  # a plan may only start from states with capacity for all tokens that it appends to them
        steps = planner(items, buckets, backend.cached_prefixes(capacity))
        needed = max((step.kind.capacity for step in steps if isinstance(step.kind, Extend | Fork)), default=0)
        if needed <= capacity or not any(isinstance(step.kind, Extend) and step.kind.before for step in steps):
            return steps
        capacity = needed


def possible_shapes(execution_mode: ExecutionMode, buckets: Buckets) -> frozenset[tuple[int, int]]:
    """Return every ``(rows, length)`` that a scoring step can have."""
    if execution_mode in ("rows", "pairs"):
        return buckets.shapes
    if execution_mode == "branches":
        lengths = row_lengths(buckets)
        row_limits = {(length, buckets.rows_for(length)) for length in lengths}
    else:  # a prefix of any length is computed in chunks of these lengths
        lengths = chunk_lengths(buckets)
        row_limits = {(length, max(map(buckets.rows_for, buckets.geometric_lengths))) for length in lengths}
    shapes = {(1, length) for length in lengths}
    for length, rows in row_limits:
        shapes |= {(rows, length)} if buckets.limits.rows else {(count, length) for count in buckets.row_counts(rows)}
    return frozenset(shapes)


def score(
    backend: Backend,
    items: Sequence[ScoredSequence],
    make_buckets: Callable[[], Buckets],
    on_step: Callable[[Step], AbstractContextManager[None]],
    counters: Counters,
    idle: IdleClock,
    out_of_memory: Callable[[OutOfDeviceMemory], None],
    *,
    as_pairs: bool = False,
) -> Iterator[FinishedSequences]:
    """Score sequences; after each step, yield those that are complete.

    Args:
        backend: The model.
        items: The sequences.
        make_buckets: Returns the shapes of steps for the backend's current budget.
        on_step: Makes the context that is entered around the submission of each step.
        counters: Counts what is planned and what is done.
        idle: Measures the device's idle time.
        out_of_memory: Called after the budget of steps has been halved.
        as_pairs: Whether the model's own function scores each sequence as a whole.

    Raises:
        NonFiniteScore: A sequence cannot be scored.
        OutOfDeviceMemory: Not even the smallest steps fit into device memory.
    """
    remaining = np.array([1 if as_pairs else item.count for item in items])
    while (remaining > 0).any():
        numbers = np.flatnonzero(remaining)
        pending_items = [items[int(number)] for number in numbers]
        sums = np.zeros(len(pending_items))
        greedy = np.ones(len(pending_items), np.bool_)
        left = remaining[numbers]
        buckets = make_buckets()
        steps = plan_pairs(pending_items, buckets) if as_pairs else plan_scoring(backend, pending_items, buckets)
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
