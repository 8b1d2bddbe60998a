"""The broker core, event by event on a manual clock: handshakes, batches and their answers, draining."""

from collections.abc import Callable

import pytest

from birdie_zmq._version import __version__
from birdie_zmq.broker.events import Drain, Unreadable
from birdie_zmq.errors import InternalError, MalformedMessage, ModelCallError, ProtocolError, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ComputeCounters, ErrorReport, StepLimits
from tests.broker.harness import (
    CLIENT,
    OPEN_SESSION,
    OTHER_CLIENT,
    OTHER_WORKER,
    WORKER,
    A,
    BrokerHarness,
    FromPeer,
    answer,
    crash,
    fail,
    finish,
    name_of,
    register,
    rolling,
    submit,
    text_answers,
    texts_of,
)

# --- Handshakes and roles ---------------------------------------------------------------------------------------------


def test_a_client_session_is_opened() -> None:
    harness = BrokerHarness(BrokerSettings(client_timeout_s=12.0))
    harness.send(CLIENT, OPEN_SESSION)
    assert harness.received(CLIENT, object) == [m.SessionOpened(package_version=__version__, timeout_s=12.0)]


def test_a_worker_is_registered() -> None:
    harness = BrokerHarness(BrokerSettings(worker_timeout_s=12.0))
    harness.send(WORKER, register())
    assert harness.received(WORKER, object) == [m.WorkerRegistered(package_version=__version__, timeout_s=12.0)]


CLIENT_MESSAGES: list[FromPeer] = [submit(1), m.Ping(), m.CloseSession()]
WORKER_MESSAGES: list[FromPeer] = [
    m.Heartbeat(phase="ready"),
    m.LeaseAnswered(lease=1, indices=[0], answers=text_answers("x")),
    m.LeaseFailed(lease=1, error=ErrorReport(code="model", message="boom")),
    m.LeaseDone(lease=1),
    m.LeaseProgressed(lease=1, progress=ComputeCounters()),
    m.LeaseNotice(lease=1, level="info", text="loading"),
    m.CloseWorker(),
]


@pytest.mark.parametrize("message", CLIENT_MESSAGES + WORKER_MESSAGES, ids=name_of)
def test_a_message_before_the_handshake_is_refused(message: FromPeer) -> None:
    harness = BrokerHarness()
    harness.send(CLIENT, message)
    assert harness.refusal_type(CLIENT) is UnknownPeer


@pytest.mark.parametrize("message", WORKER_MESSAGES, ids=name_of)
def test_a_client_may_not_send_worker_messages(harness: BrokerHarness, message: FromPeer) -> None:
    harness.send(CLIENT, submit(1, texts="ab"), message)
    assert harness.refusal_type(CLIENT) is ProtocolError
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.answers() == [(1, [0, 1], ["A", "B"])]


@pytest.mark.parametrize("message", CLIENT_MESSAGES, ids=name_of)
def test_a_worker_may_not_send_client_messages(harness: BrokerHarness, message: FromPeer) -> None:
    harness.send(WORKER, message)
    assert harness.refusal_type(WORKER) is ProtocolError
    harness.send(CLIENT, submit(1))
    assert harness.lease().work == submit(1).work


def test_a_refusal_names_the_role_and_the_message(harness: BrokerHarness) -> None:
    harness.send(CLIENT, m.CloseWorker())
    (refusal,) = harness.received(CLIENT, m.Refusal)
    assert refusal.error.message == "a client may not send a CloseWorker"


@pytest.mark.parametrize("peer", [CLIENT, WORKER, b"stranger"])
def test_malformed_bytes_are_refused_and_the_broker_continues(harness: BrokerHarness, peer: bytes) -> None:
    harness.send(CLIENT, submit(1))
    harness.handle(Unreadable(peer, MalformedMessage("not a message")))
    (refusal,) = harness.received(peer, m.Refusal)
    assert refusal.error == ErrorReport(code=MalformedMessage.code, message="not a message")
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.answers() == [(1, [0], ["X"])]


