"""The broker's behaviour, event by event and on a clock of plain numbers."""

from collections.abc import Callable
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from birdie_zmq._version import __version__
from birdie_zmq.broker.events import Drain, Unreachable, Unreadable
from birdie_zmq.errors import InternalError, MalformedMessage, ModelCallError, ProtocolError, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ComputeCounters, ErrorReport, ModelSpec, ProgressDelta, RollingWork, StepLimits, Texts
from tests.broker.harness import (
    CLIENT,
    GREETING,
    OTHER_CLIENT,
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

Loss = Callable[[Room], None]

# --- Greetings and roles ---------------------------------------------------------------------------------------------


def test_a_client_is_greeted() -> None:
    room = Room(BrokerSettings(client_timeout_s=12.0))
    room.says(CLIENT, GREETING)
    assert room.hears(CLIENT, object) == [m.SessionOpened(package_version=__version__, timeout_s=12.0)]


def test_a_worker_is_greeted() -> None:
    room = Room(BrokerSettings(worker_timeout_s=12.0))
    room.says(WORKER, register())
    assert room.hears(WORKER, object) == [m.WorkerRegistered(package_version=__version__, timeout_s=12.0)]


FROM_CLIENTS: list[FromPeer] = [submit(1), m.Ping(), m.CloseSession()]
FROM_WORKERS: list[FromPeer] = [
    m.Heartbeat(phase="ready"),
    m.LeaseAnswered(lease=1, indices=np.zeros(1, np.int32), answers=Texts(texts=["x"])),
    m.LeaseFailed(lease=1, error=ErrorReport(code="model", message="boom")),
    m.LeaseDone(lease=1),
    m.LeaseProgressed(lease=1, progress=ProgressDelta()),
    m.LeaseNotice(lease=1, level="info", text="loading"),
    m.CloseWorker(),
]


@pytest.mark.parametrize("message", FROM_CLIENTS + FROM_WORKERS, ids=name_of)
def test_whoever_has_not_greeted_is_unknown(message: FromPeer) -> None:
    room = Room()
    room.says(CLIENT, message)
    assert room.refused(CLIENT) is UnknownPeer


@pytest.mark.parametrize("message", FROM_WORKERS, ids=name_of)
def test_a_client_may_not_speak_as_a_worker(room: Room, message: FromPeer) -> None:
    room.says(CLIENT, submit(1, texts="ab"), message)
    assert room.refused(CLIENT) is ProtocolError
    room.says(WORKER, *finish(room.lease()))
    assert room.answers() == [(1, [0, 1], ["A", "B"])]


@pytest.mark.parametrize("message", FROM_CLIENTS, ids=name_of)
def test_a_worker_may_not_speak_as_a_client(room: Room, message: FromPeer) -> None:
    room.says(WORKER, message)
    assert room.refused(WORKER) is ProtocolError
    room.says(CLIENT, submit(1))
    assert room.lease().work == submit(1).work


def test_a_refusal_names_the_role_and_the_message(room: Room) -> None:
    room.says(CLIENT, m.CloseWorker())
    (refusal,) = room.hears(CLIENT, m.Refusal)
    assert refusal.error.message == "a client may not send a CloseWorker"


@pytest.mark.parametrize("peer", [CLIENT, WORKER, b"stranger"])
def test_bytes_that_are_no_message_are_refused_and_the_broker_goes_on(room: Room, peer: bytes) -> None:
    room.says(CLIENT, submit(1))
    room.happens(Unreadable(peer, MalformedMessage("that was no message")))
    (refusal,) = room.hears(peer, m.Refusal)
    assert refusal.error == ErrorReport(code=MalformedMessage.code, message="that was no message")
    room.says(WORKER, *finish(room.lease()))
    assert room.answers() == [(1, [0], ["X"])]


def test_a_ping_and_a_heartbeat_are_answered_with_the_number_of_workers(room: Room) -> None:
    room.says(CLIENT, m.Ping())
    room.says(OTHER_WORKER, register())
    room.says(OTHER_WORKER, m.Heartbeat(phase="no model"))
    assert room.hears(CLIENT, m.Pong) == [m.Pong(workers=1)]
    assert room.hears(OTHER_WORKER, m.Pong) == [m.Pong(workers=2)]


def test_a_peer_that_greets_in_the_other_role_has_left_the_first(room: Room) -> None:
    room.says(WORKER, GREETING, m.Heartbeat(phase="ready"))
    assert room.refused(WORKER) is ProtocolError
    room.says(CLIENT, submit(1), m.Ping())
    assert room.hears(CLIENT, m.Pong) == [m.Pong(workers=0)]
    assert room.leases() == []


# --- From a batch to its answers -------------------------------------------------------------------------------------


def test_a_batch_is_leased_to_a_worker_as_it_was_submitted(room: Room) -> None:
    batch = m.Submit(batch=5, model=A, work=RollingWork(texts=["a"]), limits=StepLimits(rows=3))
    room.says(CLIENT, batch)
    lease = room.lease()
    assert (lease.attempt, lease.model, lease.work, lease.limits) == (1, A, batch.work, batch.limits)


def test_a_batch_waits_for_a_worker() -> None:
    room = Room()
    room.says(CLIENT, GREETING, submit(1))
    room.says(WORKER, register())
    assert room.lease().work == submit(1).work


def test_batches_of_a_model_are_leased_in_their_order_whoever_sent_them(room: Room) -> None:
    room.says(OTHER_CLIENT, GREETING)
    room.says(CLIENT, submit(1, texts="a"))
    room.says(OTHER_CLIENT, submit(1, texts="b"))
    room.says(CLIENT, submit(2, texts="c"))
    order = []
    while leases := room.leases():
        (lease,) = leases
        order += texts_of(lease)
        room.says(WORKER, *finish(lease))
    assert order == ["a", "b", "c"]


def test_a_worker_holds_no_more_leases_than_its_capacity() -> None:
    room = Room()
    room.says(WORKER, register(capacity=2))
    room.says(CLIENT, GREETING, *map(submit, range(5)))
    first, second = room.leases()
    room.says(WORKER, *finish(second))
    third = room.lease()
    room.says(WORKER, answer(first, 0))
    assert room.leases() == []
    assert len({first.lease, second.lease, third.lease}) == 3


def test_two_workers_work_at_once(room: Room) -> None:
    room.says(OTHER_WORKER, register())
    room.says(CLIENT, submit(1, texts="a"), submit(2, texts="b"))
    assert [texts_of(room.lease(WORKER)), texts_of(room.lease(OTHER_WORKER))] == [["a"], ["b"]]


def test_answers_reach_the_client_as_they_come(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="abc"))
    lease = room.lease()
    room.says(WORKER, answer(lease, 2, 0))
    assert room.answers() == [(5, [2, 0], ["C", "A"])]
    room.says(WORKER, answer(lease, 1))
    assert room.answers() == [(5, [1], ["B"])]


