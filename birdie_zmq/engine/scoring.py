"""Scoring: run the steps of a plan, one ahead of the device, and sum the log-probabilities of each request.

Each step is submitted before the scores of the previous one are fetched, so that the device does not wait for the host.
If a step does not fit into device memory, the budget of steps is halved, and the sequences without a score are planned
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import PendingScores, TokenScores
from birdie_zmq.engine.events import Answered, Event, ItemFailed, Notice
from birdie_zmq.engine.model_runner import ModelRunner
from birdie_zmq.engine.output_checks import non_finite_logits
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.steps import ScoredSequence, Step
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.types import Answer, StepLimits


def score(
    runner: ModelRunner,
    mode: ExecutionMode,
    requests: Sequence[Sequence[ScoredSequence]],
    limits: StepLimits,
    *,
    with_greedy: bool,
) -> Iterator[Event]:
    """Score requests; after each step, yield the answers that are complete.

    Args:
        runner: The model.
        mode: How the model scores these requests.
        requests: The sequences of each request, whose scores are summed. Without sequences the log-likelihood is 0, and
            greedy decoding gives the request.
        limits: The limits that the user set for the rows of a step.
        with_greedy: Whether an answer also says whether greedy decoding gives the scored tokens.

    Raises:
        ItemFailed: A request cannot be scored, because its logits are not finite.
        OutOfDeviceMemory: Not even the smallest steps fit into device memory.
    """
    counters, backend = runner.counters, runner.backend
    totals = _Totals(requests, with_greedy)
    if answered := totals.empty_requests():
        yield answered
    counters.requests += len(requests)
    counters.tokens_requested += sum(len(sequence.row) for sequence in totals.sequences)
    with runner.timed():
        numbers = totals.unfinished()
        group = mode.group([totals.sequences[number] for number in numbers])
        counters.tokens_distinct += group.distinct_tokens
        while len(numbers):
            try:
                steps = group.plan(runner.buckets(mode, limits), backend.cached_prefixes())
                yield from _run(runner, steps, _PlanSums(totals, numbers, steps))
                return
            except OutOfDeviceMemory as error:
                if not backend.halve_budget():
                    raise
                yield Notice("warning", f"{error}; retrying with steps of at most {backend.budget.tokens} tokens")
            numbers = totals.unfinished()
            group = mode.group([totals.sequences[number] for number in numbers])


def _run(runner: ModelRunner, steps: Sequence[Step], sums: _PlanSums) -> Iterator[Event]:
    """Submit each step of a plan, then fetch the scores of the step before it, and yield the complete answers."""
    runner.backend.start_plan(steps)
    previous: tuple[Step, PendingScores] | None = None
    for step in steps:
        pending = yield from runner.call([step.shape], partial(runner.backend.submit, step))
        runner.counters.add_step(step.shape, step.used_tokens)
        runner.idle.busy()
        if previous is not None:
            yield from sums.add(previous[0], previous[1].result())
        previous = step, pending
    if previous is not None:
        scores = previous[1].result()
        runner.idle.idle()
        yield from sums.add(previous[0], scores)


class _Totals:
    """The scores of requests, each the sum over its sequences.

    Attributes:
        sequences: The sequences of all requests.
        owners: int64[n], the index of the request that each sequence belongs to.
    """

    def __init__(self, requests: Sequence[Sequence[ScoredSequence]], with_greedy: bool) -> None:
        self.sequences = [sequence for request in requests for sequence in request]
        self._missing = np.array([len(request) for request in requests], np.int64)
        self.owners = np.repeat(np.arange(len(requests)), self._missing)
        self._is_finished = np.zeros(len(self.sequences), np.bool_)
        self._loglikelihoods = np.zeros(len(requests))
        self._greedy = np.ones(len(requests), np.bool_)
        self._with_greedy = with_greedy

    def empty_requests(self) -> Answered | None:
        """Return the answers to the requests without a sequence, if there are any."""
        return self._answered(np.flatnonzero(self._missing == 0))

    def unfinished(self) -> npt.NDArray[np.int64]:
        """Return the indices of the sequences that have no score yet."""
        return np.flatnonzero(~self._is_finished)

    def add(
        self, numbers: npt.NDArray[np.int64], sums: npt.NDArray[np.float64], greedy: npt.NDArray[np.bool_]
    ) -> Answered | None:
        """Add the scores of sequences, by index, and return the answers that are complete, if there are any."""
        owners = self.owners[numbers]
        self._is_finished[numbers] = True
        np.add.at(self._loglikelihoods, owners, sums)
        np.logical_and.at(self._greedy, owners, greedy)
        np.subtract.at(self._missing, owners, 1)
        touched = np.unique(owners)
        return self._answered(touched[self._missing[touched] == 0])

    def _answered(self, indices: npt.NDArray[np.int64]) -> Answered | None:
        if not len(indices):
            return None
        loglikelihoods: list[float] = self._loglikelihoods[indices].tolist()
        answers: Sequence[Answer] = loglikelihoods
        if self._with_greedy:
            answers = list(zip(loglikelihoods, self._greedy[indices].tolist(), strict=True))
        return Answered(indices.tolist(), answers)


class _PlanSums:
    """The sums of a plan's sequences; those that are complete are added to the totals.

    Args:
        totals: The scores of the requests.
        numbers: int64[n], the index of each of the plan's sequences in the totals.
        steps: The plan, which decides how many scores each sequence gets.
    """

    def __init__(self, totals: _Totals, numbers: npt.NDArray[np.int64], steps: Sequence[Step]) -> None:
        self._totals = totals
        self._numbers = numbers
        self._sums = np.zeros(len(numbers))
        self._greedy = np.ones(len(numbers), np.bool_)
        self._missing = np.bincount(np.concatenate([step.owners for step in steps]), minlength=len(numbers))

    def add(self, step: Step, scores: TokenScores) -> Iterator[Answered]:
        """Add the scores of a step, and yield the answers that are complete.

        Raises:
            ItemFailed: A score is not finite.
        """
        if not scores.finite.all():
            number = self._numbers[step.owners[int(np.argmin(scores.finite))]]
            raise ItemFailed(int(self._totals.owners[number]), non_finite_logits())
        np.add.at(self._sums, step.owners, scores.logprobs)  # summed in float64
        np.logical_and.at(self._greedy, step.owners, scores.greedy)
        np.subtract.at(self._missing, step.owners, 1)
        touched = np.unique(step.owners)
        complete = touched[self._missing[touched] == 0]
        if len(complete):
            answered = self._totals.add(self._numbers[complete], self._sums[complete], self._greedy[complete])
            if answered is not None:
                yield answered
