"""Jobs, and how those of a short call are split."""

from __future__ import annotations

from birdie_zmq.client.job import Job, split_short_call
from birdie_zmq.types import RollingWork


def job(items: int) -> Job:
    texts = ["a" * 100 for _ in range(items)]
    return Job(RollingWork(texts=texts), list(range(items)), "prefix", 100 * items)


def test_some_items_of_a_job() -> None:
    assert job(4).select([1, 3]) == Job(RollingWork(texts=["a" * 100] * 2), [1, 3], "prefix", 200)


def test_a_job_is_split_into_parts_with_its_prefix() -> None:
    parts = job(128).split(3)

    assert [item for part in parts for item in part.items] == list(range(128))
    assert len(parts) == 3
    assert all(part.prefix == "prefix" and part.characters == 100 * len(part.items) for part in parts)


def test_a_job_for_one_worker_is_not_split() -> None:
    jobs = [job(256)]

    assert list(split_short_call(jobs, 1)) == jobs
    assert list(split_short_call([], 4)) == []


def test_the_jobs_of_a_long_call_are_taken_one_by_one() -> None:
    jobs = [job(count) for count in (1, 2, 3, 4, 5)]
    unprepared = iter(jobs)

    split = split_short_call(unprepared, 2)

    assert next(split) == jobs[0]
    assert list(unprepared) == jobs[3:]
    assert list(split) == jobs[1:3]


def test_each_worker_gets_two_jobs_of_a_short_call() -> None:
    assert [len(part.items) for part in split_short_call([job(256)], 2)] == [64] * 4