def test_answers_reach_only_the_client_that_asked(room: Room) -> None:
    room.says(OTHER_CLIENT, GREETING, submit(1, texts="b"))
    room.says(CLIENT, submit(1, texts="a"))
    room.says(WORKER, *finish(room.lease()))
    room.says(WORKER, *finish(room.lease()))
    assert room.answers(CLIENT) == [(1, [0], ["A"])]
    assert room.answers(OTHER_CLIENT) == [(1, [0], ["B"])]


def test_a_notice_reaches_the_client(room: Room) -> None:
    room.says(CLIENT, submit(5))
    lease = room.lease().lease
    room.says(WORKER, m.LeaseNotice(lease=lease, level="warning", text="slow"))
    room.says(WORKER, m.LeaseNotice(lease=lease, level="info", text="cut", once=True))
    assert room.hears(CLIENT, m.Notice) == [
        m.Notice(batch=5, level="warning", text="slow"),
        m.Notice(batch=5, level="info", text="cut", once=True),
    ]


def test_what_was_computed_reaches_the_client_with_the_answers(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="abc"))
    lease = room.lease()
    advance = ProgressDelta(
        computed=ComputeCounters(tokens=7, padding=1, seconds=0.5),
        remaining=9,
        active_lengths=(3, 4),
        finished_lengths=(5,),
    )
    room.says(WORKER, msgspec.structs.replace(answer(lease, 1), progress=advance))
    (answered,) = room.hears(CLIENT, m.Answered)
    assert (answered.batch, answered.progress) == (5, advance)
    room.says(WORKER, m.LeaseProgressed(lease=lease.lease, progress=advance))
    room.says(WORKER, m.LeaseProgressed(lease=lease.lease + 1, progress=advance))
    assert room.hears(CLIENT, m.Progressed) == [m.Progressed(batch=5, progress=advance)], "of a lease that is there"


def test_a_failure_that_names_an_item_ends_that_item_and_the_others_are_leased_again(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="abc"))
    lease = room.lease()
    room.says(WORKER, answer(lease, 0), fail(lease, index=1))
    ((batch, index, error),) = room.failed_items()
    assert (batch, index, type(error), error.message) == (5, 1, ModelCallError, "boom")
    room.says(WORKER, *finish(room.lease()))
    assert room.answers() == [(5, [0], ["A"]), (5, [2], ["C"])]
    room.says(CLIENT, submit(6, texts="d"))
    assert texts_of(room.lease()) == ["d"]


