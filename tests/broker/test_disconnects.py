"""The broker core when clients send too much, disconnect or come back."""

from collections.abc import Callable

import pytest

from birdie_zmq.broker.events import Unreachable
from birdie_zmq.errors import ProtocolError
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings
from tests.broker.harness import (
    CLIENT,
    OPEN_SESSION,
    OTHER_CLIENT,
    OTHER_WORKER,
    WORKER,
    BrokerHarness,
    finish,
    register,
    submit,
    texts_of,
)

Disconnect = Callable[[BrokerHarness], None]


def test_a_batch_sent_twice_counts_once_while_it_waits(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1), submit(2), submit(2))
    harness.send(WORKER, *finish(harness.lease()))
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.leases() == []


def test_a_batch_sent_twice_counts_once_while_it_is_leased(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1), submit(1))
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.leases() == []
    assert harness.answers() == [(1, [0], ["X"])]


def test_a_batch_over_the_limit_of_a_client_fails_and_the_others_continue() -> None:
    harness = BrokerHarness(BrokerSettings(max_batches_per_client=2))
    harness.send(WORKER, register())
    harness.send(OTHER_CLIENT, OPEN_SESSION, submit(0))
    harness.send(CLIENT, OPEN_SESSION, submit(1), submit(2), submit(3))
    number, error = harness.batch_failure()
    assert (number, type(error)) == (3, ProtocolError)
    for _ in range(3):
        harness.send(WORKER, *finish(harness.lease()))
    assert [number for number, _, _ in harness.answers()] == [1, 2]


def test_a_finished_batch_no_longer_counts_towards_the_limit() -> None:
    harness = BrokerHarness(BrokerSettings(max_batches_per_client=1))
    harness.send(WORKER, register())
    harness.send(CLIENT, OPEN_SESSION, submit(1))
    harness.send(WORKER, *finish(harness.lease()))
    harness.send(CLIENT, submit(2))
    assert harness.received(CLIENT, m.BatchFailed) == []
    assert len(harness.leases()) == 1


def client_closes_its_session(harness: BrokerHarness) -> None:
    harness.send(CLIENT, m.CloseSession())


def client_is_unreachable(harness: BrokerHarness) -> None:
    harness.handle(Unreachable(CLIENT))


def client_times_out(harness: BrokerHarness) -> None:
    while harness.now <= 1_000.0 + harness.settings.client_timeout_s:
        harness.advance(harness.settings.worker_timeout_s / 2)
        harness.send(WORKER, m.Heartbeat(phase="ready"))


client_disconnects = pytest.mark.parametrize(
    "disconnect", [client_closes_its_session, client_is_unreachable, client_times_out]
)


@client_disconnects
def test_queued_batches_of_a_disconnected_client_are_dropped(harness: BrokerHarness, disconnect: Disconnect) -> None:
    harness.send(CLIENT, submit(1), submit(2))
    lease = harness.lease()
    disconnect(harness)
    harness.send(WORKER, *finish(lease))
    assert harness.leases() == []
    assert harness.answers() == []


@client_disconnects
def test_leased_batches_of_a_disconnected_client_are_not_leased_again(
    harness: BrokerHarness, disconnect: Disconnect
) -> None:
    harness.send(CLIENT, submit(1))
    harness.lease()
    disconnect(harness)
    harness.handle(Unreachable(WORKER))
    harness.send(OTHER_WORKER, register())
    assert harness.leases(OTHER_WORKER) == []
    assert harness.received(CLIENT, m.BatchFailed) == []


@client_disconnects
def test_leases_of_a_disconnected_client_are_cancelled_and_free_the_worker(
    harness: BrokerHarness, disconnect: Disconnect
) -> None:
    harness.send(CLIENT, submit(1, texts="a"))
    lease = harness.lease()
    harness.send(OTHER_CLIENT, OPEN_SESSION)
    disconnect(harness)
    harness.send(OTHER_CLIENT, OPEN_SESSION, submit(1, texts="b"))
    assert harness.received(WORKER, m.CancelLease) == [m.CancelLease(lease=lease.lease)]
    assert texts_of(harness.lease()) == ["b"]


def test_work_of_other_clients_continues_when_one_disconnects(harness: BrokerHarness) -> None:
    harness.send(OTHER_CLIENT, OPEN_SESSION)
    harness.send(CLIENT, submit(1, texts="a"))
    harness.send(OTHER_CLIENT, submit(1, texts="b"))
    lease = harness.lease()
    harness.send(CLIENT, m.CloseSession())
    harness.send(WORKER, *finish(lease))
    assert texts_of(harness.lease()) == ["b"]


def test_a_client_that_pings_keeps_its_work(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1))
    lease = harness.lease()
    for _ in range(4):
        for _ in range(3):
            harness.advance(harness.settings.client_timeout_s * 0.2)
            harness.send(WORKER, m.Heartbeat(phase="loading"))
        harness.send(CLIENT, m.Ping())
    assert harness.received(CLIENT, m.Refusal) == []
    harness.send(WORKER, *finish(lease))
    assert harness.answers() == [(1, [0], ["X"])]


def test_a_new_session_gets_no_answers_of_the_old_one(harness: BrokerHarness) -> None:
    harness.send(CLIENT, submit(1, texts="a"))
    lease = harness.lease()
    harness.send(CLIENT, OPEN_SESSION, submit(1, texts="b"))
    harness.send(WORKER, *finish(lease))
    assert harness.answers() == []
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.answers() == [(1, [0], ["B"])]
