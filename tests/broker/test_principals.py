"""Permissions of keys: each role may send its own messages, and each principal uses its own connection."""

import pytest

from birdie_zmq.broker.events import Received, Revoked, Unreadable
from birdie_zmq.errors import NotAllowed, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.security.principals import Principal
from birdie_zmq.types import ComputeCounters, ErrorReport
from tests.broker.harness import (
    CLIENT,
    OPEN_SESSION,
    OTHER_CLIENT,
    OTHER_WORKER,
    WORKER,
    BrokerHarness,
    FromPeer,
    finish,
    name_of,
    register,
    submit,
    text_answers,
    texts_of,
)

ALICE, BOB = (Principal("client", name, name * 8) for name in ("alice", "bobby"))
GPU, OTHER_GPU = (Principal("worker", name, name * 8) for name in ("gpu_1", "gpu_2"))

CLIENT_MESSAGES: list[FromPeer] = [OPEN_SESSION, submit(1), m.Ping(), m.CloseSession()]
WORKER_MESSAGES: list[FromPeer] = [
    register(),
    m.Heartbeat(phase="ready"),
    m.LeaseAnswered(lease=1, indices=[0], answers=text_answers("x")),
    m.LeasePartlyAnswered(lease=1, indices=[0], answers=text_answers("x")),
    m.LeaseFailed(lease=1, error=ErrorReport(code="model", message="boom")),
    m.LeaseCrashed(lease=1, error=ErrorReport(code="model-process-died", message="boom")),
    m.LeaseReturned(lease=1),
    m.LeaseDone(lease=1),
    m.LeaseProgressed(lease=1, progress=ComputeCounters()),
    m.LeaseNotice(lease=1, level="info", text="loading"),
    m.DrainWorker(),
    m.CloseWorker(),
]


def send(harness: BrokerHarness, peer: bytes, sender: Principal, *messages: FromPeer) -> None:
    for message in messages:
        harness.handle(Received(peer, message, sender=sender))


def refusal(harness: BrokerHarness, peer: bytes) -> str:
    """Take the one refusal of a peer, check that it is a NotAllowed, and return its message."""
    (refusal,) = harness.received(peer, m.Refusal)
    assert type(refusal.error.to_error()) is NotAllowed
    return refusal.error.message


@pytest.fixture
def keyed() -> BrokerHarness:
    """A broker with keys: Alice has submitted a batch of two items, which is leased to the first worker."""
    harness = BrokerHarness()
    send(harness, WORKER, GPU, register())
    send(harness, CLIENT, ALICE, OPEN_SESSION, submit(1, texts="ab"))
    harness.received(CLIENT, m.SessionOpened)
    return harness


