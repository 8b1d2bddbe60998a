"""Clients take turns at a model: one that submits much makes another wait for one batch of its own at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.broker.scheduler import Batch, Scheduler, SubBatch
from birdie_zmq.types import ModelSpec, RollingWork, StepLimits
from tests.broker.harness import A, B


def part(client: str, number: int, model: ModelSpec = A) -> SubBatch:
    work = RollingWork(texts=["x"])
    return SubBatch.whole(Batch(client.encode(), number, model, work, StepLimits(), float(number)))


def queue(*parts: SubBatch) -> Scheduler:
    queues = Scheduler()
    for each in parts:
        queues.append(each)
    return queues


def taken(queues: Scheduler, count: int | None = None, model: ModelSpec = A) -> str:
    """The clients of what comes next."""
    found = ""
    while (count is None or len(found) < count) and (each := queues.take(model, alone=True)) is not None:
        found += each.batch.client.decode()
    return found


def test_one_batch_of_each_comes_before_the_next_of_any() -> None:
    queues = queue(*(part("a", number) for number in range(4)), part("b", 4), part("b", 5), part("c", 6))
    assert taken(queues) == "abcabaa"


def test_whoever_comes_later_waits_for_one_batch_of_each() -> None:
    queues = queue(*(part("a", number) for number in range(20)))
    assert taken(queues, 5) == "aaaaa"
    queues.append(part("b", 20))
    queues.append(part("b", 21))
    assert taken(queues, 5) == "babaa"


def test_one_batch_at_a_time_takes_no_more_than_its_turn() -> None:
    """A client that submits its next batch when the last is handed out is no faster than one that has many waiting."""
    queues = queue(*(part("a", number) for number in range(20)))
    order = ""
    for number in range(20, 26):
        queues.append(part("b", number))
        order += taken(queues, 2)
    assert order.count("b") == 6
    assert "bb" not in order


def test_a_part_that_was_lost_comes_before_all_turns() -> None:
    queues = queue(part("a", 0), part("a", 1), part("b", 2))
    lost = queues.take(A, alone=True)
    assert lost is not None
    queues.put_back(lost)
    queues.append(part("c", 3))
    assert queues.take(A, alone=True) is lost


def test_the_part_that_has_waited_longest_is_found_behind_others() -> None:
    """A newcomer's turn comes first, but how long its model has waited is not forgotten for that."""
    first, second, newcomer = part("a", 1, B), part("a", 2, B), part("b", 3, B)
    queues = queue(first, second, newcomer)
    assert taken(queues, 1, B) == "a"
    assert taken(queues, 1, B) == "b"
    queues.append(part("c", 4, B))
    queues.append(part("d", 5, B))
    assert queues.oldest(other_than=A) is second


@pytest.mark.parametrize("model", [A, B])
@given(clients=st.lists(st.sampled_from("abc"), max_size=30))
def test_each_clients_batches_keep_their_order(model: ModelSpec, clients: list[str]) -> None:
    queues = queue(*(part(client, number, model) for number, client in enumerate(clients)))
    numbers: dict[bytes, list[int]] = {}
    while (each := queues.take(model, alone=True)) is not None:
        numbers.setdefault(each.batch.client, []).append(each.batch.number)
    assert sum(map(len, numbers.values())) == len(clients)
    assert all(of_one == sorted(of_one) for of_one in numbers.values())
