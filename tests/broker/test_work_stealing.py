"""The end of a run is shared out: who has nothing to do takes over from who has much."""

from __future__ import annotations

import pytest

from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ModelSpec, RollingWork
from tests.broker.harness import (
    CLIENT,
    GREETING,
    OTHER_WORKER,
    WORKER,
    A,
    B,
    Room,
    answer,
    crash,
    fail,
    finish,
    register,
    submit,
    texts_of,
)


@pytest.fixture
def room() -> Room:
    """A client, and one worker that takes two batches at once and has the model A."""
    room = Room()
    room.says(CLIENT, GREETING)
    room.says(WORKER, register(capacity=2, model=A))
    return room


def joins(room: Room, model: ModelSpec | None = A) -> None:
    """Another worker comes, and has nothing to do for a while."""
    room.says(OTHER_WORKER, register(capacity=2, model=model))
    idles(room)


def idles(room: Room) -> None:
    for _ in range(4):
        room.passes(room.settings.tick_s)


def test_who_is_idle_for_a_moment_only_takes_nothing(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="abcd"))
    room.says(OTHER_WORKER, register(capacity=2, model=A))
    room.passes(0.5)
    room.passes(0.5)
    assert room.leases(OTHER_WORKER) == []
    room.passes(0.5)
    assert len(room.leases(OTHER_WORKER)) == 1


def cancelled(room: Room, worker: bytes = WORKER) -> list[int]:
    return [cancel.lease for cancel in room.hears(worker, m.CancelLease)]


def test_two_workers_get_one_batch_each_before_one_gets_two(room: Room) -> None:
    room.says(WORKER, m.DrainWorker())
    room.says(b"first", register(capacity=2, model=A))
    room.says(b"second", register(capacity=2, model=A))
    for number in range(3):
        room.says(CLIENT, submit(number, texts="xy"))
    assert [len(room.leases(worker)) for worker in (b"first", b"second")] == [2, 1]


def test_a_batch_that_waits_behind_another_goes_to_who_has_nothing(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="abcd"), submit(2, texts="efgh"))
    first, second = room.leases()
    joins(room)
    assert cancelled(room) == [second.lease]
    assert texts_of(room.lease(OTHER_WORKER)) == ["e", "f", "g", "h"]
    assert room.leases() == []
    del first


def test_of_a_larger_one_that_waits_each_has_as_much(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="ab"), submit(2, texts="cdefgh"))
    room.leases()
    joins(room)
    assert texts_of(room.lease()) == ["c", "d"]
    assert texts_of(room.lease(OTHER_WORKER)) == ["e", "f", "g", "h"]


def test_the_later_half_of_what_is_being_computed_is_computed_twice_and_answered_once(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="abcdef"))
    slow = room.lease()
    room.says(WORKER, answer(slow, 0, 1))
    joins(room)
    assert cancelled(room) == []
    helped = room.lease(OTHER_WORKER)
    assert texts_of(helped) == ["e", "f"]
    room.says(OTHER_WORKER, answer(helped, 1))
    room.says(WORKER, answer(slow, 4, 5))
    room.says(OTHER_WORKER, answer(helped, 0), m.LeaseDone(lease=helped.lease))
    room.says(WORKER, answer(slow, 2, 3), m.LeaseDone(lease=slow.lease))
    assert room.answers() == [(1, [0, 1], ["A", "B"]), (1, [5], ["F"]), (1, [4], ["E"]), (1, [2, 3], ["C", "D"])]
    assert room.hears(WORKER, m.Refusal) == room.hears(OTHER_WORKER, m.Refusal) == []


def test_a_worker_that_has_been_overtaken_stops(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="ab"))
    slow = room.lease()
    joins(room)
    room.says(WORKER, answer(slow, 0))
    helped = room.lease(OTHER_WORKER)
    room.says(OTHER_WORKER, *finish(helped))
    assert cancelled(room) == [slow.lease]
    room.says(CLIENT, submit(2, texts="c"), submit(3, texts="d"))
    assert texts_of(room.lease()) == ["c"]
    assert texts_of(room.lease(OTHER_WORKER)) == ["d"]


