"""Progress and time left of a call, tested with simulated workers whose times are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from birdie_zmq.client.batching import Prompt, generate_jobs, rolling_jobs
from birdie_zmq.client.job import Job
from birdie_zmq.client.progress import Progress, ProgressEstimator
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import ComputeCounters, DescribeWork, GenerateWork, GenerationParams, RollingWork

BEGAN_AT = 100.0
SPEED = 1_000
"""Characters per second of a simulated worker."""


def jobs_of(characters: Sequence[int], batch_items: int = 256) -> list[Job]:
    """Return jobs with texts of these lengths to be scored."""
    return list(rolling_jobs(["a" * length for length in characters], ClientSettings(batch_items=batch_items)))


class Run:
    """A simulated call: its workers take the texts in the order of the jobs, and an estimator gets their reports."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.estimate = ProgressEstimator(jobs, BEGAN_AT)
        self.now = BEGAN_AT
        self.unanswered: list[tuple[int, int]] = []
        for job in jobs:
            assert isinstance(job.work, RollingWork | GenerateWork)
            texts = job.work.texts if isinstance(job.work, RollingWork) else job.work.prompts
            self.unanswered += [(item, len(text)) for item, text in zip(job.items, texts, strict=True)]

    def answer(self, items: int = 1, *, speed: float = SPEED, compile_s: float = 0.0, workers: int = 1) -> None:
        """Let a worker compute some texts at once, after it has compiled, and report it.

        With several workers, each of them does so at the same time, and their reports come one after another.
        """
        for _ in range(workers):
            answered, self.unanswered = self.unanswered[:items], self.unanswered[items:]
            seconds = sum(size for _, size in answered) / speed
            self.now += (seconds + compile_s) / workers
            self.estimate.answered([item for item, _ in answered])
            self.report(seconds=seconds, compile_seconds=compile_s)

    def report(self, *, seconds: float, compile_seconds: float = 0.0) -> None:
        self.estimate.progressed(ComputeCounters(seconds=seconds, compile_seconds=compile_seconds), self.now)

    @property
    def seconds_left(self) -> float | None:
        return self.estimate.progress().seconds_left

    def true_seconds_left(self, workers: int = 1) -> float:
        return sum(size for _, size in self.unanswered) / SPEED / workers


def test_pace_counts_the_time_in_which_the_device_waits_for_the_host_and_not_compilation() -> None:
    estimate = ProgressEstimator(jobs_of([1_000] * 3), 0.0)
    estimate.progressed(ComputeCounters(tokens=60, seconds=1.0, idle_seconds=2.0, compile_seconds=3.0), 12.0)

    assert estimate.progress().tokens_per_second == 60 / (12.0 * 3 / 6)


def test_progress_of_a_call() -> None:
    estimate = ProgressEstimator(jobs_of([1_000] * 3), 0.0)
    assert estimate.progress() == Progress()

    estimate.progressed(ComputeCounters(requested=200, distinct=150), 2.0)
    assert estimate.progress() == Progress(distinct_share=0.75)

    estimate.progressed(ComputeCounters(tokens=100, padding=25, seconds=2.0), 4.0)
    assert estimate.progress() == Progress(tokens_per_second=25.0, padding_share=0.25, distinct_share=0.75)


def test_time_left_at_a_steady_pace() -> None:
    run = Run(jobs_of([1_000] * 100, batch_items=10))
    for _ in range(10):
        run.answer()

    assert run.seconds_left == pytest.approx(90.0, rel=0.01)


def test_no_time_left_before_five_reports_with_answers() -> None:
    run = Run(jobs_of([1_000] * 100))
    for _ in range(4):
        run.answer(5)
        run.report(seconds=0.0)
        assert run.seconds_left is None

    run.answer(5)

    assert run.seconds_left == pytest.approx(75.0, rel=0.01)


def test_no_time_left_before_a_twentieth_is_answered() -> None:
    run = Run(jobs_of([1_000] * 200))
    for _ in range(9):
        run.answer()
        assert run.seconds_left is None

    run.answer()

    assert run.seconds_left == pytest.approx(190.0, rel=0.01)


def test_compile_time_does_not_count_towards_the_pace() -> None:
    run = Run(jobs_of([1_000] * 100))
    for number in range(10):
        run.answer(compile_s=20.0 if number in (0, 3) else 0.0)

    assert run.seconds_left == pytest.approx(90.0, rel=0.01)