def test_a_ping_and_a_heartbeat_are_answered_with_the_number_of_workers(harness: BrokerHarness) -> None:
    harness.send(CLIENT, m.Ping())
    harness.send(OTHER_WORKER, register())
    harness.send(OTHER_WORKER, m.Heartbeat(phase="no model"))
    assert harness.received(CLIENT, m.Pong) == [m.Pong(workers=1)]
    assert harness.received(OTHER_WORKER, m.Pong) == [m.Pong(workers=2)]


def test_a_peer_that_changes_its_role_loses_the_first_one(harness: BrokerHarness) -> None:
    harness.send(WORKER, OPEN_SESSION, m.Heartbeat(phase="ready"))
    assert harness.refusal_type(WORKER) is ProtocolError
    harness.send(CLIENT, submit(1), m.Ping())
    assert harness.received(CLIENT, m.Pong) == [m.Pong(workers=0)]
    assert harness.leases() == []


# --- From a batch to its answers -------------------------------------------------------------------------------------


def test_a_batch_is_leased_to_a_worker_as_it_was_submitted(harness: BrokerHarness) -> None:
    batch = m.Submit(batch=5, model=A, work=rolling("a"), limits=StepLimits(rows=3))
    harness.send(CLIENT, batch)
    lease = harness.lease()
    assert (lease.attempt, lease.model, lease.work, lease.limits) == (1, A, batch.work, batch.limits)


def test_a_batch_waits_for_a_worker() -> None:
    harness = BrokerHarness()
    harness.send(CLIENT, OPEN_SESSION, submit(1))
    harness.send(WORKER, register())
    assert harness.lease().work == submit(1).work


def test_batches_of_a_model_are_leased_in_order_across_clients(harness: BrokerHarness) -> None:
    harness.send(OTHER_CLIENT, OPEN_SESSION)
    harness.send(CLIENT, submit(1, texts="a"))
    harness.send(OTHER_CLIENT, submit(1, texts="b"))
    harness.send(CLIENT, submit(2, texts="c"))
    order = []
    while leases := harness.leases():
        (lease,) = leases
        order += texts_of(lease)
        harness.send(WORKER, *finish(lease))
    assert order == ["a", "b", "c"]


def test_a_worker_holds_no_more_leases_than_its_capacity() -> None:
    harness = BrokerHarness()
    harness.send(WORKER, register(capacity=2))
    harness.send(CLIENT, OPEN_SESSION, *map(submit, range(5)))
    first, second = harness.leases()
    harness.send(WORKER, *finish(second))
    third = harness.lease()
    harness.send(WORKER, answer(first, 0))
    assert harness.leases() == []
    assert len({first.lease, second.lease, third.lease}) == 3


def test_two_workers_get_leases_at_the_same_time(harness: BrokerHarness) -> None:
    harness.send(OTHER_WORKER, register())
    harness.send(CLIENT, submit(1, texts="a"), submit(2, texts="b"))
    assert [texts_of(harness.lease(WORKER)), texts_of(harness.lease(OTHER_WORKER))] == [["a"], ["b"]]


def test_answers_reach_the_client_as_they_arrive(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="abc"))
    lease = harness.lease()
    harness.send(WORKER, answer(lease, 2, 0))
    assert harness.answers() == [(5, [2, 0], ["C", "A"])]
    harness.send(WORKER, answer(lease, 1))
    assert harness.answers() == [(5, [1], ["B"])]