def test_nothing_is_shared_twice(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="abcdefgh"))
    joins(room)
    assert len(room.leases(OTHER_WORKER)) == 1
    room.says(b"third", register(capacity=2, model=A))
    idles(room)
    assert room.leases(b"third") == []


def test_one_request_is_not_computed_twice(room: Room) -> None:
    room.says(CLIENT, submit(1))
    joins(room)
    assert room.leases(OTHER_WORKER) == []


def test_a_worker_with_another_model_stays_with_it(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="abcd"))
    joins(room, B)
    assert room.leases(OTHER_WORKER) == []


def test_a_worker_without_a_model_loads_it_to_help(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="abcd"))
    joins(room, None)
    assert room.lease(OTHER_WORKER).model == A


def test_a_worker_that_drains_does_not_help(room: Room) -> None:
    joins(room)
    room.says(OTHER_WORKER, m.DrainWorker())
    room.says(CLIENT, submit(1, texts="abcd"))
    idles(room)
    assert room.leases(OTHER_WORKER) == []


def test_what_was_shared_is_not_queued_again_while_one_of_the_two_is_at_it(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="abcd"))
    slow = room.lease()
    joins(room)
    helped = room.lease(OTHER_WORKER)
    room.says(WORKER, m.CloseWorker())
    room.says(OTHER_WORKER, *finish(helped))
    rest = room.lease(OTHER_WORKER)
    assert (texts_of(helped), texts_of(rest)) == (["c", "d"], ["a", "b"])
    room.says(OTHER_WORKER, *finish(rest))
    assert sorted(text for _, _, texts in room.answers() for text in texts) == ["A", "B", "C", "D"]
    del slow


def test_a_request_that_kills_both_workers_is_given_up_alone(room: Room) -> None:
    joins(room)
    room.says(CLIENT, submit(1, texts="abcdefgX"))
    deaths = 0
    while (given := [(w, lease) for w in (WORKER, OTHER_WORKER) for lease in room.leases(w)]) and deaths < 20:
        for worker, lease in given:
            if "X" in texts_of(lease):
                deaths += 1
                room.says(worker, crash(lease))
            else:
                room.says(worker, *finish(lease))
        idles(room)
    assert [index for _, index, _ in room.failed_items()] == [7]
    assert sorted(text for _, _, texts in room.answers() for text in texts) == list("ABCDEFG")


def test_a_failure_of_what_another_has_answered_is_nobodys_concern(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="abc"))
    slow = room.lease()
    joins(room)
    helped = room.lease(OTHER_WORKER)
    assert texts_of(helped) == ["c"]
    room.says(OTHER_WORKER, *finish(helped))
    room.says(WORKER, fail(slow, index=2))
    assert room.failed_items() == []
    (rest,) = room.leases() + room.leases(OTHER_WORKER)
    assert texts_of(rest) == ["a", "b"]


def beginning(number: int, name: str | None) -> m.Submit:
    work = RollingWork(texts=[str(number)])
    return m.Submit(batch=number, model=A, work=work, prefix=name)


def given(room: Room, worker: bytes) -> list[str]:
    return [text for lease in room.leases(worker) for text in texts_of(lease)]


def test_batches_that_begin_alike_go_to_the_worker_that_has_begun_with_them() -> None:
    room = Room()
    room.says(CLIENT, GREETING)
    room.says(CLIENT, *(beginning(number, name) for number, name in enumerate("ppqqpq")))
    for worker in (WORKER, OTHER_WORKER):
        room.says(worker, register(capacity=1, model=A))
    order: dict[bytes, list[str]] = {WORKER: [], OTHER_WORKER: []}
    for _ in range(3):
        for worker in order:
            (lease,) = room.leases(worker)
            order[worker] += texts_of(lease)
            room.says(worker, *finish(lease))
    assert order == {WORKER: ["0", "1", "4"], OTHER_WORKER: ["2", "3", "5"]}


