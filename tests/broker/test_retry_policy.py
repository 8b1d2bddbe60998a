"""What becomes of work whose worker or model process is lost."""

from collections.abc import Callable

import numpy as np
import pytest

from birdie_zmq.broker.events import Tick, Unreachable
from birdie_zmq.errors import ModelCallError, ModelProcessDied, WorkerUnavailable
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import DescribeWork, Texts
from tests.broker.harness import (
    CLIENT,
    GREETING,
    OTHER_WORKER,
    WORKER,
    A,
    B,
    FromPeer,
    Room,
    answer,
    crash,
    fail,
    finish,
    name_of,
    register,
    submit,
    texts_of,
)

# --- Workers that are lost -------------------------------------------------------------------------------------------


def loses_its_connection(room: Room) -> None:
    room.happens(Unreachable(WORKER))


def falls_silent(room: Room) -> None:
    room.says(CLIENT, m.Ping())
    room.passes(room.settings.worker_timeout_s + 0.1)


def registers_again(room: Room) -> None:
    room.says(WORKER, register())


def says_goodbye(room: Room) -> None:
    room.says(WORKER, m.CloseWorker())


Loss = Callable[[Room], None]
losses = pytest.mark.parametrize("loss", [loses_its_connection, falls_silent, registers_again])
departures = pytest.mark.parametrize("loss", [loses_its_connection, falls_silent, registers_again, says_goodbye])


def successor(room: Room) -> bytes:
    """A worker that takes what the first one left behind."""
    room.says(WORKER, m.CloseWorker())
    room.says(OTHER_WORKER, register(capacity=9))
    return OTHER_WORKER


@departures
def test_what_a_lost_worker_held_is_leased_again(room: Room, loss: Loss) -> None:
    room.says(CLIENT, submit(5, texts="ab"))
    lost = room.lease()
    loss(room)
    lease = room.lease(successor(room))
    assert lease.lease != lost.lease
    assert lease.work == lost.work
    room.says(OTHER_WORKER, *finish(lease))
    assert room.answers() == [(5, [0, 1], ["A", "B"])]


@departures
def test_only_what_is_unanswered_is_leased_again_under_the_batchs_own_indices(room: Room, loss: Loss) -> None:
    room.says(CLIENT, submit(5, texts="abcd"))
    room.says(WORKER, answer(room.lease(), 2, 0))
    loss(room)
    lease = room.lease(successor(room))
    assert texts_of(lease) == ["b", "d"]
    room.says(OTHER_WORKER, answer(lease, 1), answer(lease, 0), m.LeaseDone(lease=lease.lease))
    assert room.answers() == [(5, [2, 0], ["C", "A"]), (5, [3], ["D"]), (5, [1], ["B"])]
    assert room.hears(CLIENT, m.BatchFailed) == []


def test_the_item_at_fault_is_named_by_the_batchs_own_index(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="abcd"))
    room.says(WORKER, answer(room.lease(), 2, 0))
    room.happens(Unreachable(WORKER))
    room.says(OTHER_WORKER, register())
    room.says(OTHER_WORKER, fail(room.lease(OTHER_WORKER), index=1))
    ((batch, index, error),) = room.failed_items()
    assert (batch, index, type(error)) == (5, 3, ModelCallError)


def test_what_is_leased_again_comes_before_what_waits_and_keeps_its_order() -> None:
    room = Room()
    room.says(WORKER, register(capacity=2))
    room.says(CLIENT, GREETING, *(submit(i, texts=text) for i, text in enumerate("abcd")))
    room.happens(Unreachable(WORKER))
    room.says(OTHER_WORKER, register(capacity=4))
    suspect = room.lease(OTHER_WORKER)
    room.says(OTHER_WORKER, *finish(suspect))
    assert [texts_of(lease) for lease in [suspect, *room.leases(OTHER_WORKER)]] == [["a"], ["b"], ["c"], ["d"]]


def test_a_batch_whose_last_answer_came_before_its_worker_was_lost_is_done() -> None:
    room = Room(BrokerSettings(max_losses=1))
    room.says(WORKER, register())
    room.says(CLIENT, GREETING, submit(5))
    room.says(WORKER, answer(room.lease(), 0))
    room.happens(Unreachable(WORKER))
    room.says(OTHER_WORKER, register())
    assert room.leases(OTHER_WORKER) == []
    assert room.hears(CLIENT, m.BatchFailed) == []


def test_an_answered_description_is_not_asked_for_again(room: Room) -> None:
    room.says(CLIENT, m.Submit(batch=5, model=A, work=DescribeWork()))
    lease = room.lease()
    # What stands in for the description does not matter to the broker.
    described = m.LeaseAnswered(lease=lease.lease, indices=np.zeros(1, np.int32), answers=Texts(texts=["demo"]))
    room.says(WORKER, described)
    room.happens(Unreachable(WORKER))
    room.says(OTHER_WORKER, register())
    assert room.leases(OTHER_WORKER) == []