@pytest.mark.parametrize("index", [None, 3, 100])
def test_a_failure_that_names_no_item_of_the_lease_ends_the_batch(room: Room, index: int | None) -> None:
    room.says(CLIENT, submit(5, texts="abc"))
    room.says(WORKER, fail(room.lease(), index))
    number, error = room.failed()
    assert (number, type(error)) == (5, ModelCallError)
    assert room.failed_items() == []
    assert room.leases() == []


def test_a_batch_that_fails_is_taken_back_from_other_workers() -> None:
    room = Room()
    for worker in (WORKER, OTHER_WORKER):
        room.says(worker, register())
    room.says(CLIENT, GREETING, submit(5, texts="ab"))
    for _ in range(2):
        room.says(WORKER, crash(room.lease(WORKER)))
    half, other_half = room.lease(WORKER), room.lease(OTHER_WORKER)
    room.says(WORKER, fail(half))
    assert room.hears(OTHER_WORKER, m.CancelLease) == [m.CancelLease(lease=other_half.lease)]
    room.says(OTHER_WORKER, *finish(other_half))
    assert room.answers() == []


def test_a_lease_that_is_called_done_with_answers_missing_is_an_error(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="ab"))
    lease = room.lease()
    room.says(WORKER, answer(lease, 0), m.LeaseDone(lease=lease.lease))
    number, error = room.failed()
    assert (number, type(error)) == (5, InternalError)
    assert room.leases() == []


@pytest.mark.parametrize(
    ("indices", "texts"),
    [([0, 0], ["X", "X"]), ([3], ["X"]), ([-1], ["X"]), ([0], []), ([0], ["X", "Y"])],
    ids=["twice", "beyond", "negative", "too-few", "too-many"],
)
def test_an_answer_that_does_not_fit_is_refused_and_the_lease_goes_on(
    room: Room, indices: list[int], texts: list[str]
) -> None:
    room.says(CLIENT, submit(1, texts="abc"))
    lease = room.lease()
    wrong = m.LeaseAnswered(lease=lease.lease, indices=np.array(indices, np.int32), answers=Texts(texts=texts))
    room.says(WORKER, wrong)
    assert room.refused(WORKER) is ProtocolError
    assert room.answers() == []
    room.says(WORKER, *finish(lease))
    assert room.answers() == [(1, [0, 1, 2], ["A", "B", "C"])]


def test_a_second_answer_to_an_item_is_refused(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="abc"))
    lease = room.lease()
    room.says(WORKER, answer(lease, 0), answer(lease, 1, 0))
    assert room.refused(WORKER) is ProtocolError
    assert room.answers() == [(1, [0], ["A"])]


@pytest.mark.parametrize(
    "late",
    [
        lambda lease: answer(lease, 0),
        lambda lease: m.LeaseDone(lease=lease.lease),
        lambda lease: m.LeaseNotice(lease=lease.lease, level="info", text="late"),
        fail,
    ],
    ids=["answer", "done", "notice", "failure"],
)
def test_what_comes_after_the_end_of_a_lease_is_dropped(room: Room, late: Callable[[m.Lease], FromPeer]) -> None:
    room.says(CLIENT, submit(1))
    lease = room.lease()
    room.says(WORKER, *finish(lease))
    room.hears(CLIENT, object)
    room.says(WORKER, late(lease))
    assert room.hears(CLIENT, object) == []
    assert room.hears(WORKER, m.Refusal) == []


# --- Clients ---------------------------------------------------------------------------------------------------------


def test_a_batch_that_is_sent_twice_counts_once_while_it_waits(room: Room) -> None:
    room.says(CLIENT, submit(1), submit(2), submit(2))
    room.says(WORKER, *finish(room.lease()))
    room.says(WORKER, *finish(room.lease()))
    assert room.leases() == []


def test_a_batch_that_is_sent_twice_counts_once_while_it_is_leased(room: Room) -> None:
    room.says(CLIENT, submit(1), submit(1))
    room.says(WORKER, *finish(room.lease()))
    assert room.leases() == []
    assert room.answers() == [(1, [0], ["X"])]


def test_a_batch_over_the_clients_budget_fails_and_the_others_stand() -> None:
    room = Room(BrokerSettings(max_batches_per_client=2))
    room.says(WORKER, register())
    room.says(OTHER_CLIENT, GREETING, submit(0))
    room.says(CLIENT, GREETING, submit(1), submit(2), submit(3))
    number, error = room.failed()
    assert (number, type(error)) == (3, ProtocolError)
    for _ in range(3):
        room.says(WORKER, *finish(room.lease()))
    assert [number for number, _, _ in room.answers()] == [1, 2]