def test_a_worker_without_work_of_its_own_beginning_takes_what_is_there() -> None:
    room = Room()
    room.says(CLIENT, GREETING)
    room.says(CLIENT, *(beginning(number, "p") for number in range(2)))
    for worker in (WORKER, OTHER_WORKER):
        room.says(worker, register(capacity=1, model=A))
    assert (given(room, WORKER), given(room, OTHER_WORKER)) == (["0"], ["1"])


def test_a_worker_without_a_model_loads_a_new_one_before_another_changes() -> None:
    room = Room()
    room.says(CLIENT, GREETING)
    room.says(WORKER, register(capacity=2, model=A))
    room.says(OTHER_WORKER, register(capacity=2))
    room.says(CLIENT, submit(1, B))
    assert room.leases() == []
    assert room.lease(OTHER_WORKER).model == B


# --- Who is at the last batch ----------------------------------------------------------------------------------------


def of(count: int) -> str:
    return "".join(chr(0x4E00 + number) for number in range(count))


def test_who_is_at_the_last_batch_takes_half_of_what_another_has_not_begun(room: Room) -> None:
    room.says(OTHER_WORKER, register(capacity=2, model=A))
    for number in range(3):
        room.says(CLIENT, submit(number, texts=of(256)))
    waits = room.leases()[1]
    room.leases(OTHER_WORKER)
    idles(room)

    assert cancelled(room) == [waits.lease]
    assert texts_of(room.lease()) == list(of(256))[:128]
    assert texts_of(room.lease(OTHER_WORKER)) == list(of(256))[128:]
    idles(room)
    assert room.leases() == room.leases(OTHER_WORKER) == []


def test_who_is_at_the_last_batch_for_a_moment_only_takes_nothing(room: Room) -> None:
    room.says(OTHER_WORKER, register(capacity=2, model=A))
    for number in range(3):
        room.says(CLIENT, submit(number, texts=of(256)))
    room.leases(OTHER_WORKER)
    room.passes(0.5)
    room.passes(0.5)
    assert not cancelled(room)
    room.passes(0.5)
    assert cancelled(room)


def test_who_is_at_the_last_batch_takes_nothing_while_something_waits_or_for_little(room: Room) -> None:
    room.says(OTHER_WORKER, register(capacity=2, model=A))
    for number in range(3):
        room.says(CLIENT, submit(number, texts=of(256 if number < 2 else 62)))
    room.leases(OTHER_WORKER)
    idles(room)
    assert not cancelled(room)
    assert not room.leases(OTHER_WORKER)


def test_a_part_that_may_kill_is_not_divided_on_the_way(room: Room) -> None:
    room.says(CLIENT, submit(1, texts=of(256)))
    room.says(WORKER, crash(room.lease()))
    room.says(OTHER_WORKER, register(capacity=2, model=A))
    room.says(CLIENT, submit(2, texts=of(256)), submit(3, texts=of(256)))
    room.leases()
    before = [len(lease.work) for lease in room.leases(OTHER_WORKER)]
    idles(room)
    assert before == [256, 256]
    assert cancelled(room, OTHER_WORKER) == cancelled(room) == []


def test_a_worker_with_another_model_does_not_take_it_before_it_is_idle(room: Room) -> None:
    room.says(OTHER_WORKER, register(capacity=2, model=B))
    room.says(CLIENT, submit(1, B, texts=of(256)), *(submit(number, texts=of(256)) for number in (2, 3)))
    room.leases(OTHER_WORKER)
    idles(room)
    assert not cancelled(room)
    assert not room.leases(OTHER_WORKER)
