"""Work stealing at the end of a run: idle workers take over items of workers that have many left."""

from __future__ import annotations

import pytest

from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ModelSpec
from tests.broker.harness import (
    CLIENT,
    OPEN_SESSION,
    OTHER_WORKER,
    WORKER,
    A,
    B,
    BrokerHarness,
    answer,
    crash,
    fail,
    finish,
    register,
    rolling,
    submit,
    texts_of,
)


@pytest.fixture
def harness() -> BrokerHarness:
    """A client, and one worker of capacity 2 that has model A loaded."""
    harness = BrokerHarness()
    harness.send(CLIENT, OPEN_SESSION)
    harness.send(WORKER, register(capacity=2, model=A))
    return harness


def join_idle_worker(harness: BrokerHarness, model: ModelSpec | None = A) -> None:
    """Register another worker, and let it be idle for a while."""
    harness.send(OTHER_WORKER, register(capacity=2, model=model))
    let_workers_idle(harness)


def let_workers_idle(harness: BrokerHarness) -> None:
    for _ in range(4):
        harness.advance(harness.settings.tick_s)


def test_a_briefly_idle_worker_steals_nothing(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="abcd"))
    harness.send(OTHER_WORKER, register(capacity=2, model=A))
    harness.advance(0.5)
    harness.advance(0.5)
    assert harness.leases(OTHER_WORKER) == []
    harness.advance(0.5)
    assert len(harness.leases(OTHER_WORKER)) == 1


def test_a_worker_that_finishes_its_last_lease_does_not_steal_at_once(harness: BrokerHarness) -> None:
    harness.send(OTHER_WORKER, register(capacity=2, model=A))
    harness.send(CLIENT, submit(1, texts="abcd"), submit(2, texts="efgh"))
    let_workers_idle(harness)
    harness.send(OTHER_WORKER, *finish(harness.lease(OTHER_WORKER)))
    harness.advance(0.5)
    harness.advance(0.5)
    assert harness.leases(OTHER_WORKER) == []
    harness.advance(0.5)
    assert texts_of(harness.lease(OTHER_WORKER)) == ["c", "d"]


def test_the_worker_with_the_fewest_items_left_steals_first(harness: BrokerHarness) -> None:
    for worker in (OTHER_WORKER, b"third"):
        harness.send(worker, register(capacity=2, model=A))
    for number in range(4):
        harness.send(CLIENT, submit(number, texts=texts_of_length(256)))
    held = harness.lease(OTHER_WORKER)
    assert [len(harness.leases(worker)) for worker in (WORKER, b"third")] == [2, 1]
    harness.send(OTHER_WORKER, answer(held, *range(100)))
    for _ in range(3):
        harness.advance(0.5)
    assert len(harness.lease(OTHER_WORKER).work) == (512 - 156) // 2
    assert harness.leases(b"third") == []


def cancelled(harness: BrokerHarness, worker: bytes = WORKER) -> list[int]:
    return [cancel.lease for cancel in harness.received(worker, m.CancelLease)]


def test_two_workers_get_one_batch_each_before_one_gets_two(harness: BrokerHarness) -> None:
    harness.send(WORKER, m.DrainWorker())
    harness.send(b"first", register(capacity=2, model=A))
    harness.send(b"second", register(capacity=2, model=A))
    for number in range(3):
        harness.send(CLIENT, submit(number, texts="xy"))
    assert [len(harness.leases(worker)) for worker in (b"first", b"second")] == [2, 1]


def test_an_idle_worker_steals_a_lease_that_was_not_started(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="abcd"), submit(2, texts="efgh"))
    first, second = harness.leases()
    join_idle_worker(harness)
    assert cancelled(harness) == [second.lease]
    assert texts_of(harness.lease(OTHER_WORKER)) == ["e", "f", "g", "h"]
    assert harness.leases() == []
    del first


def test_after_a_steal_both_workers_have_the_same_number_of_items(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="ab"), submit(2, texts="cdefgh"))
    harness.leases()
    join_idle_worker(harness)
    assert texts_of(harness.lease()) == ["c", "d"]
    assert texts_of(harness.lease(OTHER_WORKER)) == ["e", "f", "g", "h"]


