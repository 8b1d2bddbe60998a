"""How far a call has come: runs of a made-up worker whose times are known, followed by the answers that it gives."""

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
from birdie_zmq.client.progress import Estimate, Progress, common_characters
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
COMPILING_S = 7.0
PADDING = 0.1


@dataclass
class Event:
    """A worker says how far it has come in a job, ``after_s`` what it said before, and has answers."""

    after_s: float
    job: Job
    items: Sequence[int]
    advance: ProgressDelta


def errors(jobs: Sequence[Job], events: Sequence[Event]) -> list[float]:
    """From a tenth of the time to nine tenths, at some 30 moments, how wrong the time left is: 0.1 is a tenth too long.

    The time is that in which nothing is compiled.
    """
    estimate = Estimate(jobs, 100.0)
    total = sum(event.after_s for event in events)
    now = 0.0
    working = total - COMPILING_S
    found = []
    for number, event in enumerate(events):
        now += event.after_s
        estimate.answered(event.items)
        estimate.advanced(event.job.items[0], event.advance, 100.0 + now)
        if 0.1 <= (now - COMPILING_S) / working <= 0.9 and number % max(1, len(events) // 30) == 0:
            left = estimate.at(100.0 + now).seconds_left
            assert left is not None
            found.append(left / (total - now) - 1)
    assert len(found) > 5
    return found


def scoring(jobs: Sequence[Job], cost: Callable[[str, str], int]) -> Iterator[Event]:
    """A worker whose steps are of 2,000 characters, four of them a token, and which compiles a program at first."""
    compile_s = COMPILING_S
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
        asked = sum(map(len, texts)) // 4
        told = ComputeCounters(requested=asked, distinct=asked // 2, planned=padded(remaining))
        yield Event(0.0, job, [], ProgressDelta(computed=told, remaining=padded(remaining)))
        step: list[int] = []
        size = 0
        for position, item in enumerate(job.items):
            step.append(item)
            size += sizes[position]
            if size >= 2_000 or position == len(job.items) - 1:
                remaining -= size
                computed = ComputeCounters(
                    tokens=padded(size),
                    padding=padded(size) - size // 4,
                    seconds=size / 1_000,
                    compile_seconds=compile_s,
                    done=padded(size),
                )
                yield Event(
                    size / 1_000 + compile_s, job, step, ProgressDelta(computed=computed, remaining=padded(remaining))
                )
                step, size, compile_s = [], 0, 0.0


def padded(characters: int) -> int:
    """The positions in which so many characters are read."""
    return int(characters / 4 * (1 + PADDING))


def whole(text: str, before: str) -> int:
    """What a text costs a model that shares nothing."""
    del before
    return len(text)


def shared(text: str, before: str) -> int:
    """What it costs where beginnings are computed once."""
    return len(text) - in_common(text, before)


def in_common(one: str, other: str) -> int:
    """Counted one by one."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def few_shot(documents: int) -> list[tuple[str, str]]:
    """Questions behind the same examples, with four answers each."""
    random = np.random.default_rng(1)
    examples = "An example. " * 100
    pairs = []
    for number in range(documents):
        question = f"{examples}Question {number}: " + "why " * int(random.integers(5, 80))
        pairs += [(question, f" answer {choice} " + "so " * int(random.integers(1, 20))) for choice in "ABCD"]
    return pairs


@pytest.mark.parametrize("cost", [whole, shared])
def test_the_time_left_is_right_within_a_fifth_whether_or_not_beginnings_are_shared(
    cost: Callable[[str, str], int],
) -> None:
    jobs = list(loglikelihood_jobs(few_shot(200), SETTINGS))
    assert max(map(abs, errors(jobs, list(scoring(jobs, cost))))) < 0.2


def test_long_texts_first_do_not_make_the_rest_look_longer() -> None:
    texts = ["word " * count for count in range(1, 200)]
    jobs = list(rolling_jobs(texts, SETTINGS))
    assert max(map(abs, errors(jobs, list(scoring(jobs, whole))))) < 0.1


ROUND_COST = 40
READING_COST = 150
COST_S = 0.002


def continuing(
    jobs: Sequence[Job], lengths: Callable[[int], int], most: int, decode_row_cost: int = 0
) -> Iterator[Event]:
    """A worker that continues so many prompts side by side, each for its own number of rounds, and reads each first.

    It compiles a program before all, and says how far it has come when a text has ended and twice a second. When nothing
    waits and no more than half of its slots are used, it goes on with half as many.
    """
    compiling = ComputeCounters(compile_seconds=COMPILING_S)
    yield Event(COMPILING_S, jobs[0], [], ProgressDelta(computed=compiling))
    for job in jobs:
        waiting = deque(job.items)
        decode_rows = most
        active_lengths: dict[int, int] = {}
        planned, done = len(job.items) * READING_COST, 0
        remaining = planned
        while waiting or active_lengths:
            read = 0
            while waiting and len(active_lengths) < decode_rows:
                active_lengths[waiting.popleft()] = 0
                read += 1
            while len(active_lengths) <= decode_rows // 2 and decode_row_cost:
                decode_rows //= 2
            decode_step_cost = ROUND_COST - (most - decode_rows) * decode_row_cost
            active_lengths = {item: length + 1 for item, length in active_lengths.items()}
            finished_lengths = [item for item, length in active_lengths.items() if length >= lengths(item)]
            done += read * READING_COST + decode_step_cost
            remaining -= read * READING_COST
            for item in finished_lengths:
                del active_lengths[item]
            if finished_lengths or done * COST_S >= 0.5:
                computed = ComputeCounters(seconds=done * COST_S, planned=planned, done=done, requested=100)
                advance = ProgressDelta(
                    computed=computed,
                    remaining=remaining,
                    active_lengths=tuple(active_lengths.values()),
                    finished_lengths=tuple(lengths(item) for item in finished_lengths),
                    decode_rows=decode_rows,
                    decode_step_cost=decode_step_cost,
                    decode_row_cost=decode_row_cost,
                )
                yield Event(done * COST_S, job, finished_lengths, advance)
                planned, done = 0, 0


@pytest.mark.parametrize(("spread", "bound"), [(0.1, 0.1), (0.5, 0.2), (1.0, 0.3)])
def test_the_time_left_of_texts_that_end_when_they_end(spread: float, bound: float) -> None:
    """Lengths of a gamma distribution, as alike as 10% or as unlike as an exponential's; 20 runs of chance.

    The bound grows with what chance leaves open: the mean of the 40 texts that have ended after a tenth of the time is known
    to a sixth of itself where they are exponential, whoever estimates it.
    """
    found = []
    for seed in range(20):
        lengths = 1 + np.random.default_rng(seed).gamma(1 / spread**2, spread**2 * 50, 400).astype(int)
        found += generation_errors(lengths.tolist(), 10_000)
    assert np.quantile(np.abs(found), 0.8) < bound
    assert abs(np.mean(found)) < 0.1


def test_texts_that_are_cut_off_are_not_taken_to_be_longer() -> None:
    """Half of them come to the most tokens that they may have."""
    found = []
    for seed in range(10):
        lengths = np.minimum(64, 1 + np.random.default_rng(seed).exponential(90, 120)).astype(int)
        found += generation_errors(lengths.tolist(), 64)
    assert np.quantile(np.abs(found), 0.8) < 0.15


def test_the_time_left_is_known_before_any_text_has_ended() -> None:
    """One batch, all of whose texts come to the most tokens that they may have."""
    assert max(map(abs, generation_errors([100] * 16, 100))) < 0.15


@pytest.mark.parametrize(("spread", "bound"), [(0.5, 0.1), (1.0, 0.15)])
def test_rounds_in_which_few_texts_go_on_cost_less(spread: float, bound: float) -> None:
    """At the end of each batch of 64: a round of one text costs a quarter of one of 16."""
    found = []
    for seed in range(20):
        lengths = 1 + np.random.default_rng(seed).gamma(1 / spread**2, spread**2 * 50, 400).astype(int)
        found += generation_errors(lengths.tolist(), 10_000, decode_row_cost=2)
    assert np.quantile(np.abs(found), 0.8) < bound


def test_programs_that_are_still_to_be_compiled_take_their_time() -> None:
    """Of the first job two are known; of the two others that have not begun one each is expected, until more is known."""
    jobs = [Job(RollingWork(texts=["a" * 100]), [0]), Job(RollingWork(texts=["b" * 100]), [1])]
    jobs.append(Job(RollingWork(texts=["c" * 100]), [2]))
    estimate = Estimate(jobs, 0.0)
    planned = ComputeCounters(requested=100, planned=100)
    estimate.advanced(0, ProgressDelta(computed=planned, remaining=100, pending_compiles=3), 0.0)
    compiled = ComputeCounters(seconds=1.0, compile_seconds=1.0, executables=1, done=50)
    estimate.advanced(0, ProgressDelta(computed=compiled, remaining=50, pending_compiles=2), 2.0)
    pace = 1.0 / 50
    assert estimate.at(2.0).seconds_left == pytest.approx(250 * pace + (2 + 1 + 1) * 1.0)
    estimate.answered([0])
    assert estimate.at(2.0).seconds_left == pytest.approx(200 * pace + (1 + 1) * 1.0)
    estimate.advanced(0, ProgressDelta(pending_compiles=2), 2.0)
    assert estimate.at(2.0).seconds_left == pytest.approx(200 * pace + (1 + 1) * 1.0), "what is answered wants no more"
    estimate.advanced(1, ProgressDelta(computed=planned, remaining=100), 2.0)
    assert estimate.at(2.0).seconds_left == pytest.approx(200 * pace + 0.5 * 1.0), "the second wants none"


def generation_errors(lengths: Sequence[int], most: int, decode_row_cost: int = 0) -> list[float]:
    """How wrong the time left is of texts with so many tokens each, 16 side by side."""
    how = GenerationParams(max_gen_toks=most)
    jobs = list(generate_jobs([Prompt(f"{number:03}", how) for number in range(len(lengths))], SETTINGS))
    return errors(jobs, list(continuing(jobs, lengths.__getitem__, 16, decode_row_cost)))


def test_what_is_said_of_a_call() -> None:
    jobs = [Job(RollingWork(texts=["a" * 100, "b" * 100, "c" * 100]), [0, 1, 2])]
    estimate = Estimate(jobs, 0.0)
    assert estimate.at(1.0) == Progress()
    planned = ComputeCounters(requested=200, distinct=150, planned=300)
    estimate.advanced(0, ProgressDelta(computed=planned, remaining=300), 2.0)
    assert estimate.at(2.0) == Progress(distinct_share=0.75)
    estimate.answered([0])
    computed = ComputeCounters(tokens=100, padding=25, seconds=2.0, done=100)
    estimate.advanced(0, ProgressDelta(computed=computed, remaining=200), 4.0)
    assert estimate.at(4.0) == Progress(
        tokens_per_second=25.0, padding_share=0.25, distinct_share=0.75, seconds_left=8.0
    )
    left = estimate.at(5.0).seconds_left
    assert left == 7.0, "the clock goes on between answers"
    assert estimate.at(50.0).seconds_left == 0.0


def test_what_was_planned_for_a_job_is_forgotten_once_it_is_answered() -> None:
    """As where another worker was quicker, or the one that had planned it is gone."""
    jobs = [Job(RollingWork(texts=["a" * 100]), [0]), Job(RollingWork(texts=["b" * 100]), [1])]
    estimate = Estimate(jobs, 0.0)
    estimate.advanced(0, ProgressDelta(computed=ComputeCounters(requested=100, planned=100), remaining=100), 0.0)
    estimate.advanced(0, ProgressDelta(computed=ComputeCounters(seconds=1.0, done=50), remaining=50), 1.0)
    assert estimate.at(1.0).seconds_left == pytest.approx(3.0)
    estimate.answered([0])
    assert estimate.at(1.0).seconds_left == pytest.approx(2.0)


def test_a_call_that_is_neither_scored_nor_generated_is_not_guessed_at() -> None:
    estimate = Estimate([Job(DescribeWork(), [0])], 0.0)
    estimate.answered([0])
    estimate.advanced(0, ProgressDelta(), 1.0)
    assert estimate.at(1.0) == Progress()


def test_counts_of_a_worker_that_make_no_sense_harm_nobody() -> None:
    most = 2**53 - 1
    jobs = list(generate_jobs([Prompt("a", GenerationParams()), Prompt("b", GenerationParams())], SETTINGS))
    estimate = Estimate(jobs, 0.0)
    computed = ComputeCounters(tokens=most, seconds=1e9, planned=most, done=most)
    advance = ProgressDelta(
        computed=computed,
        remaining=most,
        active_lengths=(most,) * 65_536,
        finished_lengths=(most,) * 65_536,
        decode_rows=most,
        decode_step_cost=most,
    )
    estimate.advanced(0, advance, 1.0)
    assert estimate.at(1.0).seconds_left is not None


@given(st.text("ab", max_size=30), st.text("ab", max_size=30))
def test_common_characters(one: str, other: str) -> None:
    assert common_characters(one, other) == in_common(one, other)