def test_the_wait_for_the_first_report_does_not_count_towards_the_pace() -> None:
    """A worker may have to load the model, or to compute the work of other clients."""
    run = Run(jobs_of([1_000] * 100))
    run.now += 500.0
    for _ in range(10):
        run.answer()

    assert run.seconds_left == pytest.approx(90.0, rel=0.01)


def test_the_pace_is_that_of_the_later_half_of_the_answers() -> None:
    """The machine is four times as fast from the twentieth text on."""
    run = Run(jobs_of([1_000] * 100))
    for number in range(50):
        run.answer(speed=SPEED if number < 20 else 4 * SPEED)

    assert run.seconds_left == pytest.approx(50 / 4, rel=0.01)


@pytest.mark.parametrize("batch_items", [16, 256])
def test_the_longest_texts_come_first(batch_items: int) -> None:
    """The work that is left follows the size of each text, also if one batch holds all of them."""
    run = Run(jobs_of(range(100, 20_100, 100), batch_items))
    while len(run.unanswered) > 20:
        run.answer(2)
        if len(run.unanswered) < 190:
            assert run.seconds_left == pytest.approx(run.true_seconds_left(), rel=0.01)


def test_texts_of_all_lengths_in_any_order() -> None:
    """A worker plans the texts of a batch in an order of its own."""
    run = Run(jobs_of(np.random.default_rng(1).integers(500, 1_500, 200).tolist()))
    np.random.default_rng(2).shuffle(run.unanswered)
    while len(run.unanswered) > 20:
        run.answer(4)
        if len(run.unanswered) < 180:
            assert run.seconds_left == pytest.approx(run.true_seconds_left(), rel=0.01)


@pytest.mark.parametrize("workers", [2, 5])
def test_several_workers(workers: int) -> None:
    run = Run(jobs_of([1_000] * 400, batch_items=16))
    for _ in range(20):
        run.answer(2, workers=workers)

    assert run.seconds_left == pytest.approx(run.true_seconds_left(workers), rel=0.05)


def test_failed_items_are_not_left() -> None:
    """An item that has failed is recorded as an answered one."""
    run = Run(jobs_of([1_000] * 100))
    for _ in range(10):
        run.answer()
    failed, run.unanswered = run.unanswered[:30], run.unanswered[30:]

    run.estimate.answered([item for item, _ in failed])

    assert run.seconds_left == pytest.approx(60.0, rel=0.01)


def test_a_resumed_call_has_only_the_jobs_that_are_left() -> None:
    """Its items are numbered anew, and the pace is that of this run."""
    run = Run(jobs_of([1_000] * 100)[-1:])
    for _ in range(10):
        run.answer()

    assert run.seconds_left == pytest.approx(90.0, rel=0.01)


def test_the_time_left_stays_between_reports_and_ends_at_0() -> None:
    run = Run(jobs_of([1_000] * 20))
    for _ in range(10):
        run.answer()
    before = run.seconds_left
    run.now += 60.0
    assert run.seconds_left == before

    run.answer(10)

    assert run.seconds_left == 0.0


def test_the_time_left_of_generation_is_unknown_until_a_batch_is_answered() -> None:
    """The lengths of the answers are unknown, and the short ones come first."""
    prompts = [Prompt("a" * 1_000, GenerationParams()) for _ in range(400)]
    run = Run(list(generate_jobs(prompts, ClientSettings())))
    for _ in range(255):
        run.answer()
        assert run.seconds_left is None

    run.answer()

    assert run.seconds_left == pytest.approx(144.0, rel=0.01)


def test_no_time_left_of_other_work() -> None:
    estimate = ProgressEstimator([Job(DescribeWork(), [0])], 0.0)
    estimate.answered([0])
    estimate.progressed(ComputeCounters(), 1.0)

    assert estimate.progress() == Progress()


def test_extreme_counters_of_a_worker_raise_no_error() -> None:
    limit = 2**53 - 1
    estimate = ProgressEstimator(jobs_of([1, 1]), 0.0)
    for now in range(10):
        estimate.progressed(ComputeCounters(tokens=limit, seconds=1e9, compile_seconds=1e9), float(now))

    assert estimate.progress().tokens_per_second is not None
