"""The batches of one call: the window, settled items and batches that are sent again."""

from __future__ import annotations

from itertools import count

from birdie_zmq.client.batches import Batches
from birdie_zmq.client.job import Job
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import RollingWork

SETTINGS = ClientSettings(window=2, max_window=8, max_characters_in_flight=50)


def job(*items: int, characters: int = 10) -> Job:
    return Job(RollingWork(texts=[f"text {item}" for item in items]), list(items), characters=characters)


def items_of(sent: list[tuple[int, Job]]) -> dict[int, list[int]]:
    return {number: job.items for number, job in sent}


def test_batches_are_numbered_in_order() -> None:
    batches = Batches([job(0), job(1), job(2)], count(5), SETTINGS)

    assert items_of(batches.fill_window(workers=1)) == {5: [0], 6: [1], 7: [2]}
    assert batches.fill_window(workers=1) == []
    assert batches.in_flight(6) == job(1)
    assert batches.in_flight(8) is None


def test_a_job_is_taken_when_its_batch_may_be_sent() -> None:
    jobs = iter([job(0), job(1), job(2), job(3), job(4)])
    batches = Batches(jobs, count(), SETTINGS)

    assert items_of(batches.fill_window(workers=1)) == {0: [0], 1: [1], 2: [2]}
    assert next(jobs) == job(4)  # Job 3 is the next to be sent.
    batches.settle(0, [0])
    assert items_of(batches.fill_window(workers=1)) == {3: [3]}


def test_all_jobs_are_prepared_while_the_first_are_in_flight() -> None:
    jobs = [job(0), job(1), job(2), job(3), job(4)]
    batches = Batches(iter(jobs), count(), SETTINGS)
    batches.fill_window(workers=1)

    assert batches.prepare_all() == jobs
    for number in range(3):
        batches.settle(number, [0])
    assert not batches.are_settled
    assert items_of(batches.fill_window(workers=1)) == {3: [3], 4: [4]}


def test_an_item_is_settled_once() -> None:
    batches = Batches([job(7, 8, 9)], count(), SETTINGS)
    batches.fill_window(workers=1)

    assert batches.settle(0, [2, 0, 2]) == {2: 0, 0: 1}
    assert batches.settle(0, [0]) == {}
    assert batches.in_flight(0) is not None
    assert batches.settle(0, [0, 1]) == {1: 1}
    assert batches.are_settled
    assert batches.in_flight(0) is None


def test_a_settled_batch_makes_space_for_its_characters() -> None:
    batches = Batches([job(item, characters=25) for item in range(4)], count(), SETTINGS)
    assert len(batches.fill_window(workers=4)) == 2

    batches.settle(1, [0])
    assert items_of(batches.fill_window(workers=4)) == {2: [2]}
    batches.remove(0)
    assert items_of(batches.fill_window(workers=4)) == {3: [3]}


def test_unsettled_items_are_sent_again_before_the_others() -> None:
    batches = Batches([job(0, 1, 2, 3, characters=40), job(4), job(5), job(6)], count(), SETTINGS)
    batches.fill_window(workers=0)
    batches.settle(0, [1, 2])

    batches.send_again()

    sent = batches.fill_window(workers=4)
    assert items_of(sent) == {2: [0, 3], 3: [4], 4: [5], 5: [6]}
    assert sent[0][1].characters == 20
