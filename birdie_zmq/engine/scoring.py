"""Scoring: run the steps of a plan, some ahead of the device, and sum the log-probabilities of each request.

Steps are submitted before the scores of the previous ones are fetched, so that the device does not wait for the host.
If a step does not fit into device memory, the budget of steps is halved, and the requests without an answer are planned
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import PendingScores, TokenScores
from birdie_zmq.engine.events import Answered, Event, ItemFailed, Notice
from birdie_zmq.engine.model_runner import ModelRunner
from birdie_zmq.engine.output_checks import non_finite_logits
from birdie_zmq.engine.planning.execution_mode import ExecutionMode
from birdie_zmq.engine.planning.steps import ScoredSequence, Step
from birdie_zmq.errors import OutOfDeviceMemory
from birdie_zmq.types import StepLimits


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
    scores = _RequestScores(requests, with_greedy=with_greedy)
    yield from scores.of_empty_requests()
    runner.counters.requests += len(requests)
    runner.counters.tokens_requested += sum(len(sequence.row) for request in requests for sequence in request)
    yield from run_scoring(runner, mode, scores, limits)


class Scores(Protocol):
    """The scores of sequences, which collect what the steps of a plan give."""

    top: int
    """The number of most likely tokens that each step returns for each of its positions."""

    def unfinished(self) -> list[ScoredSequence]:
        """Return the sequences that are still to be scored."""
        ...

    def begin(self, steps: Sequence[Step]) -> None:
        """Begin a plan of the unfinished sequences; what an earlier plan has given for them is dropped."""
        ...

    def add(self, step: Step, scores: TokenScores) -> Iterator[Event]:
        """Add the scores of a step, and yield what is complete."""
        ...


def run_scoring(runner: ModelRunner, mode: ExecutionMode, scores: Scores, limits: StepLimits) -> Iterator[Event]:
    """Plan and run the steps that score unfinished sequences, again if a step does not fit into device memory.

    Raises:
        ItemFailed: A request cannot be scored, because its logits are not finite.
        OutOfDeviceMemory: Not even the smallest steps fit into device memory.
    """
    backend = runner.backend
    sequences = scores.unfinished()
    group = mode.group(sequences)
    runner.counters.tokens_distinct += group.distinct_tokens
    while sequences:
        try:
            steps = group.plan(runner.buckets(mode, limits), backend.cached_prefixes())
            scores.begin(steps)
            yield from _run(runner, steps, scores)
            return
        except OutOfDeviceMemory as error:
            if not backend.halve_budget():
                raise
            yield Notice("warning", f"{error}; retrying with steps of at most {backend.budget.tokens} tokens")
        sequences = scores.unfinished()
        group = mode.group(sequences)


def _run(runner: ModelRunner, steps: Sequence[Step], scores: Scores) -> Iterator[Event]:
    """Submit the steps of a plan, fetch the scores of each after some more are submitted, and yield the complete answers."""
    runner.backend.start_plan(steps)
    ahead = runner.backend.budget.steps_ahead
    pending = deque[tuple[Step, PendingScores]]()
    submit = partial(runner.backend.submit, top=scores.top) if scores.top else runner.backend.submit
    try:
        for step in steps:
            submitted = yield from runner.call([step.shape], partial(submit, step))
            runner.counters.add_step(step.shape, step.used_tokens)
            pending.append((step, submitted))
            if len(pending) > ahead:
                yield from _add(scores, *pending.popleft())
        while len(pending) > 1:
            yield from _add(scores, *pending.popleft())
        last = [(step, each.result()) for step, each in pending]
    finally:
        runner.clock.idle()
    for step, result in last:
        yield from scores.add(step, result)


def _add(scores: Scores, step: Step, pending: PendingScores) -> Iterator[Event]:
    """Wait for the scores of a step, add them, and yield what is complete."""
    yield from scores.add(step, pending.result())


class _RequestScores:
    """The scores of requests, each the sum over the scored tokens of its sequences.

    Args:
        requests: The sequences of each request.
        with_greedy: Whether an answer also says whether greedy decoding gives the scored tokens.
    """

    top = 0

    def __init__(self, requests: Sequence[Sequence[ScoredSequence]], *, with_greedy: bool) -> None:
        self._requests = requests
        self._with_greedy = with_greedy
        # Of each request: its score, and how many targets have none yet. A plan decides how many it has; until then, a
        # request with sequences counts as having one.
        self._loglikelihoods = np.zeros(len(requests))
        self._greedy = np.ones(len(requests), np.bool_)
        self._missing = np.array([len(request) > 0 for request in requests], np.int64)
        self._owners = np.zeros(0, np.int64)  # of each planned sequence, its request

    def of_empty_requests(self) -> Iterator[Event]:
        """Yield the answers to the requests without a sequence, if there are any."""
        yield from self._answered(np.flatnonzero(self._missing == 0))

    def unfinished(self) -> list[ScoredSequence]:
        """Return the sequences of the requests without an answer."""
        return [sequence for number in np.flatnonzero(self._missing).tolist() for sequence in self._requests[number]]

    def begin(self, steps: Sequence[Step]) -> None:
        """Begin a plan of the unfinished sequences; what an earlier plan has added to their requests is dropped."""
        numbers: list[int] = np.flatnonzero(self._missing).tolist()
        self._loglikelihoods[numbers] = 0.0
        self._greedy[numbers] = True
        self._owners = np.repeat(numbers, [len(self._requests[number]) for number in numbers])
        planned = np.concatenate([step.owners for step in steps])
        self._missing = np.bincount(self._owners[planned], minlength=len(self._requests))

    def add(self, step: Step, scores: TokenScores) -> Iterator[Event]:
        """Add the scores of a step, and yield the answers that are complete.

        Raises:
            ItemFailed: A score is not finite.
        """
        owners = self._owners[step.owners]
        if not scores.finite.all():
            raise ItemFailed(int(owners[np.argmin(scores.finite)]), non_finite_logits())
        np.add.at(self._loglikelihoods, owners, scores.logprobs)  # summed in float64
        np.logical_and.at(self._greedy, owners, scores.greedy)
        np.subtract.at(self._missing, owners, 1)
        yield from self._answered(np.unique(owners[self._missing[owners] == 0]))

    def _answered(self, indices: npt.NDArray[np.int64]) -> Iterator[Event]:
        if len(indices):
            loglikelihoods: list[float] = self._loglikelihoods[indices].tolist()
            with_greedy = list(zip(loglikelihoods, self._greedy[indices].tolist(), strict=True))
            yield Answered(indices.tolist(), with_greedy if self._with_greedy else loglikelihoods)
