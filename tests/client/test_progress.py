"""Progress and time left of a call, tested with simulated workers whose times are known."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.client.batching import Prompt, generate_jobs, loglikelihood_jobs, rolling_jobs
from birdie_zmq.client.core import Job
from birdie_zmq.client.progress import Progress, ProgressEstimator, common_characters
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import (
    ComputeCounters,
    DescribeWork,
    GenerationParams,
    LogLikelihoodWork,
    ProgressDelta,
    RollingWork,
)

SETTINGS = ClientSettings(batch_items=64)
COMPILE_S = 7.0
PADDING = 0.1


@dataclass
class Event:
    """A progress report of a worker about a job, ``after_s`` seconds after its last one, with the answered items."""

    after_s: float
    job: Job
    items: Sequence[int]
    delta: ProgressDelta


def errors(jobs: Sequence[Job], events: Sequence[Event]) -> list[float]:
    """Return the relative errors of the time left at about 30 points in time; 0.1 means a tenth too long.

    The points are between a tenth and nine tenths of the time after compilation.
    """
    estimate = ProgressEstimator(jobs, 100.0)
    total = sum(event.after_s for event in events)
    now = 0.0
    working = total - COMPILE_S
    found = []
    for number, event in enumerate(events):
        now += event.after_s
        estimate.answered(event.items)
        estimate.progressed(event.job.items[0], event.delta, 100.0 + now)
        if 0.1 <= (now - COMPILE_S) / working <= 0.9 and number % max(1, len(events) // 30) == 0:
            left = estimate.at(100.0 + now).seconds_left
            assert left is not None
            found.append(left / (total - now) - 1)
    assert len(found) > 5
    return found


def score(jobs: Sequence[Job], cost: Callable[[str, str], int]) -> Iterator[Event]:
    """Simulate a worker whose steps have 2,000 characters, four per token, and which compiles once at the start."""
    compile_s = COMPILE_S
    before = ""
    for job in jobs:
        assert isinstance(job.work, LogLikelihoodWork | RollingWork)
        work = job.work
        texts = [a + b for a, b in work.pairs] if isinstance(work, LogLikelihoodWork) else work.texts
        sizes = []
        for text in texts:
            sizes.append(cost(text, before))
            before = text
        remaining = sum(sizes)
        requested = sum(map(len, texts)) // 4
        planned = ComputeCounters(requested=requested, distinct=requested // 2, planned=prefill_positions(remaining))
        yield Event(0.0, job, [], ProgressDelta(computed=planned, remaining=prefill_positions(remaining)))
        step: list[int] = []
        size = 0
        for position, item in enumerate(job.items):
            step.append(item)
            size += sizes[position]
            if size >= 2_000 or position == len(job.items) - 1:
                remaining -= size
                computed = ComputeCounters(
                    tokens=prefill_positions(size),
                    padding=prefill_positions(size) - size // 4,
                    seconds=size / 1_000,
                    compile_seconds=compile_s,
                    done=prefill_positions(size),
                )
                yield Event(
                    size / 1_000 + compile_s,
                    job,
                    step,
                    ProgressDelta(computed=computed, remaining=prefill_positions(remaining)),
                )
                step, size, compile_s = [], 0, 0.0


def prefill_positions(characters: int) -> int:
    """Return the number of prefilled positions, padding included, for a number of characters."""
    return int(characters / 4 * (1 + PADDING))


def without_sharing(text: str, before: str) -> int:
    """Return the cost of a text for a model that does not share prefixes."""
    del before
    return len(text)


def with_sharing(text: str, before: str) -> int:
    """Return the cost of a text for a model that computes shared prefixes once."""
    return len(text) - naive_common_characters(text, before)


def naive_common_characters(one: str, other: str) -> int:
    """Return the length of the common prefix, counted one by one."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def few_shot(documents: int) -> list[tuple[str, str]]:
    """Return questions after the same few-shot examples, with four answers each."""
    random = np.random.default_rng(1)
    examples = "An example. " * 100
    pairs = []
    for number in range(documents):
        question = f"{examples}Question {number}: " + "why " * int(random.integers(5, 80))
        pairs += [(question, f" answer {choice} " + "so " * int(random.integers(1, 20))) for choice in "ABCD"]
    return pairs


@pytest.mark.parametrize("cost", [without_sharing, with_sharing])
def test_time_left_of_scoring_with_and_without_shared_prefixes(
    cost: Callable[[str, str], int],
) -> None:
    jobs = list(loglikelihood_jobs(few_shot(200), SETTINGS))
    assert max(map(abs, errors(jobs, list(score(jobs, cost))))) < 0.2