def test_parts_of_answers_reach_the_client_and_settle_nothing(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="abc"))
    lease = harness.lease()
    parts = text_answers("B")
    harness.send(WORKER, m.LeasePartlyAnswered(lease=lease.lease, indices=[1], answers=parts))
    harness.send(WORKER, m.LeasePartlyAnswered(lease=lease.lease + 1, indices=[1], answers=parts))
    assert harness.received(CLIENT, m.PartlyAnswered) == [m.PartlyAnswered(batch=5, indices=[1], answers=parts)]
    harness.send(WORKER, answer(lease, 1))
    assert harness.answers() == [(5, [1], ["B"])]
    harness.send(WORKER, m.LeasePartlyAnswered(lease=lease.lease, indices=[1], answers=parts))
    assert harness.received(CLIENT, m.PartlyAnswered) == [], "it is answered"
    for indices in ([3], [0, 1]):
        harness.send(WORKER, m.LeasePartlyAnswered(lease=lease.lease, indices=indices, answers=parts))
        assert harness.refusal_type(WORKER) is ProtocolError


def test_answers_reach_only_the_client_that_submitted_the_batch(harness: BrokerHarness) -> None:
    harness.send(OTHER_CLIENT, OPEN_SESSION, submit(1, texts="b"))
    harness.send(CLIENT, submit(1, texts="a"))
    harness.send(WORKER, *finish(harness.lease()))
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.answers(CLIENT) == [(1, [0], ["A"])]
    assert harness.answers(OTHER_CLIENT) == [(1, [0], ["B"])]


def test_a_notice_reaches_the_client(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5))
    lease = harness.lease().lease
    harness.send(WORKER, m.LeaseNotice(lease=lease, level="warning", text="slow"))
    harness.send(WORKER, m.LeaseNotice(lease=lease, level="info", text="cut", once=True))
    assert harness.received(CLIENT, m.Notice) == [
        m.Notice(batch=5, level="warning", text="slow"),
        m.Notice(batch=5, level="info", text="cut", once=True),
    ]


def test_progress_reaches_the_client(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="abc"))
    lease = harness.lease()
    computed = ComputeCounters(tokens=7, padding=1, seconds=0.5)
    harness.send(WORKER, m.LeaseProgressed(lease=lease.lease, progress=computed))
    harness.send(WORKER, m.LeaseProgressed(lease=lease.lease + 1, progress=computed))
    assert harness.received(CLIENT, m.Progressed) == [m.Progressed(batch=5, progress=computed)], (
        "only for a lease that is active"
    )


def test_a_failure_with_an_index_fails_that_item_and_the_others_are_leased_again(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="abc"))
    lease = harness.lease()
    harness.send(WORKER, answer(lease, 0), fail(lease, index=1))
    ((batch, index, error),) = harness.item_failures()
    assert (batch, index, type(error), error.message) == (5, 1, ModelCallError, "boom")
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.answers() == [(5, [0], ["A"]), (5, [2], ["C"])]
    harness.send(CLIENT, submit(6, texts="d"))
    assert texts_of(harness.lease()) == ["d"]


@pytest.mark.parametrize("index", [None, 3, 100])
def test_a_failure_without_a_valid_index_fails_the_batch(harness: BrokerHarness, index: int | None) -> None:
    harness.send(CLIENT, submit(5, texts="abc"))
    harness.send(WORKER, fail(harness.lease(), index))
    number, error = harness.batch_failure()
    assert (number, type(error)) == (5, ModelCallError)
    assert harness.item_failures() == []
    assert harness.leases() == []


def test_a_failed_batch_is_cancelled_at_other_workers() -> None:
    harness = BrokerHarness()
    for worker in (WORKER, OTHER_WORKER):
        harness.send(worker, register())
    harness.send(CLIENT, OPEN_SESSION, submit(5, texts="ab"))
    for _ in range(2):
        harness.send(WORKER, crash(harness.lease(WORKER)))
    half, other_half = harness.lease(WORKER), harness.lease(OTHER_WORKER)
    harness.send(WORKER, fail(half))
    assert harness.received(OTHER_WORKER, m.CancelLease) == [m.CancelLease(lease=other_half.lease)]
    harness.send(OTHER_WORKER, *finish(other_half))
    assert harness.answers() == []