def test_the_second_half_of_a_running_lease_is_duplicated_and_answered_once(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="abcdef"))
    original = harness.lease()
    harness.send(WORKER, answer(original, 0, 1))
    join_idle_worker(harness)
    assert cancelled(harness) == []
    stolen = harness.lease(OTHER_WORKER)
    assert texts_of(stolen) == ["e", "f"]
    harness.send(OTHER_WORKER, answer(stolen, 1))
    harness.send(WORKER, answer(original, 4, 5))  # The client ignores the second answer to item 5.
    harness.send(OTHER_WORKER, answer(stolen, 0), m.LeaseDone(lease=stolen.lease))
    harness.send(WORKER, answer(original, 2, 3), m.LeaseDone(lease=original.lease))
    assert harness.answers() == [
        (1, [0, 1], ["A", "B"]),
        (1, [5], ["F"]),
        (1, [4, 5], ["E", "F"]),
        (1, [2, 3], ["C", "D"]),
    ]
    assert harness.received(WORKER, m.Refusal) == harness.received(OTHER_WORKER, m.Refusal) == []


def test_a_lease_is_cancelled_when_its_duplicate_has_answered_the_rest(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="ab"))
    original = harness.lease()
    join_idle_worker(harness)
    harness.send(WORKER, answer(original, 0))
    stolen = harness.lease(OTHER_WORKER)
    harness.send(OTHER_WORKER, *finish(stolen))
    assert cancelled(harness) == [original.lease]
    harness.send(CLIENT, submit(2, texts="c"), submit(3, texts="d"))
    assert texts_of(harness.lease()) == ["c"]
    assert texts_of(harness.lease(OTHER_WORKER)) == ["d"]


def test_no_item_is_duplicated_twice(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="abcdefgh"))
    join_idle_worker(harness)
    assert len(harness.leases(OTHER_WORKER)) == 1
    harness.send(b"third", register(capacity=2, model=A))
    let_workers_idle(harness)
    assert harness.leases(b"third") == []


def test_a_single_request_is_not_duplicated(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1))
    join_idle_worker(harness)
    assert harness.leases(OTHER_WORKER) == []


def test_a_worker_with_another_model_does_not_steal(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="abcd"))
    join_idle_worker(harness, B)
    assert harness.leases(OTHER_WORKER) == []


def test_a_worker_without_a_model_loads_one_to_steal(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="abcd"))
    join_idle_worker(harness, None)
    assert harness.lease(OTHER_WORKER).model == A


def test_a_draining_worker_does_not_steal(harness: BrokerHarness) -> None:
    join_idle_worker(harness)
    harness.send(OTHER_WORKER, m.DrainWorker())
    harness.send(CLIENT, submit(1, texts="abcd"))
    let_workers_idle(harness)
    assert harness.leases(OTHER_WORKER) == []


def test_duplicated_items_are_not_requeued_while_a_duplicate_lease_is_active(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="abcd"))
    original = harness.lease()
    join_idle_worker(harness)
    stolen = harness.lease(OTHER_WORKER)
    harness.send(WORKER, m.CloseWorker())
    harness.send(OTHER_WORKER, *finish(stolen))
    rest = harness.lease(OTHER_WORKER)
    assert (texts_of(stolen), texts_of(rest)) == (["c", "d"], ["a", "b"])
    harness.send(OTHER_WORKER, *finish(rest))
    assert sorted(text for _, _, texts in harness.answers() for text in texts) == ["A", "B", "C", "D"]
    del original


def test_a_poison_request_that_kills_both_workers_is_abandoned_alone(harness: BrokerHarness) -> None:
    join_idle_worker(harness)
    harness.send(CLIENT, submit(1, texts="abcdefgX"))
    deaths = 0
    while (leased_texts := [(w, lease) for w in (WORKER, OTHER_WORKER) for lease in harness.leases(w)]) and deaths < 20:
        for worker, lease in leased_texts:
            if "X" in texts_of(lease):
                deaths += 1
                harness.send(worker, crash(lease))
            else:
                harness.send(worker, *finish(lease))
        let_workers_idle(harness)
    assert [index for _, index, _ in harness.item_failures()] == [7]
    assert sorted(text for _, _, texts in harness.answers() for text in texts) == list("ABCDEFG")


def test_a_failure_of_an_item_that_a_duplicate_lease_has_answered_is_ignored(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="abc"))
    original = harness.lease()
    join_idle_worker(harness)
    stolen = harness.lease(OTHER_WORKER)
    assert texts_of(stolen) == ["c"]
    harness.send(OTHER_WORKER, *finish(stolen))
    harness.send(WORKER, fail(original, index=2))
    assert harness.item_failures() == []
    (rest,) = harness.leases() + harness.leases(OTHER_WORKER)
    assert texts_of(rest) == ["a", "b"]


def submit_prefix(number: int, name: str | None) -> m.Submit:
    return m.Submit(batch=number, model=A, work=rolling(str(number)), prefix=name)


def leased_texts(harness: BrokerHarness, worker: bytes) -> list[str]:
    return [text for lease in harness.leases(worker) for text in texts_of(lease)]