def test_time_left_with_the_longest_texts_first() -> None:
    texts = ["word " * count for count in range(1, 200)]
    jobs = list(rolling_jobs(texts, SETTINGS))
    assert max(map(abs, errors(jobs, list(score(jobs, without_sharing))))) < 0.1


DECODE_STEP_COST = 40
PREFILL_COST = 150
COST_S = 0.002


def generate(
    jobs: Sequence[Job], lengths: Callable[[int], int], max_rows: int, decode_row_cost: int = 0
) -> Iterator[Event]:
    """Simulate a worker that decodes up to `max_rows` prompts in parallel, each for its own number of steps after its prefill.

    It compiles once at the start, and reports progress when a text has finished and twice a second. When no prompt waits and
    at most half of its rows are used, it halves the rows.
    """
    compile_report = ComputeCounters(compile_seconds=COMPILE_S)
    yield Event(COMPILE_S, jobs[0], [], ProgressDelta(computed=compile_report))
    for job in jobs:
        waiting = deque(job.items)
        decode_rows = max_rows
        active_lengths: dict[int, int] = {}
        planned, done = len(job.items) * PREFILL_COST, 0
        remaining = planned
        while waiting or active_lengths:
            started = 0
            while waiting and len(active_lengths) < decode_rows:
                active_lengths[waiting.popleft()] = 0
                started += 1
            while len(active_lengths) <= decode_rows // 2 and decode_row_cost:
                decode_rows //= 2
            decode_step_cost = DECODE_STEP_COST - (max_rows - decode_rows) * decode_row_cost
            active_lengths = {item: length + 1 for item, length in active_lengths.items()}
            finished_lengths = [item for item, length in active_lengths.items() if length >= lengths(item)]
            done += started * PREFILL_COST + decode_step_cost
            remaining -= started * PREFILL_COST
            for item in finished_lengths:
                del active_lengths[item]
            if finished_lengths or done * COST_S >= 0.5:
                computed = ComputeCounters(seconds=done * COST_S, planned=planned, done=done, requested=100)
                delta = ProgressDelta(
                    computed=computed,
                    remaining=remaining,
                    active_lengths=tuple(active_lengths.values()),
                    finished_lengths=tuple(lengths(item) for item in finished_lengths),
                    decode_rows=decode_rows,
                    decode_step_cost=decode_step_cost,
                    decode_row_cost=decode_row_cost,
                )
                yield Event(done * COST_S, job, finished_lengths, delta)
                planned, done = 0, 0


@pytest.mark.parametrize(("spread", "bound"), [(0.1, 0.1), (0.5, 0.2), (1.0, 0.3)])
def test_time_left_of_generation_with_random_lengths(spread: float, bound: float) -> None:
    """The lengths have a gamma distribution with a relative spread from 10% to 100% (exponential); 20 random runs.

    The bound grows with the spread: for exponential lengths, the 40 texts that have finished after a tenth of the time
    determine the mean only to a sixth, whatever the estimator.
    """
    found = []
    for seed in range(20):
        lengths = 1 + np.random.default_rng(seed).gamma(1 / spread**2, spread**2 * 50, 400).astype(int)
        found += generation_errors(lengths.tolist(), 10_000)
    assert np.quantile(np.abs(found), 0.8) < bound
    assert abs(np.mean(found)) < 0.1


def test_time_left_with_truncated_texts() -> None:
    """Half of the texts reach their maximum number of tokens."""
    found = []
    for seed in range(10):
        lengths = np.minimum(64, 1 + np.random.default_rng(seed).exponential(90, 120)).astype(int)
        found += generation_errors(lengths.tolist(), 64)
    assert np.quantile(np.abs(found), 0.8) < 0.15


def test_time_left_is_known_before_any_text_has_finished() -> None:
    """There is one batch, and all texts reach their maximum number of tokens."""
    assert max(map(abs, generation_errors([100] * 16, 100))) < 0.15


@pytest.mark.parametrize(("spread", "bound"), [(0.5, 0.1), (1.0, 0.15)])
def test_decode_steps_with_fewer_rows_cost_less(spread: float, bound: float) -> None:
    """At the end of each batch of 64, a decode step of one text costs a quarter of a step of 16."""
    found = []
    for seed in range(20):
        lengths = 1 + np.random.default_rng(seed).gamma(1 / spread**2, spread**2 * 50, 400).astype(int)
        found += generation_errors(lengths.tolist(), 10_000, decode_row_cost=2)
    assert np.quantile(np.abs(found), 0.8) < bound


