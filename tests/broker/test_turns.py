"""Clients take turns at a model: a client with many batches delays another client by one batch at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.broker.scheduler import Batch, Scheduler, SubBatch
from birdie_zmq.types import ModelSpec, StepLimits
from tests.broker.harness import A, B, rolling


def sub_batch_of(client: str, number: int, model: ModelSpec = A) -> SubBatch:
    return SubBatch.whole(Batch(client.encode(), number, model, rolling("x"), StepLimits(), float(number)))


def scheduler_with(*sub_batches: SubBatch) -> Scheduler:
    scheduler = Scheduler()
    for sub_batch in sub_batches:
        scheduler.append(sub_batch)
    return scheduler


def take_clients(scheduler: Scheduler, count: int | None = None, model: ModelSpec = A) -> str:
    """Take the next sub-batches, and return their clients."""
    clients = ""
    while (count is None or len(clients) < count) and (sub_batch := scheduler.take(model, is_idle=True)) is not None:
        clients += sub_batch.batch.client.decode()
    return clients


def test_clients_take_turns_round_robin() -> None:
    scheduler = scheduler_with(
        *(sub_batch_of("a", number) for number in range(4)),
        sub_batch_of("b", 4),
        sub_batch_of("b", 5),
        sub_batch_of("c", 6),
    )
    assert take_clients(scheduler) == "abcabaa"


def test_a_new_client_waits_for_one_batch_of_each_other_client() -> None:
    scheduler = scheduler_with(*(sub_batch_of("a", number) for number in range(20)))
    assert take_clients(scheduler, 5) == "aaaaa"
    scheduler.append(sub_batch_of("b", 20))
    scheduler.append(sub_batch_of("b", 21))
    assert take_clients(scheduler, 5) == "babaa"


def test_a_client_that_submits_one_batch_at_a_time_gets_no_more_than_its_turn() -> None:
    """A client that submits a batch whenever its last one is leased is no faster than a client with many queued."""
    scheduler = scheduler_with(*(sub_batch_of("a", number) for number in range(20)))
    order = ""
    for number in range(20, 26):
        scheduler.append(sub_batch_of("b", number))
        order += take_clients(scheduler, 2)
    assert order.count("b") == 6
    assert "bb" not in order


def test_a_requeued_sub_batch_comes_before_all_turns() -> None:
    scheduler = scheduler_with(sub_batch_of("a", 0), sub_batch_of("a", 1), sub_batch_of("b", 2))
    retried = scheduler.take(A, is_idle=True)
    assert retried is not None
    scheduler.requeue(retried)
    scheduler.append(sub_batch_of("c", 3))
    assert scheduler.take(A, is_idle=True) is retried


def test_the_oldest_sub_batch_is_found_behind_others() -> None:
    """A new client has an earlier turn, but the waiting time of its model counts from the oldest sub-batch."""
    first, second, newcomer = sub_batch_of("a", 1, B), sub_batch_of("a", 2, B), sub_batch_of("b", 3, B)
    scheduler = scheduler_with(first, second, newcomer)
    assert take_clients(scheduler, 1, B) == "a"
    assert take_clients(scheduler, 1, B) == "b"
    scheduler.append(sub_batch_of("c", 4, B))
    scheduler.append(sub_batch_of("d", 5, B))
    assert scheduler.oldest(other_than=A) is second


@pytest.mark.parametrize("model", [A, B])
@given(clients=st.lists(st.sampled_from("abc"), max_size=30))
def test_the_batches_of_each_client_keep_their_order(model: ModelSpec, clients: list[str]) -> None:
    scheduler = scheduler_with(*(sub_batch_of(client, number, model) for number, client in enumerate(clients)))
    numbers: dict[bytes, list[int]] = {}
    while (sub_batch := scheduler.take(model, is_idle=True)) is not None:
        numbers.setdefault(sub_batch.batch.client, []).append(sub_batch.batch.number)
    assert sum(map(len, numbers.values())) == len(clients)
    assert all(of_one == sorted(of_one) for of_one in numbers.values())