def test_a_lease_reported_done_with_missing_answers_is_an_error(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(5, texts="ab"))
    lease = harness.lease()
    harness.send(WORKER, answer(lease, 0), m.LeaseDone(lease=lease.lease))
    number, error = harness.batch_failure()
    assert (number, type(error)) == (5, InternalError)
    assert harness.leases() == []


@pytest.mark.parametrize(
    ("indices", "texts"),
    [([0, 0], ["X", "X"]), ([3], ["X"]), ([-1], ["X"]), ([0], []), ([0], ["X", "Y"])],
    ids=["twice", "out-of-range", "negative", "too-few", "too-many"],
)
def test_an_invalid_answer_is_refused_and_the_lease_continues(
    harness: BrokerHarness, indices: list[int], texts: list[str]
) -> None:
    harness.send(CLIENT, submit(1, texts="abc"))
    lease = harness.lease()
    wrong = m.LeaseAnswered(lease=lease.lease, indices=list(indices), answers=text_answers(*texts))
    harness.send(WORKER, wrong)
    assert harness.refusal_type(WORKER) is ProtocolError
    assert harness.answers() == []
    harness.send(WORKER, *finish(lease))
    assert harness.answers() == [(1, [0, 1, 2], ["A", "B", "C"])]


def test_a_second_answer_to_an_item_is_refused(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="abc"))
    lease = harness.lease()
    harness.send(WORKER, answer(lease, 0), answer(lease, 1, 0))
    assert harness.refusal_type(WORKER) is ProtocolError
    assert harness.answers() == [(1, [0], ["A"])]


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
def test_messages_after_the_end_of_a_lease_are_dropped(
    harness: BrokerHarness, late: Callable[[m.Lease], FromPeer]
) -> None:
    harness.send(CLIENT, submit(1))
    lease = harness.lease()
    harness.send(WORKER, *finish(lease))
    harness.received(CLIENT, object)
    harness.send(WORKER, late(lease))
    assert harness.received(CLIENT, object) == []
    assert harness.received(WORKER, m.Refusal) == []


# --- Draining ---------------------------------------------------------------------------------------------------------


def test_a_draining_broker_without_leases_stops_at_once(harness: BrokerHarness) -> None:
    harness.handle(Drain())
    assert harness.stop_count == 1


def test_a_draining_broker_grants_no_leases_and_stops_when_its_workers_have_finished(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="ab"), submit(2))
    lease = harness.lease()
    harness.handle(Drain())
    harness.send(CLIENT, submit(3), m.Ping())
    harness.send(WORKER, answer(lease, 0, 1))
    assert harness.stop_count == 0
    harness.send(WORKER, m.LeaseDone(lease=lease.lease))
    assert harness.stop_count == 1
    assert harness.answers() == [(1, [0, 1], ["A", "B"])]
    assert harness.leases() == []
    assert harness.received(CLIENT, m.Refusal) == []


def test_a_draining_broker_ignores_new_peers(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1))
    harness.handle(Drain())
    harness.send(OTHER_CLIENT, OPEN_SESSION)
    harness.send(OTHER_WORKER, register())
    assert harness.received(OTHER_CLIENT, object) == harness.received(OTHER_WORKER, object) == []


def test_a_draining_broker_waits_for_the_drain_timeout_at_most(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1))
    harness.handle(Drain())
    for _ in range(4):
        harness.advance(harness.settings.drain_s * 0.25 - 0.025)
        harness.send(WORKER, m.Heartbeat(phase="running"))
    assert harness.stop_count == 0
    harness.advance(0.2)
    assert harness.stop_count == 1


def test_a_draining_worker_finishes_and_gets_no_more_leases(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="a"), submit(2, texts="b"))
    lease = harness.lease()
    harness.send(WORKER, m.DrainWorker(), *finish(lease))
    assert harness.leases() == []
    harness.send(OTHER_WORKER, register())
    assert texts_of(harness.lease(OTHER_WORKER)) == ["b"]