def test_a_finished_batch_is_off_the_clients_budget() -> None:
    room = Room(BrokerSettings(max_batches_per_client=1))
    room.says(WORKER, register())
    room.says(CLIENT, GREETING, submit(1))
    room.says(WORKER, *finish(room.lease()))
    room.says(CLIENT, submit(2))
    assert room.hears(CLIENT, m.BatchFailed) == []
    assert len(room.leases()) == 1


def closes_its_session(room: Room) -> None:
    room.says(CLIENT, m.CloseSession())


def loses_its_client(room: Room) -> None:
    room.happens(Unreachable(CLIENT))


def client_falls_silent(room: Room) -> None:
    while room.now <= 1_000.0 + room.settings.client_timeout_s:
        room.passes(room.settings.worker_timeout_s / 2)
        room.says(WORKER, m.Heartbeat(phase="ready"))


client_losses = pytest.mark.parametrize("loss", [closes_its_session, loses_its_client, client_falls_silent])


@client_losses
def test_the_queued_work_of_a_client_that_is_gone_is_dropped(room: Room, loss: Loss) -> None:
    room.says(CLIENT, submit(1), submit(2))
    lease = room.lease()
    loss(room)
    room.says(WORKER, *finish(lease))
    assert room.leases() == []
    assert room.answers() == []


@client_losses
def test_the_leased_work_of_a_client_that_is_gone_is_not_leased_again(room: Room, loss: Loss) -> None:
    room.says(CLIENT, submit(1))
    room.lease()
    loss(room)
    room.happens(Unreachable(WORKER))
    room.says(OTHER_WORKER, register())
    assert room.leases(OTHER_WORKER) == []
    assert room.hears(CLIENT, m.BatchFailed) == []


@client_losses
def test_the_leased_work_of_a_client_that_is_gone_is_taken_back_and_its_place_is_free(room: Room, loss: Loss) -> None:
    room.says(CLIENT, submit(1, texts="a"))
    lease = room.lease()
    room.says(OTHER_CLIENT, GREETING)
    loss(room)
    room.says(OTHER_CLIENT, GREETING, submit(1, texts="b"))
    assert room.hears(WORKER, m.CancelLease) == [m.CancelLease(lease=lease.lease)]
    assert texts_of(room.lease()) == ["b"]


def test_another_clients_work_goes_on_when_one_is_gone(room: Room) -> None:
    room.says(OTHER_CLIENT, GREETING)
    room.says(CLIENT, submit(1, texts="a"))
    room.says(OTHER_CLIENT, submit(1, texts="b"))
    lease = room.lease()
    room.says(CLIENT, m.CloseSession())
    room.says(WORKER, *finish(lease))
    assert texts_of(room.lease()) == ["b"]


def test_a_client_that_pings_keeps_its_work(room: Room) -> None:
    room.says(CLIENT, submit(1))
    lease = room.lease()
    for _ in range(4):
        for _ in range(3):
            room.passes(room.settings.client_timeout_s * 0.2)
            room.says(WORKER, m.Heartbeat(phase="loading"))
        room.says(CLIENT, m.Ping())
    assert room.hears(CLIENT, m.Refusal) == []
    room.says(WORKER, *finish(lease))
    assert room.answers() == [(1, [0], ["X"])]


def test_a_peers_new_session_hears_nothing_of_its_old_one(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="a"))
    lease = room.lease()
    room.says(CLIENT, GREETING, submit(1, texts="b"))
    room.says(WORKER, *finish(lease))
    assert room.answers() == []
    room.says(WORKER, *finish(room.lease()))
    assert room.answers() == [(1, [0], ["B"])]


# --- Which model is served -------------------------------------------------------------------------------------------


def test_a_worker_serves_its_own_model_first(room: Room) -> None:
    room.says(CLIENT, submit(1, A), submit(2, B), submit(3, A))
    room.says(WORKER, *finish(room.lease()))
    assert room.lease().model == A


def test_a_worker_changes_when_nothing_of_its_own_waits(room: Room) -> None:
    room.says(CLIENT, submit(1, A), submit(2, B))
    lease = room.lease()
    assert room.leases() == []
    room.says(WORKER, *finish(lease))
    assert room.lease().model == B
    assert any("changes from A to B" in text for text in room.logged)