@losses
def test_a_request_that_loses_too_many_workers_is_given_up(loss: Loss) -> None:
    room = Room(BrokerSettings(max_losses=2))
    room.says(CLIENT, GREETING, submit(5))
    for attempt in (1, 2):
        room.says(WORKER, register())
        assert room.leases()[-1].attempt == attempt
        loss(room)
    ((batch, index, error),) = room.failed_items()
    assert (batch, index, type(error)) == (5, 0, WorkerUnavailable)
    assert "given up: 2 times" in error.message
    assert "jax worker 7 on here" in error.message
    room.says(OTHER_WORKER, register())
    assert room.leases(OTHER_WORKER) == []


def test_a_goodbye_is_no_loss() -> None:
    room = Room(BrokerSettings(max_losses=1))
    room.says(CLIENT, GREETING, submit(5))
    for _ in range(3):
        room.says(WORKER, register())
        room.lease()
        room.says(WORKER, m.CloseWorker())
    assert room.failed_items() == []


@losses
def test_a_lost_workers_late_answer_is_dropped(room: Room, loss: Loss) -> None:
    room.says(CLIENT, submit(5, texts="ab"))
    lost = room.lease()
    loss(room)
    room.says(WORKER, register(), answer(lost, 0))
    assert room.answers() == []
    while leases := room.leases():
        room.says(WORKER, *finish(leases[-1]))
    assert answered_letters(room) == "ab"


@pytest.mark.parametrize(
    "sign_of_life", [m.Heartbeat(phase="loading"), m.LeaseNotice(lease=1, level="info", text="loading")], ids=name_of
)
def test_a_worker_that_gives_a_sign_of_life_keeps_its_leases(room: Room, sign_of_life: FromPeer) -> None:
    room.says(CLIENT, submit(1))
    lease = room.lease()
    for _ in range(4):
        room.passes(room.settings.worker_timeout_s * 0.9)
        room.says(CLIENT, m.Ping())
        room.says(WORKER, sign_of_life)
    room.says(WORKER, answer(lease, 0))
    assert room.answers() == [(1, [0], ["X"])]


# --- Model processes that die ----------------------------------------------------------------------------------------


def dies_at(room: Room, poison: str, worker: bytes = WORKER) -> list[str]:
    """A worker works on until nothing is left, and its process dies at some letters; what it was leased, in order."""
    leased = []
    while leases := room.leases(worker):
        for lease in leases:
            letters = "".join(texts_of(lease))
            leased.append(letters)
            room.says(worker, *([crash(lease)] if set(letters) & set(poison) else finish(lease)))
    return leased


def answered_letters(room: Room) -> str:
    return "".join(sorted(text.lower() for _, _, texts in room.answers() for text in texts))


def test_a_crash_leads_to_one_more_attempt(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="ab"))
    room.says(WORKER, crash(room.lease()))
    again = room.lease()
    assert (texts_of(again), again.attempt) == (["a", "b"], 2)
    room.says(WORKER, *finish(again))
    assert room.answers() == [(5, [0, 1], ["A", "B"])]
    assert room.hears(CLIENT, m.ItemFailed) == []


def test_what_was_answered_before_a_crash_is_not_done_again(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="abc"))
    lease = room.lease()
    room.says(WORKER, answer(lease, 1), crash(lease))
    assert texts_of(room.lease()) == ["a", "c"]


def test_a_crash_is_told_to_the_person_who_waits(room: Room) -> None:
    room.says(CLIENT, submit(5))
    room.says(WORKER, crash(room.lease()))
    (notice,) = room.hears(CLIENT, m.Notice)
    assert (notice.batch, notice.level) == (5, "warning")
    assert "done again: it ended by SIGSEGV" in notice.text


def test_a_request_that_kills_its_process_is_found_by_halves_and_all_others_are_answered(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="abcdefgh"))
    assert dies_at(room, "f") == ["abcdefgh", "abcdefgh", "abcd", "efgh", "ef", "e", "f", "f", "gh"]
    ((batch, index, error),) = room.failed_items()
    assert (batch, index, type(error), error.remote_traceback) == (5, 5, ModelProcessDied, "line 7")
    assert "given up: 6 times what worked on it died; the last time: it ended by SIGSEGV" in error.message
    assert answered_letters(room) == "abcdegh"


@pytest.mark.parametrize("poison", ["a", "h", "ah", "de", "abc", "aceg", "bdfh"])
def test_only_what_kills_is_given_up(room: Room, poison: str) -> None:
    room.says(CLIENT, submit(5, texts="abcdefgh"), submit(6, texts="ijkl"))
    dies_at(room, poison)
    assert sorted("abcdefgh"[index] for _, index, _ in room.failed_items()) == list(poison)
    assert answered_letters(room) == "".join(sorted(set("abcdefghijkl") - set(poison)))
    assert room.hears(CLIENT, m.BatchFailed) == []


