"""Queues: first in, first out, by model; and when a worker changes models."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.broker.scheduler import Batch, Scheduler, SubBatch
from birdie_zmq.types import ModelSpec, RollingWork, StepLimits

A, B, C = (ModelSpec(tag=tag) for tag in "ABC")
PATIENCE_S = 30.0


def batch(number: int, model: ModelSpec = A, submitted_at: float = 0.0, texts: str = "x") -> SubBatch:
    """All of a batch of one client, with one item a letter."""
    work = RollingWork(texts=list(texts))
    return SubBatch.whole(Batch(b"client", number, model, work, StepLimits(), submitted_at))


def suspect(number: int) -> SubBatch:
    """A batch that was lost once."""
    part = batch(number)
    part.losses = 1
    return part


def queued(*parts: SubBatch) -> Scheduler:
    queues = Scheduler()
    for one in parts:
        queues.append(one)
    return queues


def taken(queues: Scheduler, model: ModelSpec) -> list[int]:
    """The numbers of all batches for a model, in the order in which they are given out."""
    numbers = []
    while (one := queues.take(model, alone=True)) is not None:
        numbers.append(one.batch.number)
    return numbers


def chosen(
    queues: Scheduler,
    loaded: ModelSpec | None,
    *,
    now: float = 0.0,
    since: float = 0.0,
    alone: bool = True,
    may_change: bool = True,
) -> int | None:
    """The number of the batch for a worker that has had a model loaded since some time."""
    one = queues.choose(loaded, since, now, PATIENCE_S, alone=alone, may_change=may_change)
    return None if one is None else one.batch.number


def test_only_a_worker_without_work_is_wanted_where_a_suspect_is_next_for_each_model() -> None:
    assert queued(suspect(1)).wants_idle
    assert queued(suspect(1), batch(2)).wants_idle, "what stands behind it waits"
    assert not queued(batch(1), suspect(2)).wants_idle
    assert not queued(suspect(1), batch(2, B)).wants_idle


# --- A part ----------------------------------------------------------------------------------------------------------


def test_the_first_attempt_is_all_of_the_work() -> None:
    one = batch(1, texts="abc")
    assert one.next_attempt() is one.batch.work
    assert (one.attempts, one.items) == (1, [0, 1, 2])


def test_the_next_attempt_is_what_is_not_settled() -> None:
    one = batch(1, texts="abcd")
    one.next_attempt()
    one.batch.settled.update({0, 2})
    assert one.next_attempt() == RollingWork(texts=["b", "d"])
    assert (one.attempts, one.items) == (2, [1, 3])


def test_a_part_is_settled_when_all_its_items_are() -> None:
    one = batch(1, texts="abc")
    half = SubBatch(one.batch, [0, 1])
    seen = []
    for index in (1, 0, 2):
        one.batch.settled.add(index)
        seen.append((half.is_settled, one.is_settled))
    assert seen == [(False, False), (True, False), (True, True)]


def test_a_part_of_a_batch_is_the_work_of_its_items() -> None:
    assert SubBatch(batch(1, texts="abcd").batch, [1, 3]).next_attempt() == RollingWork(texts=["b", "d"])


# --- The order within a queue ----------------------------------------------------------------------------------------


def test_an_empty_queue_gives_nothing() -> None:
    assert queued(batch(1, B)).take(A, alone=True) is None


def test_batches_are_given_out_in_their_order() -> None:
    assert taken(queued(batch(1), batch(2), batch(3)), A) == [1, 2, 3]


def test_each_model_has_a_queue_of_its_own() -> None:
    queues = queued(batch(1, A), batch(2, B), batch(3, A))
    assert taken(queues, B) == [2]
    assert taken(queues, A) == [1, 3]


def test_models_differ_by_their_arguments() -> None:
    seeded = ModelSpec(tag="A", arguments='{"seed": 1}')
    assert taken(queued(batch(1, A), batch(2, seeded)), seeded) == [2]


def test_what_is_put_back_goes_first() -> None:
    queues = queued(batch(1), batch(2))
    first = queues.take(A, alone=True)
    assert first is not None
    queues.put_back(first)
    assert taken(queues, A) == [1, 2]


def test_a_suspect_is_given_only_to_a_worker_that_holds_nothing_and_nothing_overtakes_it() -> None:
    queues = queued(suspect(1), batch(2))
    assert queues.take(A, alone=False) is None
    assert taken(queues, A) == [1, 2]


def test_all_parts_of_a_batch_are_dropped() -> None:
    two = batch(2, A, texts="ab")
    queues = queued(batch(1, A), SubBatch(two.batch, [0]), batch(3, B), SubBatch(two.batch, [1]))
    queues.drop(two.batch)
    assert taken(queues, A) == [1]
    assert taken(queues, B) == [3]
    queues.drop(two.batch)
    assert queues.oldest(other_than=None) is None


def test_everything_is_cleared() -> None:
    queues = queued(batch(1, A), batch(2, B))
    queues.clear()
    assert len(queues) == 0


def test_batches_are_counted_and_listed_over_all_models() -> None:
    queues = queued(batch(1, A), batch(2, B), batch(3, A))
    assert len(queues) == 3
    assert {one.batch.number for one in queues} == {1, 2, 3}


@given(st.lists(st.tuples(st.sampled_from(["append", "put back", "take"]), st.sampled_from([A, B]))))
def test_queues_behave_as_one_deque_a_model(steps: list[tuple[str, ModelSpec]]) -> None:
    queues = Scheduler()
    expected: dict[ModelSpec, deque[int]] = {A: deque(), B: deque()}
    for number, (step, model) in enumerate(steps):
        match step:
            case "append":
                queues.append(batch(number, model))
                expected[model].append(number)
            case "put back":
                queues.put_back(batch(number, model))
                expected[model].appendleft(number)
            case "take":
                one = queues.take(model, alone=True)
                assert (None if one is None else one.batch.number) == (
                    expected[model].popleft() if expected[model] else None
                )
        assert len(queues) == sum(map(len, expected.values()))
    for model, numbers in expected.items():
        assert taken(queues, model) == list(numbers)


# --- The batch that has waited longest -------------------------------------------------------------------------------


def test_the_oldest_head_of_other_queues_is_found_and_stays() -> None:
    queues = queued(batch(1, A, 1.0), batch(2, B, 3.0), batch(3, C, 2.0))
    for _ in range(2):
        oldest = queues.oldest(other_than=A)
        assert oldest is not None
        assert oldest.batch.number == 3


def test_there_is_no_oldest_where_only_the_own_queue_waits() -> None:
    assert queued(batch(1, A)).oldest(other_than=A) is None


# --- What a worker gets next -----------------------------------------------------------------------------------------


def test_nothing_waits_and_nothing_is_chosen() -> None:
    assert chosen(Scheduler(), A) is None
    assert chosen(Scheduler(), None) is None


def test_a_worker_without_a_model_gets_what_has_waited_longest() -> None:
    assert chosen(queued(batch(1, A, 2.0), batch(2, B, 1.0)), None, now=3.0) == 2


def test_a_worker_stays_with_its_model() -> None:
    queues = queued(batch(1, B, 0.0), batch(2, A, 5.0))
    assert chosen(queues, A, now=10.0) == 2


def test_a_worker_changes_when_its_own_queue_is_empty() -> None:
    assert chosen(queued(batch(1, B)), A) == 1


def test_a_worker_finishes_what_it_has_before_it_changes() -> None:
    queues = queued(batch(1, B))
    assert chosen(queues, A, alone=False) is None
    assert len(queues) == 1


@pytest.mark.parametrize(("now", "expected"), [(PATIENCE_S, 2), (PATIENCE_S + 0.1, 1)])
def test_a_worker_changes_for_one_that_has_waited_too_long(now: float, expected: int) -> None:
    queues = queued(batch(1, B, 0.0), batch(2, A, 5.0))
    assert chosen(queues, A, now=now) == expected


@pytest.mark.parametrize(("now", "expected"), [(20.0 + PATIENCE_S, 2), (20.1 + PATIENCE_S, 1)])
def test_a_model_is_served_for_the_patience_once_it_is_loaded(now: float, expected: int) -> None:
    queues = queued(batch(1, B, 0.0), batch(2, A, 5.0))
    assert chosen(queues, A, since=20.0, now=now) == expected


def test_a_worker_that_ought_to_change_takes_no_more_of_its_own() -> None:
    queues = queued(batch(1, B, 0.0), batch(2, A, 5.0))
    assert chosen(queues, A, now=PATIENCE_S + 1, alone=False) is None
    assert len(queues) == 2


def test_a_worker_that_may_not_change_is_given_its_own_model_only() -> None:
    queues = queued(batch(1, B))
    assert chosen(queues, A, may_change=False) is None
    assert chosen(queues, B, may_change=False) == 1