def test_a_worker_finishes_all_its_leases_before_it_changes() -> None:
    room = Room()
    room.says(WORKER, register(capacity=2))
    room.says(CLIENT, GREETING, submit(1, A), submit(2, A), submit(3, B))
    first, second = room.leases()
    room.says(WORKER, *finish(first))
    assert room.leases() == []
    room.says(WORKER, *finish(second))
    assert room.lease().model == B


def test_a_model_that_has_waited_too_long_comes_before_the_own_one(room: Room) -> None:
    room.says(CLIENT, submit(1, A), submit(2, B), submit(3, A))
    lease = room.lease()
    room.now += room.settings.switch_delay_s + 0.1
    room.says(WORKER, *finish(lease))
    assert room.lease().model == B


def test_an_idle_worker_leaves_a_batch_to_one_that_has_its_model() -> None:
    room = Room()
    room.says(WORKER, register())
    room.says(OTHER_WORKER, register())
    room.says(CLIENT, GREETING, submit(1, A), submit(2, B))
    room.says(WORKER, *finish(room.lease(WORKER)))
    room.says(OTHER_WORKER, *finish(room.lease(OTHER_WORKER)))
    room.says(CLIENT, submit(3, B))
    assert room.leases(WORKER) == []
    assert room.lease(OTHER_WORKER).model == B


def test_two_queues_that_never_drain_take_turns_with_one_change_a_patience() -> None:
    room = Room(BrokerSettings(switch_delay_s=30.0, max_batches_per_client=10_000))
    room.says(WORKER, register(capacity=2))
    room.says(CLIENT, GREETING)
    held: list[m.Lease] = []
    served: list[tuple[float, ModelSpec]] = []
    number = 0
    for _ in range(600):
        room.now += 1.0
        for model in (A, B):
            room.says(CLIENT, submit(number, model))
            number += 1
        held += room.leases()
        served.append((room.now, held[0].model))
        room.says(WORKER, *finish(held.pop(0)))
        held += room.leases()
    changes = [now for (_, before), (now, after) in pairwise(served) if before != after]
    turns = np.diff(changes)
    assert len(turns) > 10
    assert turns.min() >= 30.0
    assert turns.max() <= 30.0 + 3.0


def test_a_worker_that_served_another_broker_still_has_its_model() -> None:
    room = Room()
    room.says(WORKER, register(model=A))
    room.says(OTHER_WORKER, register(model=B))
    room.says(CLIENT, GREETING, submit(1, B), submit(2, A))
    assert (room.lease(WORKER).model, room.lease(OTHER_WORKER).model) == (A, B)
    room.says(CLIENT, m.Ping())
    assert [pong.model_switches for pong in room.hears(CLIENT, m.Pong)] == [0]


# --- Stopping in good order ------------------------------------------------------------------------------------------


def test_a_broker_that_has_handed_nothing_out_stops_at_once(room: Room) -> None:
    room.happens(Drain())
    assert room.stops == 1


def test_a_broker_stops_when_its_workers_have_finished_and_hands_nothing_more_out(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="ab"), submit(2))
    lease = room.lease()
    room.happens(Drain())
    room.says(CLIENT, submit(3), m.Ping())
    room.says(WORKER, answer(lease, 0, 1))
    assert room.stops == 0
    room.says(WORKER, m.LeaseDone(lease=lease.lease))
    assert room.stops == 1
    assert room.answers() == [(1, [0, 1], ["A", "B"])]
    assert room.leases() == []
    assert room.hears(CLIENT, m.Refusal) == []


def test_a_broker_that_stops_leaves_new_peers_to_the_next_one(room: Room) -> None:
    room.says(CLIENT, submit(1))
    room.happens(Drain())
    room.says(OTHER_CLIENT, GREETING)
    room.says(OTHER_WORKER, register())
    assert room.hears(OTHER_CLIENT, object) == room.hears(OTHER_WORKER, object) == []


def test_a_broker_waits_no_longer_than_it_said(room: Room) -> None:
    room.says(CLIENT, submit(1))
    room.happens(Drain())
    for _ in range(4):
        room.passes(room.settings.drain_s * 0.25 - 0.025)
        room.says(WORKER, m.Heartbeat(phase="running"))
    assert room.stops == 0
    room.passes(0.2)
    assert room.stops == 1


def test_a_worker_that_drains_finishes_and_is_given_nothing_more(room: Room) -> None:
    room.says(CLIENT, submit(1, texts="a"), submit(2, texts="b"))
    lease = room.lease()
    room.says(WORKER, m.DrainWorker(), *finish(lease))
    assert room.leases() == []
    room.says(OTHER_WORKER, register())
    assert texts_of(room.lease(OTHER_WORKER)) == ["b"]