def test_a_client_and_a_worker_with_keys_work_together(keyed: BrokerHarness) -> None:
    send(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == [(1, [0, 1], ["A", "B"])]


@pytest.mark.parametrize("message", WORKER_MESSAGES, ids=name_of)
@pytest.mark.parametrize("is_registered", [True, False])
def test_a_client_key_may_not_send_worker_messages(
    keyed: BrokerHarness, message: FromPeer, is_registered: bool
) -> None:
    if is_registered:
        send(keyed, OTHER_CLIENT, BOB, OPEN_SESSION)
    send(keyed, OTHER_CLIENT, BOB, message)
    message_text = refusal(keyed, OTHER_CLIENT)
    assert "client 'bobby'" in message_text
    assert "birdie-zmq keys new worker NAME" in message_text
    send(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == [(1, [0, 1], ["A", "B"])]


@pytest.mark.parametrize("message", CLIENT_MESSAGES, ids=name_of)
@pytest.mark.parametrize("is_registered", [True, False])
def test_a_worker_key_may_not_send_client_messages(
    keyed: BrokerHarness, message: FromPeer, is_registered: bool
) -> None:
    if is_registered:
        send(keyed, OTHER_WORKER, OTHER_GPU, register())
    send(keyed, OTHER_WORKER, OTHER_GPU, message)
    message_text = refusal(keyed, OTHER_WORKER)
    assert "worker 'gpu_2'" in message_text
    assert "birdie-zmq keys new client NAME" in message_text


def test_every_message_has_a_role(keyed: BrokerHarness) -> None:
    kinds = {*m.ClientMessage.__args__, *m.WorkerMessage.__args__}
    assert {type(message) for message in CLIENT_MESSAGES + WORKER_MESSAGES} == kinds


def test_the_log_of_a_refusal_names_the_key_and_quotes_no_message(keyed: BrokerHarness) -> None:
    send(keyed, OTHER_WORKER, OTHER_GPU, submit(1, texts="€"))
    (line,) = keyed.log_lines[1:]
    assert "refused a message: the key of worker 'gpu_2' may not send Submit" in line
    assert "€" not in line


@pytest.mark.parametrize("message", CLIENT_MESSAGES, ids=name_of)
def test_a_client_may_not_send_on_the_connection_of_another(keyed: BrokerHarness, message: FromPeer) -> None:
    send(keyed, CLIENT, BOB, message)
    assert refusal(keyed, CLIENT) == "client 'bobby' sent a message on the connection of client 'alice'"
    send(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == [(1, [0, 1], ["A", "B"])]


def test_another_key_of_the_same_name_is_another_principal(keyed: BrokerHarness) -> None:
    send(keyed, CLIENT, Principal("client", "alice", "another"), m.Ping())
    assert keyed.received(CLIENT, m.Pong) == []
    refusal(keyed, CLIENT)


def test_a_connection_can_be_reused_after_its_session_is_closed(keyed: BrokerHarness) -> None:
    send(keyed, CLIENT, ALICE, m.CloseSession())
    send(keyed, CLIENT, BOB, OPEN_SESSION)
    assert len(keyed.received(CLIENT, m.SessionOpened)) == 1


def test_the_batches_and_the_session_of_a_revoked_client_are_removed(keyed: BrokerHarness) -> None:
    lease = keyed.lease()
    send(keyed, OTHER_CLIENT, BOB, OPEN_SESSION, submit(1))
    keyed.handle(Revoked(frozenset({ALICE})))
    assert [cancelled.lease for cancelled in keyed.received(WORKER, m.CancelLease)] == [lease.lease]
    send(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == []
    assert len(keyed.answers(OTHER_CLIENT)) == 1
    send(keyed, CLIENT, ALICE, m.Ping())
    assert keyed.refusal_type(CLIENT) is UnknownPeer


def test_the_leases_of_a_revoked_worker_go_to_another(keyed: BrokerHarness) -> None:
    keyed.lease()
    keyed.handle(Revoked(frozenset({GPU})))
    assert any("the key of worker 'gpu_1' has been revoked" in line for line in keyed.log_lines)
    send(keyed, OTHER_WORKER, OTHER_GPU, register())
    assert texts_of(keyed.lease(OTHER_WORKER)) == ["a", "b"]
    send(keyed, CLIENT, ALICE, submit(2))
    assert keyed.leases(WORKER) == []


def test_revoking_an_unused_key_changes_nothing(keyed: BrokerHarness) -> None:
    keyed.handle(Revoked(frozenset({BOB, OTHER_GPU})))
    send(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == [(1, [0, 1], ["A", "B"])]


def test_a_client_with_a_revoked_key_is_sent_the_reason(keyed: BrokerHarness) -> None:
    keyed.handle(Unreadable(CLIENT, NotAllowed("the key of client 'alice' has been revoked")))
    assert "revoked" in refusal(keyed, CLIENT)


def test_without_keys_roles_are_not_checked() -> None:
    harness = BrokerHarness()
    harness.send(WORKER, register())
    harness.send(CLIENT, OPEN_SESSION, submit(1))
    harness.send(WORKER, *finish(harness.lease()))
    assert harness.answers() == [(1, [0], ["X"])]
    harness.handle(Revoked(frozenset({ALICE, GPU})))
    harness.send(CLIENT, m.Ping())
    assert len(harness.received(CLIENT, m.Pong)) == 1
