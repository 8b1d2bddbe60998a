"""Runs the steps of a plan, one ahead of the device, and adds up what each request scores.

A step is submitted before the scores of the one before it are fetched, so that the device does not wait for the host.
If the device has no room for a step, later steps are half as large, and what has no score yet is planned again.
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
from birdie_zmq.engine.planning.fork_planner import piece_lengths, plan_forks
from birdie_zmq.engine.planning.row_planner import plan_pairs, plan_rows
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import Extend, Fork, ScoredSequence, Step
from birdie_zmq.engine.planning.tree_planner import plan_trees, row_lengths
from birdie_zmq.errors import OutOfDeviceMemory


class FinishedSequences(NamedTuple):
    """Requests whose scores are complete: their numbers, sums in nats float64[n], and greediness bool[n]."""

    numbers: list[int]
    loglikelihoods: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]


class NonFiniteScore(Exception):
    """What a request is scored by is NaN or infinite."""

    def __init__(self, number: int) -> None:
        super().__init__(f"request {number}")
        self.number = number


class IdleClock:
    """Adds up the seconds in which the device had nothing to do between a first and a last step.

    Args:
        clock: Gives seconds; monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self.seconds = 0.0

    def busy(self) -> None:
        """A step was submitted."""
        if self._since is not None:
            self.seconds += self._clock() - self._since
            self._since = None

    def idle(self) -> None:
        """The last step that was submitted is done."""
        self._since = self._clock()

    def rest(self) -> None:
        """There is no work: nobody waits."""
        self._since = None


def plan_for(backend: Backend, items: Sequence[ScoredSequence], buckets: Buckets) -> list[Step]:
    """The steps for requests, by what the model can do, from the states that are there."""
    if backend.ability == "rows":
        return plan_rows(items, buckets)
    planner = plan_trees if backend.ability == "branches" else plan_forks
    room = 0
    while True:  # a plan may start only from states that have the room for what it reads
        steps = planner(items, buckets, backend.known(room))
        needed = max((step.how.room for step in steps if isinstance(step.how, Extend | Fork)), default=0)
        if needed <= room or not any(isinstance(step.how, Extend) and step.how.before for step in steps):
            return steps
        room = needed


def possible_shapes(ability: ExecutionMode, buckets: Buckets) -> frozenset[tuple[int, int]]:
    """Every ``(rows, length)`` that a step of scoring can have."""
    if ability in ("rows", "pairs"):
        return buckets.shapes
    if ability == "branches":
        lengths = row_lengths(buckets)
        most = {(length, buckets.rows_for(length)) for length in lengths}
    else:  # stems of any length are read in these pieces
        lengths = piece_lengths(buckets)
        most = {(length, max(map(buckets.rows_for, buckets.grown_lengths))) for length in lengths}
    shapes = {(1, length) for length in lengths}
    for length, rows in most:
        shapes |= {(rows, length)} if buckets.limits.rows else {(count, length) for count in buckets.row_counts(rows)}
    return frozenset(shapes)


def score(
    backend: Backend,
    items: Sequence[ScoredSequence],
    make_buckets: Callable[[], Buckets],
    counted: Callable[[Step], AbstractContextManager[None]],
    tally: Counters,
    idle: IdleClock,
    out_of_memory: Callable[[OutOfDeviceMemory], None],
    *,
    as_pairs: bool = False,
) -> Iterator[FinishedSequences]:
    """Score requests; after each step, those that are complete.

    Args:
        backend: The model.
        items: The requests.
        make_buckets: The shapes of steps by the backend's budget as it is now.
        counted: Entered around the submission of each step.
        tally: Counts what is planned and what is done.
        idle: Told when the device begins and ceases to be busy.
        out_of_memory: Told when steps are made smaller.
        as_pairs: Whether the model's own function scores the requests, whole.

    Raises:
        NotFinite: A request cannot be scored.
        OutOfDeviceMemory: The device has no room even for the smallest steps.
    """
    remaining = np.array([1 if as_pairs else item.count for item in items])
    while (remaining > 0).any():
        numbers = np.flatnonzero(remaining)
        chosen = [items[int(number)] for number in numbers]
        sums = np.zeros(len(chosen))
        greedy = np.ones(len(chosen), np.bool_)
        left = remaining[numbers]
        buckets = make_buckets()
        steps = plan_pairs(chosen, buckets) if as_pairs else plan_for(backend, chosen, buckets)
        tally.plan(sum(step_cost(step, backend.budget) for step in steps), (step.shape for step in steps))
        try:
            for step, scores in _pipelined(backend, steps, counted, idle):
                tally.read(step_cost(step, backend.budget))
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
    counted: Callable[[Step], AbstractContextManager[None]],
    idle: IdleClock,
) -> Iterator[tuple[Step, TokenScores]]:
    backend.open(steps)
    before: tuple[Step, PendingScores] | None = None
    for step in steps:
        with counted(step):
            pending = backend.submit(step)
        idle.busy()
        if before is not None:
            yield before[0], before[1].result()
        before = step, pending
    if before is not None:
        scores = before[1].result()
        idle.idle()
        yield before[0], scores
