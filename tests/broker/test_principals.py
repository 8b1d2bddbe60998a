"""What a key allows: each role its own messages, each peer its own session."""

import numpy as np
import pytest

from birdie_zmq.broker.events import Received, Revoked, Unreadable
from birdie_zmq.errors import NotAllowed, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.security.principals import Principal
from birdie_zmq.types import ErrorReport, ProgressDelta, Texts
from tests.broker.harness import (
    CLIENT,
    GREETING,
    OTHER_CLIENT,
    OTHER_WORKER,
    WORKER,
    FromPeer,
    Room,
    finish,
    name_of,
    register,
    submit,
    texts_of,
)

ALICE, BOB = (Principal("client", name, name * 8) for name in ("alice", "bobby"))
GPU, OTHER_GPU = (Principal("worker", name, name * 8) for name in ("gpu_1", "gpu_2"))

OF_CLIENTS: list[FromPeer] = [GREETING, submit(1), m.Ping(), m.CloseSession()]
OF_WORKERS: list[FromPeer] = [
    register(),
    m.Heartbeat(phase="ready"),
    m.LeaseAnswered(lease=1, indices=np.zeros(1, np.int32), answers=Texts(texts=["x"])),
    m.LeaseFailed(lease=1, error=ErrorReport(code="model", message="boom")),
    m.LeaseCrashed(lease=1, error=ErrorReport(code="model-process-died", message="boom")),
    m.LeaseReturned(lease=1),
    m.LeaseDone(lease=1),
    m.LeaseProgressed(lease=1, progress=ProgressDelta()),
    m.LeaseNotice(lease=1, level="info", text="loading"),
    m.DrainWorker(),
    m.CloseWorker(),
]


def says(room: Room, peer: bytes, sender: Principal, *messages: FromPeer) -> None:
    for message in messages:
        room.happens(Received(peer, message, sender=sender))


def refusal(room: Room, peer: bytes) -> str:
    """What the one refusal says that a peer has heard, which must be for its key."""
    (refusal,) = room.hears(peer, m.Refusal)
    assert type(refusal.error.to_error()) is NotAllowed
    return refusal.error.message


@pytest.fixture
def keyed() -> Room:
    """A broker with keys: Alice has submitted two letters, which the first worker has."""
    room = Room()
    says(room, WORKER, GPU, register())
    says(room, CLIENT, ALICE, GREETING, submit(1, texts="ab"))
    room.hears(CLIENT, m.SessionOpened)
    return room


def test_both_roles_work_together(keyed: Room) -> None:
    says(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == [(1, [0, 1], ["A", "B"])]


@pytest.mark.parametrize("message", OF_WORKERS, ids=name_of)
@pytest.mark.parametrize("greeted", [True, False])
def test_a_clients_key_is_no_workers(keyed: Room, message: FromPeer, greeted: bool) -> None:
    if greeted:
        says(keyed, OTHER_CLIENT, BOB, GREETING)
    says(keyed, OTHER_CLIENT, BOB, message)
    said = refusal(keyed, OTHER_CLIENT)
    assert "client 'bobby'" in said
    assert "birdie-zmq keys new worker NAME" in said
    says(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == [(1, [0, 1], ["A", "B"])]


@pytest.mark.parametrize("message", OF_CLIENTS, ids=name_of)
@pytest.mark.parametrize("greeted", [True, False])
def test_a_workers_key_is_no_clients(keyed: Room, message: FromPeer, greeted: bool) -> None:
    if greeted:
        says(keyed, OTHER_WORKER, OTHER_GPU, register())
    says(keyed, OTHER_WORKER, OTHER_GPU, message)
    said = refusal(keyed, OTHER_WORKER)
    assert "worker 'gpu_2'" in said
    assert "birdie-zmq keys new client NAME" in said


def test_each_message_has_a_role(keyed: Room) -> None:
    kinds = {*m.ClientMessage.__args__, *m.WorkerMessage.__args__}
    assert {type(message) for message in OF_CLIENTS + OF_WORKERS} == kinds


def test_a_refusal_names_the_key_in_the_log_and_nothing_of_the_message(keyed: Room) -> None:
    says(keyed, OTHER_WORKER, OTHER_GPU, submit(1, texts="€"))
    (line,) = keyed.logged[1:]
    assert "refused a message: the key of worker 'gpu_2' may not send Submit" in line
    assert "€" not in line


@pytest.mark.parametrize("message", OF_CLIENTS, ids=name_of)
def test_nobody_speaks_as_another(keyed: Room, message: FromPeer) -> None:
    says(keyed, CLIENT, BOB, message)
    assert refusal(keyed, CLIENT) == "client 'bobby' speaks as client 'alice'"
    says(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == [(1, [0, 1], ["A", "B"])]


def test_another_key_of_the_same_name_is_somebody_else(keyed: Room) -> None:
    says(keyed, CLIENT, Principal("client", "alice", "another"), m.Ping())
    assert keyed.hears(CLIENT, m.Pong) == []
    refusal(keyed, CLIENT)


def test_whoever_left_can_be_followed_by_another(keyed: Room) -> None:
    says(keyed, CLIENT, ALICE, m.CloseSession())
    says(keyed, CLIENT, BOB, GREETING)
    assert len(keyed.hears(CLIENT, m.SessionOpened)) == 1


def test_a_revoked_clients_work_is_dropped_and_its_session_gone(keyed: Room) -> None:
    lease = keyed.lease()
    says(keyed, OTHER_CLIENT, BOB, GREETING, submit(1))
    keyed.happens(Revoked(frozenset({ALICE})))
    assert [cancelled.lease for cancelled in keyed.hears(WORKER, m.CancelLease)] == [lease.lease]
    says(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == []
    assert len(keyed.answers(OTHER_CLIENT)) == 1
    says(keyed, CLIENT, ALICE, m.Ping())
    assert keyed.refused(CLIENT) is UnknownPeer


def test_a_revoked_worker_is_given_nothing_more_and_its_work_goes_to_another(keyed: Room) -> None:
    keyed.lease()
    keyed.happens(Revoked(frozenset({GPU})))
    assert any("the key of worker 'gpu_1' has been revoked" in line for line in keyed.logged)
    says(keyed, OTHER_WORKER, OTHER_GPU, register())
    assert texts_of(keyed.lease(OTHER_WORKER)) == ["a", "b"]
    says(keyed, CLIENT, ALICE, submit(2))
    assert keyed.leases(WORKER) == []


def test_revoking_a_key_that_nobody_uses_changes_nothing(keyed: Room) -> None:
    keyed.happens(Revoked(frozenset({BOB, OTHER_GPU})))
    says(keyed, WORKER, GPU, *finish(keyed.lease()))
    assert keyed.answers() == [(1, [0, 1], ["A", "B"])]


def test_what_the_loop_refuses_for_a_revoked_key_is_told(keyed: Room) -> None:
    keyed.happens(Unreadable(CLIENT, NotAllowed("the key of client 'alice' has been revoked")))
    assert "revoked" in refusal(keyed, CLIENT)


def test_without_keys_nobody_is_asked_for_a_role() -> None:
    room = Room()
    room.says(WORKER, register())
    room.says(CLIENT, GREETING, submit(1))
    room.says(WORKER, *finish(room.lease()))
    assert room.answers() == [(1, [0], ["X"])]
    room.happens(Revoked(frozenset({ALICE, GPU})))
    room.says(CLIENT, m.Ping())
    assert len(room.hears(CLIENT, m.Pong)) == 1
