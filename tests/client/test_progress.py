"""How far a call has come: runs of a made-up worker whose times are known, followed by the answers that it gives."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.client.batching import Prompt, generate_jobs, loglikelihood_jobs, rolling_jobs
from birdie_zmq.client.progress import Estimate, Progress, common_characters
from birdie_zmq.client.state import Job
from birdie_zmq.config import ClientSettings
from birdie_zmq.wire import messages as m

SETTINGS = ClientSettings(batch_items=64)
COMPILING_S = 7.0
PADDING = 0.1


@dataclass
class Event:
    """Answers that come ``after_s`` the ones before."""

    after_s: float
    items: Sequence[int]
    computed: m.Computed
    continued: int = 0


def errors(jobs: Sequence[Job], events: Sequence[Event]) -> list[float]:
    """From a tenth of the time to nine tenths, at some 30 answers, how wrong the time left is: 0.1 is a tenth too long."""
    estimate = Estimate(jobs, 100.0)
    total = sum(event.after_s for event in events)
    now = 0.0
    found = []
    for number, event in enumerate(events):
        now += event.after_s
        estimate.answered(event.items, event.computed, event.continued, 100.0 + now)
        if 0.1 <= now / total <= 0.9 and number % max(1, len(events) // 30) == 0:
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
        assert isinstance(job.work, m.LogLikelihoodWork | m.RollingWork)
        work = job.work
        texts = [a + b for a, b in work.pairs] if isinstance(work, m.LogLikelihoodWork) else work.texts
        asked = sum(map(len, texts)) // 4
        step: list[int] = []
        size = 0
        for position, item in enumerate(job.items):
            step.append(item)
            size += cost(texts[position], before)
            before = texts[position]
            if size >= 2_000 or position == len(job.items) - 1:
                tokens = int(size / 4 * (1 + PADDING))
                computed = m.Computed(
                    tokens=tokens,
                    padding=tokens - size // 4,
                    seconds=size / 1_000,
                    compile_seconds=compile_s,
                    requested=asked,
                    distinct=asked // 2,
                )
                yield Event(size / 1_000 + compile_s, step, computed)
                step, size, asked, compile_s = [], 0, 0, 0.0


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


def continuing(jobs: Sequence[Job], durations: Callable[[int], float], rows: int) -> Iterator[Event]:
    """A worker that continues so many rows side by side, each for its own time."""
    compile_s = COMPILING_S
    for job in jobs:
        waiting = list(job.items)
        now = 0.0
        going: list[tuple[float, int]] = []
        while waiting or going:
            while waiting and len(going) < rows:
                item = waiting.pop(0)
                heapq.heappush(going, (now + durations(item), item))
            end, item = heapq.heappop(going)
            computed = m.Computed(tokens=100, generated=90, seconds=end - now, compile_seconds=compile_s, requested=100)
            yield Event(end - now + compile_s, [item], computed, continued=len(going))
            now, compile_s = end, 0.0


@pytest.mark.parametrize(("spread", "bound"), [(0.1, 0.1), (0.5, 0.2), (1.0, 0.3)])
def test_the_time_left_of_texts_that_end_when_they_end(spread: float, bound: float) -> None:
    """Lengths of a gamma distribution, as alike as 10% or as unlike as an exponential's; 20 runs of chance.

    The bound grows with what chance leaves open: the mean of the 40 texts that have ended after a tenth of the time is known
    to a sixth of itself where they are exponential, whoever estimates it.
    """
    prompts = [Prompt(f"{number:03}", m.GenerationSettings(max_gen_toks=9)) for number in range(400)]
    jobs = list(generate_jobs(prompts, SETTINGS))
    found = []
    for seed in range(20):
        lengths = np.random.default_rng(seed).gamma(1 / spread**2, spread**2 * 10, 400)
        found += errors(jobs, list(continuing(jobs, lengths.tolist().__getitem__, 16)))
    assert np.quantile(np.abs(found), 0.8) < bound
    assert abs(np.mean(found)) < 0.1


def test_what_is_said_of_a_call() -> None:
    jobs = [Job(m.RollingWork(texts=["a" * 100, "b" * 100, "c" * 100]), [0, 1, 2])]
    estimate = Estimate(jobs, 0.0)
    assert estimate.at(1.0) == Progress()
    computed = m.Computed(tokens=100, padding=25, seconds=2.0, compile_seconds=2.0, requested=200, distinct=150)
    estimate.answered([0], computed, 0, 4.0)
    assert estimate.at(4.0) == Progress(
        tokens_per_second=50.0, padding_share=0.25, distinct_share=0.75, seconds_left=4.0
    )
    left = estimate.at(5.0).seconds_left
    assert left == 3.0, "the clock goes on between answers"
    assert estimate.at(50.0).seconds_left == 0.0


def test_a_call_that_is_neither_scored_nor_generated_is_not_guessed_at() -> None:
    estimate = Estimate([Job(m.DescribeWork(), [0])], 0.0)
    estimate.answered([0], m.Computed(), 0, 1.0)
    assert estimate.at(1.0) == Progress()


def test_counts_of_a_worker_that_make_no_sense_harm_nobody() -> None:
    jobs = list(generate_jobs([Prompt("a", m.GenerationSettings()), Prompt("b", m.GenerationSettings())], SETTINGS))
    estimate = Estimate(jobs, 0.0)
    estimate.answered([0], m.Computed(tokens=2**53, seconds=1e9), 2**53, 1.0)
    assert estimate.at(1.0).seconds_left is not None


@given(st.text("ab", max_size=30), st.text("ab", max_size=30))
def test_common_characters(one: str, other: str) -> None:
    assert common_characters(one, other) == in_common(one, other)