def test_a_request_that_is_alone_is_given_up_at_the_third_crash(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="a"))
    assert dies_at(room, "a") == ["a", "a", "a"]
    assert len(room.failed_items()) == 1


def test_a_model_that_dies_at_anything_is_given_up_before_each_request_is_tried() -> None:
    room = Room(BrokerSettings(max_losses_in_a_row=8))
    room.says(CLIENT, GREETING, submit(5, texts="abcdefgh" * 8))
    room.says(WORKER, register())
    assert len(dies_at(room, "abcdefgh")) == 8
    number, error = room.failed()
    assert (number, type(error), error.remote_traceback) == (5, ModelProcessDied, "line 7")
    assert "what computes A died 8 times without an answer in between" in error.message
    room.says(CLIENT, submit(6, texts="z"))
    room.says(WORKER, *finish(room.lease()))
    assert room.answers() == [(6, [0], ["Z"])]


def test_a_suspect_has_its_worker_for_itself() -> None:
    room = Room()
    room.says(WORKER, register(capacity=2))
    room.says(CLIENT, GREETING, submit(1, texts="a"), submit(2, texts="b"), submit(3, texts="c"))
    first, second = room.leases()
    room.says(WORKER, crash(first), m.LeaseReturned(lease=second.lease))
    for letters in ("b", "a"):
        lease = room.lease()
        assert texts_of(lease) == [letters]
        room.says(WORKER, *finish(lease))
    assert texts_of(room.lease()) == ["c"]


def test_only_the_first_lease_of_a_lost_worker_is_suspected() -> None:
    room = Room()
    room.says(WORKER, register(capacity=2))
    room.says(CLIENT, GREETING, submit(1, texts="a"), submit(2, texts="b"))
    room.leases()
    room.happens(Unreachable(WORKER))
    room.says(OTHER_WORKER, register(capacity=2))
    suspect = room.lease(OTHER_WORKER)
    assert (texts_of(suspect), suspect.attempt) == (["a"], 2)


def test_what_is_given_back_is_no_suspect() -> None:
    room = Room(BrokerSettings(max_losses=1))
    room.says(WORKER, register())
    room.says(CLIENT, GREETING, submit(5, texts="ab"))
    for _ in range(4):
        room.says(WORKER, m.LeaseReturned(lease=room.lease().lease))
    room.says(WORKER, *finish(room.lease()))
    assert room.answers() == [(5, [0, 1], ["A", "B"])]


@pytest.mark.parametrize("end", [crash, lambda lease: m.LeaseReturned(lease=lease.lease)], ids=["crash", "return"])
def test_a_lease_that_ends_after_its_last_answer_is_done(room: Room, end: Callable[[m.Lease], FromPeer]) -> None:
    room.says(CLIENT, submit(5))
    lease = room.lease()
    room.says(WORKER, answer(lease, 0), end(lease))
    assert room.leases() == []
    assert room.hears(CLIENT, m.ItemFailed) == []


def test_losses_and_switches_are_counted_for_whoever_asks(room: Room) -> None:
    room.says(CLIENT, submit(1, A), submit(2, B), m.Ping())
    room.says(WORKER, crash(room.lease()))
    room.says(WORKER, *finish(room.lease()))
    room.says(CLIENT, m.Ping())
    assert [(pong.model_switches, pong.retries) for pong in room.hears(CLIENT, m.Pong)] == [(0, 0), (1, 1)]


# --- Peers that are silent -------------------------------------------------------------------------------------------


def test_a_worker_that_is_silent_is_sent_something_so_that_a_dead_one_is_noticed(room: Room) -> None:
    room.passes(room.settings.probe_s)
    assert room.hears(WORKER, m.Pong) == []
    room.passes(0.1)
    assert room.hears(WORKER, m.Pong) == [m.Pong(workers=1)]


def test_a_client_that_waits_for_answers_and_is_silent_is_sent_something(room: Room) -> None:
    room.passes(room.settings.probe_s + 0.1)
    assert room.hears(CLIENT, m.Pong) == []
    room.says(CLIENT, submit(1))
    room.passes(room.settings.probe_s + 0.1)
    assert room.hears(CLIENT, m.Pong) == [m.Pong(workers=1)]


# --- A broker that was stopped itself --------------------------------------------------------------------------------


def test_peers_are_not_blamed_for_the_time_in_which_the_broker_was_stopped(room: Room) -> None:
    room.says(CLIENT, submit(5))
    lease = room.lease()
    room.now += 3_600
    room.happens(Tick(stall_s=3_600))
    room.says(WORKER, *finish(lease))
    assert room.answers() == [(5, [0], ["X"])]
    room.passes(room.settings.worker_timeout_s + 0.1)
    room.says(WORKER, m.Heartbeat(phase="ready"))
    assert len(room.hears(WORKER, m.Refusal)) == 1
