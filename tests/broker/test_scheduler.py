"""The scheduler: first in, first out per model, and model switches of workers."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.broker.scheduler import Batch, Candidate, Scheduler, SubBatch
from birdie_zmq.protocol.packing import unpack_work
from birdie_zmq.types import ModelSpec, RollingWork, StepLimits
from tests.broker.harness import A, B, C, rolling

SWITCH_DELAY_S = 30.0


def batch(number: int, model: ModelSpec = A, submitted_at: float = 0.0, texts: str = "x") -> SubBatch:
    """Make a sub-batch of all items of a batch, with one item per letter."""
    return SubBatch.whole(Batch(b"client", number, model, rolling(*texts), StepLimits(), submitted_at))


def suspect(number: int) -> SubBatch:
    """Make a sub-batch that has crashed once."""
    sub_batch = batch(number)
    sub_batch.crashes = 1
    return sub_batch


def scheduler_with(*sub_batches: SubBatch) -> Scheduler:
    scheduler = Scheduler()
    for sub_batch in sub_batches:
        scheduler.append(sub_batch)
    return scheduler


def take_all(scheduler: Scheduler, model: ModelSpec) -> list[int]:
    """Take all batches for a model, and return their numbers in order."""
    numbers = []
    while (sub_batch := scheduler.take(model, is_idle=True)) is not None:
        numbers.append(sub_batch.batch.number)
    return numbers


def choose(
    scheduler: Scheduler,
    loaded: ModelSpec | None,
    *,
    now: float = 0.0,
    since: float = 0.0,
    is_idle: bool = True,
    may_switch: bool = True,
) -> int | None:
    """Choose the next batch of a worker that has had a model loaded since a time, and return its number."""
    candidate = Candidate(loaded, since, is_idle)
    sub_batch = scheduler.choose(candidate, now, SWITCH_DELAY_S, may_switch=may_switch)
    return None if sub_batch is None else sub_batch.batch.number


def test_an_idle_worker_is_needed_if_a_suspect_is_next_for_each_model() -> None:
    assert scheduler_with(suspect(1)).needs_idle_worker
    assert scheduler_with(suspect(1), batch(2)).needs_idle_worker, "the batch behind the suspect waits"
    assert not scheduler_with(batch(1), suspect(2)).needs_idle_worker
    assert not scheduler_with(suspect(1), batch(2, B)).needs_idle_worker


# --- A sub-batch ------------------------------------------------------------------------------------------------------


def test_the_first_attempt_is_all_of_the_work() -> None:
    sub_batch = batch(1, texts="abc")
    assert sub_batch.next_attempt() is sub_batch.batch.work
    assert (sub_batch.attempts, sub_batch.items) == (1, [0, 1, 2])


def test_the_next_attempt_is_the_unsettled_items() -> None:
    sub_batch = batch(1, texts="abcd")
    sub_batch.next_attempt()
    sub_batch.batch.settled.update({0, 2})
    assert unpack_work(sub_batch.next_attempt()) == RollingWork(texts=["b", "d"])
    assert (sub_batch.attempts, sub_batch.items) == (2, [1, 3])


def test_a_sub_batch_is_settled_when_all_its_items_are() -> None:
    sub_batch = batch(1, texts="abc")
    half = SubBatch(sub_batch.batch, [0, 1])
    seen = []
    for index in (1, 0, 2):
        sub_batch.batch.settled.add(index)
        seen.append((half.is_settled, sub_batch.is_settled))
    assert seen == [(False, False), (True, False), (True, True)]


def test_the_work_of_a_sub_batch_is_that_of_its_items() -> None:
    work = SubBatch(batch(1, texts="abcd").batch, [1, 3]).next_attempt()
    assert unpack_work(work) == RollingWork(texts=["b", "d"])


# --- The order within a queue ----------------------------------------------------------------------------------------


def test_nothing_is_taken_from_an_empty_queue() -> None:
    assert scheduler_with(batch(1, B)).take(A, is_idle=True) is None


def test_batches_are_taken_in_order() -> None:
    assert take_all(scheduler_with(batch(1), batch(2), batch(3)), A) == [1, 2, 3]


def test_each_model_has_its_own_queue() -> None:
    scheduler = scheduler_with(batch(1, A), batch(2, B), batch(3, A))
    assert take_all(scheduler, B) == [2]
    assert take_all(scheduler, A) == [1, 3]


def test_models_with_different_arguments_have_different_queues() -> None:
    seeded = ModelSpec(tag="A", arguments='{"seed": 1}')
    assert take_all(scheduler_with(batch(1, A), batch(2, seeded)), seeded) == [2]


def test_a_requeued_sub_batch_comes_first() -> None:
    scheduler = scheduler_with(batch(1), batch(2))
    first = scheduler.take(A, is_idle=True)
    assert first is not None
    scheduler.requeue(first)
    assert take_all(scheduler, A) == [1, 2]


def test_a_suspect_goes_only_to_an_idle_worker_and_nothing_overtakes_it() -> None:
    scheduler = scheduler_with(suspect(1), batch(2))
    assert scheduler.take(A, is_idle=False) is None
    assert take_all(scheduler, A) == [1, 2]


def test_all_sub_batches_of_a_batch_are_dropped() -> None:
    two = batch(2, A, texts="ab")
    scheduler = scheduler_with(batch(1, A), SubBatch(two.batch, [0]), batch(3, B), SubBatch(two.batch, [1]))
    scheduler.drop(two.batch)
    assert take_all(scheduler, A) == [1]
    assert take_all(scheduler, B) == [3]
    scheduler.drop(two.batch)
    assert scheduler.oldest(other_than=None) is None


def test_clear_removes_all_sub_batches() -> None:
    scheduler = scheduler_with(batch(1, A), batch(2, B))
    scheduler.clear()
    assert len(scheduler) == 0


def test_batches_are_counted_and_listed_over_all_models() -> None:
    scheduler = scheduler_with(batch(1, A), batch(2, B), batch(3, A))
    assert len(scheduler) == 3
    assert {sub_batch.batch.number for sub_batch in scheduler} == {1, 2, 3}


@given(st.lists(st.tuples(st.sampled_from(["append", "requeue", "take"]), st.sampled_from([A, B]))))
def test_the_scheduler_behaves_like_one_deque_per_model(steps: list[tuple[str, ModelSpec]]) -> None:
    scheduler = Scheduler()
    expected: dict[ModelSpec, deque[int]] = {A: deque(), B: deque()}
    for number, (step, model) in enumerate(steps):
        match step:
            case "append":
                scheduler.append(batch(number, model))
                expected[model].append(number)
            case "requeue":
                scheduler.requeue(batch(number, model))
                expected[model].appendleft(number)
            case "take":
                sub_batch = scheduler.take(model, is_idle=True)
                assert (None if sub_batch is None else sub_batch.batch.number) == (
                    expected[model].popleft() if expected[model] else None
                )
        assert len(scheduler) == sum(map(len, expected.values()))
    for model, numbers in expected.items():
        assert take_all(scheduler, model) == list(numbers)


# --- The oldest batch -------------------------------------------------------------------------------------------------


def test_the_oldest_sub_batch_of_other_queues_is_found_and_stays_queued() -> None:
    scheduler = scheduler_with(batch(1, A, 1.0), batch(2, B, 3.0), batch(3, C, 2.0))
    for _ in range(2):
        oldest = scheduler.oldest(other_than=A)
        assert oldest is not None
        assert oldest.batch.number == 3


def test_there_is_no_oldest_if_only_the_own_queue_waits() -> None:
    assert scheduler_with(batch(1, A)).oldest(other_than=A) is None


# --- The next batch of a worker ---------------------------------------------------------------------------------------


def test_nothing_is_chosen_from_an_empty_scheduler() -> None:
    assert choose(Scheduler(), A) is None
    assert choose(Scheduler(), None) is None


def test_a_worker_without_a_model_gets_the_oldest_batch() -> None:
    assert choose(scheduler_with(batch(1, A, 2.0), batch(2, B, 1.0)), None, now=3.0) == 2


def test_a_worker_keeps_its_model() -> None:
    scheduler = scheduler_with(batch(1, B, 0.0), batch(2, A, 5.0))
    assert choose(scheduler, A, now=10.0) == 2


def test_a_worker_switches_when_its_own_queue_is_empty() -> None:
    assert choose(scheduler_with(batch(1, B)), A) == 1


def test_a_worker_finishes_its_leases_before_it_switches() -> None:
    scheduler = scheduler_with(batch(1, B))
    assert choose(scheduler, A, is_idle=False) is None
    assert len(scheduler) == 1


@pytest.mark.parametrize(("now", "expected"), [(SWITCH_DELAY_S, 2), (SWITCH_DELAY_S + 0.1, 1)])
def test_a_worker_switches_for_a_batch_that_has_waited_longer_than_the_switch_delay(now: float, expected: int) -> None:
    scheduler = scheduler_with(batch(1, B, 0.0), batch(2, A, 5.0))
    assert choose(scheduler, A, now=now) == expected


@pytest.mark.parametrize(("now", "expected"), [(20.0 + SWITCH_DELAY_S, 2), (20.1 + SWITCH_DELAY_S, 1)])
def test_a_loaded_model_is_served_for_at_least_the_switch_delay(now: float, expected: int) -> None:
    scheduler = scheduler_with(batch(1, B, 0.0), batch(2, A, 5.0))
    assert choose(scheduler, A, since=20.0, now=now) == expected


def test_a_worker_due_to_switch_takes_no_more_batches_of_its_model() -> None:
    scheduler = scheduler_with(batch(1, B, 0.0), batch(2, A, 5.0))
    assert choose(scheduler, A, now=SWITCH_DELAY_S + 1, is_idle=False) is None
    assert len(scheduler) == 2


def test_a_worker_that_may_not_switch_gets_its_own_model_only() -> None:
    scheduler = scheduler_with(batch(1, B))
    assert choose(scheduler, A, may_switch=False) is None
    assert choose(scheduler, B, may_switch=False) == 1


# --- Request arguments -----------------------------------------------------------------------------------------------


A_1, A_2 = (ModelSpec(tag="A", request_arguments=(("seed", str(seed)),)) for seed in (1, 2))


def of(client: bytes, number: int, model: ModelSpec) -> SubBatch:
    sub_batch = batch(number, model)
    sub_batch.batch.client = client
    return sub_batch


def choose_all(scheduler: Scheduler, *ignored: str) -> list[int]:
    """Return the numbers of the batches that a worker takes which has A with seed 1 loaded, without a model switch."""
    numbers = []
    candidate = Candidate(A_1, 0.0, is_idle=True, ignored=ignored)
    while (sub_batch := scheduler.choose(candidate, 0.0, SWITCH_DELAY_S, may_switch=False)) is not None:
        numbers.append(sub_batch.batch.number)
    return numbers


def test_a_worker_serves_queues_that_differ_only_in_arguments_that_it_ignores() -> None:
    batches = [batch(1, A_2), batch(2, B), batch(3, A_1)]
    assert choose_all(scheduler_with(*batches), "seed") == [1, 3]
    assert choose_all(scheduler_with(*batches)) == [3]
    assert choose_all(scheduler_with(*batches), "max_gen_toks") == [3]


def test_clients_with_other_ignored_arguments_take_turns() -> None:
    scheduler = scheduler_with(
        *(of(b"one", number, A_1) for number in (1, 2, 3)),
        *(of(b"two", number, A_2) for number in (11, 12, 13)),
        *(of(b"three", number, A_1) for number in (21, 22, 23)),
    )
    numbers = choose_all(scheduler, "seed")
    assert [sorted(numbers[begin : begin + 3]) for begin in (0, 3, 6)] == [[1, 11, 21], [2, 12, 22], [3, 13, 23]]


def test_nothing_overtakes_a_suspect_with_other_ignored_arguments() -> None:
    scheduler = scheduler_with(of(b"one", 1, A_1), of(b"two", 2, A_2), of(b"one", 3, A_1))
    candidate = Candidate(A_2, 0.0, is_idle=False, ignored=("seed",))
    first = scheduler.choose(candidate, 0.0, SWITCH_DELAY_S, may_switch=False)
    assert first is not None
    first.crashes = 1
    scheduler.requeue(first)
    assert scheduler.choose(candidate, 0.0, SWITCH_DELAY_S, may_switch=False) is None
    assert choose_all(scheduler, "seed") == [1, 2, 3]


def test_queues_of_all_arguments_leave_nothing_behind() -> None:
    scheduler = scheduler_with(batch(1, A_1), batch(2, A_2))
    choose_all(scheduler, "seed")
    assert len(scheduler) == 0
    assert (scheduler._waiting, scheduler._turns) == ({}, {})