def test_pending_compilations_are_part_of_the_time_left() -> None:
    """Two compilations of the first job are pending; each of the two jobs that have not started is expected to need one."""
    jobs = [Job(RollingWork(texts=["a" * 100]), [0]), Job(RollingWork(texts=["b" * 100]), [1])]
    jobs.append(Job(RollingWork(texts=["c" * 100]), [2]))
    estimate = ProgressEstimator(jobs, 0.0)
    planned = ComputeCounters(requested=100, planned=100)
    estimate.progressed(0, ProgressDelta(computed=planned, remaining=100, pending_compiles=3), 0.0)
    compiled = ComputeCounters(seconds=1.0, compile_seconds=1.0, executables=1, done=50)
    estimate.progressed(0, ProgressDelta(computed=compiled, remaining=50, pending_compiles=2), 2.0)
    pace = 1.0 / 50
    assert estimate.at(2.0).seconds_left == pytest.approx(250 * pace + (2 + 1 + 1) * 1.0)
    estimate.answered([0])
    assert estimate.at(2.0).seconds_left == pytest.approx(200 * pace + (1 + 1) * 1.0)
    estimate.progressed(0, ProgressDelta(pending_compiles=2), 2.0)
    assert estimate.at(2.0).seconds_left == pytest.approx(200 * pace + (1 + 1) * 1.0), "an answered job needs no more"
    estimate.progressed(1, ProgressDelta(computed=planned, remaining=100), 2.0)
    assert estimate.at(2.0).seconds_left == pytest.approx(200 * pace + 0.5 * 1.0), "the second job needs none"


def generation_errors(lengths: Sequence[int], limit: int, decode_row_cost: int = 0) -> list[float]:
    """Return the errors of the time left for texts with these lengths in tokens, 16 in parallel."""
    params = GenerationParams(max_gen_toks=limit)
    jobs = list(generate_jobs([Prompt(f"{number:03}", params) for number in range(len(lengths))], SETTINGS))
    return errors(jobs, list(generate(jobs, lengths.__getitem__, 16, decode_row_cost)))


def test_progress_of_a_call() -> None:
    jobs = [Job(RollingWork(texts=["a" * 100, "b" * 100, "c" * 100]), [0, 1, 2])]
    estimate = ProgressEstimator(jobs, 0.0)
    assert estimate.at(1.0) == Progress()
    planned = ComputeCounters(requested=200, distinct=150, planned=300)
    estimate.progressed(0, ProgressDelta(computed=planned, remaining=300), 2.0)
    assert estimate.at(2.0) == Progress(distinct_share=0.75)
    estimate.answered([0])
    computed = ComputeCounters(tokens=100, padding=25, seconds=2.0, done=100)
    estimate.progressed(0, ProgressDelta(computed=computed, remaining=200), 4.0)
    assert estimate.at(4.0) == Progress(
        tokens_per_second=25.0, padding_share=0.25, distinct_share=0.75, seconds_left=8.0
    )
    left = estimate.at(5.0).seconds_left
    assert left == 7.0, "the time left decreases between reports"
    assert estimate.at(50.0).seconds_left == 0.0


def test_the_planned_cost_of_an_answered_job_is_dropped() -> None:
    """This happens if another worker was faster, or if the worker that had planned the cost died."""
    jobs = [Job(RollingWork(texts=["a" * 100]), [0]), Job(RollingWork(texts=["b" * 100]), [1])]
    estimate = ProgressEstimator(jobs, 0.0)
    estimate.progressed(0, ProgressDelta(computed=ComputeCounters(requested=100, planned=100), remaining=100), 0.0)
    estimate.progressed(0, ProgressDelta(computed=ComputeCounters(seconds=1.0, done=50), remaining=50), 1.0)
    assert estimate.at(1.0).seconds_left == pytest.approx(3.0)
    estimate.answered([0])
    assert estimate.at(1.0).seconds_left == pytest.approx(2.0)


def test_no_estimate_for_other_work() -> None:
    estimate = ProgressEstimator([Job(DescribeWork(), [0])], 0.0)
    estimate.answered([0])
    estimate.progressed(0, ProgressDelta(), 1.0)
    assert estimate.at(1.0) == Progress()


def test_extreme_counters_of_a_worker_raise_no_error() -> None:
    limit = 2**53 - 1
    jobs = list(generate_jobs([Prompt("a", GenerationParams()), Prompt("b", GenerationParams())], SETTINGS))
    estimate = ProgressEstimator(jobs, 0.0)
    computed = ComputeCounters(tokens=limit, seconds=1e9, planned=limit, done=limit)
    delta = ProgressDelta(
        computed=computed,
        remaining=limit,
        active_lengths=(limit,) * 65_536,
        finished_lengths=(limit,) * 65_536,
        decode_rows=limit,
        decode_step_cost=limit,
    )
    estimate.progressed(0, delta, 1.0)
    assert estimate.at(1.0).seconds_left is not None


@given(st.text("ab", max_size=30), st.text("ab", max_size=30))
def test_common_characters(one: str, other: str) -> None:
    assert common_characters(one, other) == naive_common_characters(one, other)