def test_batches_with_a_common_prefix_go_to_the_worker_that_has_it() -> None:
    harness = BrokerHarness()
    harness.send(CLIENT, OPEN_SESSION)
    harness.send(CLIENT, *(submit_prefix(number, name) for number, name in enumerate("ppqqpq")))
    for worker in (WORKER, OTHER_WORKER):
        harness.send(worker, register(capacity=1, model=A))
    order: dict[bytes, list[str]] = {WORKER: [], OTHER_WORKER: []}
    for _ in range(3):
        for worker in order:
            (lease,) = harness.leases(worker)
            order[worker] += texts_of(lease)
            harness.send(worker, *finish(lease))
    assert order == {WORKER: ["0", "1", "4"], OTHER_WORKER: ["2", "3", "5"]}


def test_a_worker_without_a_batch_of_its_own_prefix_takes_another() -> None:
    harness = BrokerHarness()
    harness.send(CLIENT, OPEN_SESSION)
    harness.send(CLIENT, *(submit_prefix(number, "p") for number in range(2)))
    for worker in (WORKER, OTHER_WORKER):
        harness.send(worker, register(capacity=1, model=A))
    assert (leased_texts(harness, WORKER), leased_texts(harness, OTHER_WORKER)) == (["0"], ["1"])


def test_a_worker_without_a_model_loads_one_before_another_worker_switches() -> None:
    harness = BrokerHarness()
    harness.send(CLIENT, OPEN_SESSION)
    harness.send(WORKER, register(capacity=2, model=A))
    harness.send(OTHER_WORKER, register(capacity=2))
    harness.send(CLIENT, submit(1, B))
    assert harness.leases() == []
    assert harness.lease(OTHER_WORKER).model == B


# --- Early steals -----------------------------------------------------------------------------------------------------


def texts_of_length(count: int) -> str:
    return "".join(chr(0x4E00 + number) for number in range(count))


def test_a_worker_on_its_last_lease_steals_half_of_a_lease_that_was_not_started(harness: BrokerHarness) -> None:
    harness.send(OTHER_WORKER, register(capacity=2, model=A))
    for number in range(3):
        harness.send(CLIENT, submit(number, texts=texts_of_length(256)))
    waits = harness.leases()[1]
    harness.leases(OTHER_WORKER)
    let_workers_idle(harness)

    assert cancelled(harness) == [waits.lease]
    assert texts_of(harness.lease()) == list(texts_of_length(256))[:128]
    assert texts_of(harness.lease(OTHER_WORKER)) == list(texts_of_length(256))[128:]
    let_workers_idle(harness)
    assert harness.leases() == harness.leases(OTHER_WORKER) == []


def test_a_worker_only_briefly_on_its_last_lease_steals_nothing(harness: BrokerHarness) -> None:
    harness.send(OTHER_WORKER, register(capacity=2, model=A))
    for number in range(3):
        harness.send(CLIENT, submit(number, texts=texts_of_length(256)))
    harness.leases(OTHER_WORKER)
    harness.advance(0.5)
    harness.advance(0.5)
    assert not cancelled(harness)
    harness.advance(0.5)
    assert cancelled(harness)


def test_a_worker_on_its_last_lease_does_not_steal_a_small_share(harness: BrokerHarness) -> None:
    harness.send(OTHER_WORKER, register(capacity=2, model=A))
    for number in range(3):
        harness.send(CLIENT, submit(number, texts=texts_of_length(256 if number < 2 else 62)))
    harness.leases(OTHER_WORKER)
    let_workers_idle(harness)
    assert not cancelled(harness)
    assert not harness.leases(OTHER_WORKER)


def test_a_suspect_is_not_stolen_early(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts=texts_of_length(256)))
    harness.send(WORKER, crash(harness.lease()))
    harness.send(OTHER_WORKER, register(capacity=2, model=A))
    harness.send(CLIENT, submit(2, texts=texts_of_length(256)), submit(3, texts=texts_of_length(256)))
    harness.leases()
    before = [len(lease.work) for lease in harness.leases(OTHER_WORKER)]
    let_workers_idle(harness)
    assert before == [256, 256]
    assert cancelled(harness, OTHER_WORKER) == cancelled(harness) == []


def test_a_worker_with_another_model_does_not_steal_early(harness: BrokerHarness) -> None:
    harness.send(OTHER_WORKER, register(capacity=2, model=B))
    harness.send(
        CLIENT,
        submit(1, B, texts=texts_of_length(256)),
        *(submit(number, texts=texts_of_length(256)) for number in (2, 3)),
    )
    harness.leases(OTHER_WORKER)
    let_workers_idle(harness)
    assert not cancelled(harness)
    assert not harness.leases(OTHER_WORKER)
