"""The broker's behaviour, event by event and on a clock of plain numbers; then under whatever Hypothesis thinks of."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from birdie_zmq._version import __version__
from birdie_zmq.broker.state import Broker, Event, Log, Received, Send, Tick, Unreachable, Unreadable
from birdie_zmq.config import BrokerSettings
from birdie_zmq.errors import (
    BirdieError,
    InternalError,
    MalformedMessage,
    ModelCallError,
    ProtocolError,
    UnknownPeer,
    WorkerUnavailable,
)
from birdie_zmq.wire import messages as m

T = TypeVar("T")
FromPeer = m.ClientMessage | m.WorkerMessage

CLIENT, OTHER_CLIENT = b"client", b"other-client"
WORKER, OTHER_WORKER = b"worker", b"other-worker"
A, B, C = (m.ModelSpec(tag=tag) for tag in "ABC")
GREETING = m.OpenSession(package_version="1.0")


class Room:
    """A broker, a clock that moves only when told to, and what each peer has heard."""

    def __init__(self, settings: BrokerSettings | None = None) -> None:
        self.settings = settings or BrokerSettings()
        self.broker = Broker(self.settings)
        self.now = 1_000.0
        self.logged: list[str] = []
        self._heard: defaultdict[bytes, list[object]] = defaultdict(list)

    def happens(self, event: Event) -> None:
        for action in self.broker.handle(event, self.now):
            match action:
                case Send(peer, message):
                    self._heard[peer].append(message)
                case Log(_, text):
                    self.logged.append(text)

    def says(self, peer: bytes, *messages: FromPeer) -> None:
        for message in messages:
            self.happens(Received(peer, message))

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.happens(Tick())

    def hears(self, peer: bytes, kind: type[T]) -> list[T]:
        """What a peer has heard of one kind since it was last asked for."""
        heard = [message for message in self._heard[peer] if isinstance(message, kind)]
        self._heard[peer] = [message for message in self._heard[peer] if not isinstance(message, kind)]
        return heard

    def leases(self, worker: bytes = WORKER) -> list[m.Lease]:
        return self.hears(worker, m.Lease)

    def lease(self, worker: bytes = WORKER) -> m.Lease:
        """The one lease that a worker was given."""
        (lease,) = self.leases(worker)
        return lease

    def refused(self, peer: bytes) -> type[BirdieError]:
        """The class of the one refusal that a peer has heard."""
        (refusal,) = self.hears(peer, m.Refusal)
        return type(refusal.error.to_error())

    def failed(self, client: bytes = CLIENT) -> tuple[int, BirdieError]:
        """The number of the one batch that a client heard is lost, and why."""
        (failure,) = self.hears(client, m.BatchFailed)
        return failure.batch, failure.error.to_error()

    def answers(self, client: bytes = CLIENT) -> list[tuple[int, list[int], list[str]]]:
        """The answers that a client has heard: batch, indices, texts."""
        heard = []
        for answered in self.hears(client, m.Answered):
            assert isinstance(answered.answers, m.Texts)
            heard.append((answered.batch, answered.indices.tolist(), answered.answers.texts))
        return heard


def submit(batch: int, model: m.ModelSpec = A, texts: str = "x") -> m.Submit:
    """A batch with one item a letter."""
    return m.Submit(batch=batch, model=model, work=m.RollingWork(texts=list(texts)))


def register(capacity: int = 1) -> m.RegisterWorker:
    return m.RegisterWorker(package_version="1.0", engine="jax", host="here", process_id=7, capacity=capacity)


def answer(lease: m.Lease, *indices: int) -> m.LeaseAnswered:
    """An answer to some items of a lease, each of which is its letter in upper case."""
    texts = texts_of(lease)
    answers = m.Texts(texts=[texts[i].upper() for i in indices if 0 <= i < len(texts)])
    return m.LeaseAnswered(lease=lease.lease, indices=np.array(indices, np.int32), answers=answers)


def texts_of(lease: m.Lease) -> list[str]:
    assert isinstance(lease.work, m.RollingWork)
    return lease.work.texts


def finish(lease: m.Lease) -> tuple[m.LeaseAnswered, m.LeaseDone]:
    return answer(lease, *range(len(lease.work))), m.LeaseDone(lease=lease.lease)


def fail(lease: m.Lease, index: int | None = None) -> m.LeaseFailed:
    return m.LeaseFailed(lease=lease.lease, error=m.ErrorReport(code=ModelCallError.code, message="boom"), index=index)


@pytest.fixture
def room() -> Room:
    """A client and a worker of capacity 1, greeted."""
    room = Room()
    room.says(CLIENT, GREETING)
    room.says(WORKER, register())
    return room


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
    m.LeaseAnswered(lease=1, indices=np.zeros(1, np.int32), answers=m.Texts(texts=["x"])),
    m.LeaseFailed(lease=1, error=m.ErrorReport(code="model", message="boom")),
    m.LeaseDone(lease=1),
    m.LeaseNotice(lease=1, level="info", text="loading"),
    m.CloseWorker(),
]


def name_of(message: object) -> str:
    return type(message).__name__


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
    assert refusal.error == m.ErrorReport(code=MalformedMessage.code, message="that was no message")
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
    batch = m.Submit(batch=5, model=A, work=m.RollingWork(texts=["a"]), limits=m.StepLimits(rows=3))
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
    room.says(WORKER, m.LeaseNotice(lease=room.lease().lease, level="warning", text="slow"))
    assert room.hears(CLIENT, m.Notice) == [m.Notice(batch=5, level="warning", text="slow")]


def test_a_failure_reaches_the_client_and_ends_the_batch(room: Room) -> None:
    room.says(CLIENT, submit(5, texts="abc"))
    room.says(WORKER, fail(room.lease(), index=2))
    assert room.hears(CLIENT, m.BatchFailed) == [
        m.BatchFailed(batch=5, error=m.ErrorReport(code=ModelCallError.code, message="boom"), index=2)
    ]
    room.says(CLIENT, submit(6, texts="d"))
    assert texts_of(room.lease()) == ["d"]


@pytest.mark.parametrize("index", [None, 3, 100])
def test_a_failure_that_names_no_item_of_the_lease_names_none_of_the_batch(room: Room, index: int | None) -> None:
    room.says(CLIENT, submit(5, texts="abc"))
    room.says(WORKER, fail(room.lease(), index))
    (failure,) = room.hears(CLIENT, m.BatchFailed)
    assert failure.index is None


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
    wrong = m.LeaseAnswered(lease=lease.lease, indices=np.array(indices, np.int32), answers=m.Texts(texts=texts))
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
    (failure,) = room.hears(CLIENT, m.BatchFailed)
    assert failure.index == 3


def test_what_is_leased_again_comes_before_what_waits_and_keeps_its_order() -> None:
    room = Room()
    room.says(WORKER, register(capacity=2))
    room.says(CLIENT, GREETING, *(submit(i, texts=text) for i, text in enumerate("abcd")))
    room.happens(Unreachable(WORKER))
    room.says(OTHER_WORKER, register(capacity=4))
    assert [texts_of(lease) for lease in room.leases(OTHER_WORKER)] == [["a"], ["b"], ["c"], ["d"]]


def test_a_batch_whose_last_answer_came_before_its_worker_was_lost_is_done() -> None:
    room = Room(BrokerSettings(max_attempts=1))
    room.says(WORKER, register())
    room.says(CLIENT, GREETING, submit(5))
    room.says(WORKER, answer(room.lease(), 0))
    room.happens(Unreachable(WORKER))
    room.says(OTHER_WORKER, register())
    assert room.leases(OTHER_WORKER) == []
    assert room.hears(CLIENT, m.BatchFailed) == []


def test_an_answered_description_is_not_asked_for_again(room: Room) -> None:
    room.says(CLIENT, m.Submit(batch=5, model=A, work=m.DescribeWork()))
    lease = room.lease()
    # What stands in for the description does not matter to the broker.
    described = m.LeaseAnswered(lease=lease.lease, indices=np.zeros(1, np.int32), answers=m.Texts(texts=["demo"]))
    room.says(WORKER, described)
    room.happens(Unreachable(WORKER))
    room.says(OTHER_WORKER, register())
    assert room.leases(OTHER_WORKER) == []


@losses
def test_a_batch_that_loses_too_many_workers_fails(loss: Loss) -> None:
    room = Room(BrokerSettings(max_attempts=2))
    room.says(CLIENT, GREETING, submit(5))
    for attempt in (1, 2):
        room.says(WORKER, register())
        assert room.leases()[-1].attempt == attempt
        loss(room)
    number, error = room.failed()
    assert (number, type(error)) == (5, WorkerUnavailable)
    assert "jax worker 7 on here" in error.message
    room.says(OTHER_WORKER, register())
    assert room.leases(OTHER_WORKER) == []


def test_a_goodbye_is_no_failed_attempt() -> None:
    room = Room(BrokerSettings(max_attempts=1))
    room.says(CLIENT, GREETING, submit(5))
    for _ in range(3):
        room.says(WORKER, register())
        assert room.lease().attempt == 1
        room.says(WORKER, m.CloseWorker())
    assert room.hears(CLIENT, m.BatchFailed) == []


@losses
def test_a_lost_workers_late_answer_is_dropped(room: Room, loss: Loss) -> None:
    room.says(CLIENT, submit(5, texts="ab"))
    lost = room.lease()
    loss(room)
    room.says(WORKER, register(), answer(lost, 0))
    assert room.answers() == []
    room.says(WORKER, *finish(room.leases()[-1]))
    assert room.answers() == [(5, [0, 1], ["A", "B"])]


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
        room.passes(room.settings.client_timeout_s * 0.6)
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
    room.now += room.settings.patience_s + 0.1
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
    room = Room(BrokerSettings(patience_s=30.0, max_batches_per_client=10_000))
    room.says(WORKER, register(capacity=2))
    room.says(CLIENT, GREETING)
    held: list[m.Lease] = []
    served: list[tuple[float, m.ModelSpec]] = []
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


# --- Whatever happens ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Submitted:
    """A batch as its client sees it. Its items are numbered from ``first``, and each item's score is its number."""

    message: m.Submit
    first: int
    unanswered: set[int]
    losses: int = 0


@dataclass(eq=False)
class Held:
    """A lease as its worker sees it."""

    lease: m.Lease
    batch: Submitted
    items: list[int]
    answered: set[int] = field(default_factory=set)

    @property
    def unanswered(self) -> list[int]:
        return [i for i in range(len(self.items)) if i not in self.answered]

    def answer(self, indices: Iterable[int]) -> m.LeaseAnswered:
        where = np.array(list(indices), np.int32)
        scores = np.array([self.items[i] for i in where], np.float64)
        answers = m.RollingScores(loglikelihoods=scores)
        return m.LeaseAnswered(lease=self.lease.lease, indices=where, answers=answers)


@dataclass(eq=False)
class Client:
    seen_at: float
    batches: dict[int, Submitted] = field(default_factory=dict)


@dataclass(eq=False)
class Worker:
    seen_at: float
    capacity: int
    leases: dict[int, Held] = field(default_factory=dict)


class BrokerUnderStress(RuleBasedStateMachine):
    """A broker among clients and workers that come, go, fall silent, and say the wrong thing.

    Clients keep the batches that are neither answered nor failed, workers the leases that they hold; what the broker
    says is checked against both.
    """

    SETTINGS = BrokerSettings(client_timeout_s=30, worker_timeout_s=20, patience_s=15, max_attempts=3)

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker(self.SETTINGS)
        self.now = 0.0
        self.clients: dict[bytes, Client] = {}
        self.workers: dict[bytes, Worker] = {}
        self.past: list[tuple[bytes, Held]] = []
        self.peers = 0
        self.items = 0
        self.delivered = 0
        self.fault: tuple[Submitted, int] | None = None
        self.refusals: list[m.Refusal] = []

    # What the broker says

    def happens(self, event: Event) -> list[m.Refusal]:
        """Let the broker handle an event and its peers hear of it; the refusals."""
        self.refusals = []
        for action in self.broker.handle(event, self.now):
            if isinstance(action, Send):
                self.hears(action.peer, action.message)
        return self.refusals

    def says(self, peer: bytes, message: FromPeer) -> None:
        """A peer says what it may say."""
        known = self.clients.get(peer) or self.workers.get(peer)
        if known is not None:
            known.seen_at = self.now
        assert self.happens(Received(peer, message)) == []

    def hears(self, peer: bytes, message: m.BrokerToClient | m.BrokerToWorker | m.Refusal) -> None:
        match message:
            case m.SessionOpened() | m.Notice():
                assert peer in self.clients
            case m.WorkerRegistered():
                assert peer in self.workers
            case m.Pong(workers=workers):
                assert workers == len(self.workers)
            case m.Answered():
                self.client_is_answered(peer, message)
            case m.BatchFailed():
                self.client_is_failed(peer, message)
            case m.Lease():
                self.worker_is_given(peer, message)
            case m.Refusal():
                self.refusals.append(message)

    def client_is_answered(self, peer: bytes, message: m.Answered) -> None:
        batch = self.clients[peer].batches[message.batch]
        assert isinstance(message.answers, m.RollingScores)
        for index, score in zip(message.indices.tolist(), message.answers.loglikelihoods.tolist(), strict=True):
            assert score == batch.first + index
            batch.unanswered.remove(index)
            self.delivered += 1
        if not batch.unanswered:
            del self.clients[peer].batches[message.batch]

    def client_is_failed(self, peer: bytes, message: m.BatchFailed) -> None:
        batch = self.clients[peer].batches.pop(message.batch)
        if message.error.code == WorkerUnavailable.code:
            assert batch.losses == self.SETTINGS.max_attempts
        else:
            assert message.error.code == ModelCallError.code
            assert self.fault == (batch, message.index)

    def worker_is_given(self, peer: bytes, lease: m.Lease) -> None:
        items = [int(text) for text in texts_of(lease)]
        assert items, "a lease of nothing"
        (batch,) = (
            batch
            for client in self.clients.values()
            for batch in client.batches.values()
            if batch.first <= items[0] < batch.first + len(batch.message.work)
        )
        assert items == [batch.first + index for index in sorted(batch.unanswered)]
        assert lease.model == batch.message.model
        assert lease.attempt == batch.losses + 1
        assert lease.lease not in self.workers[peer].leases
        self.workers[peer].leases[lease.lease] = Held(lease, batch, items)

    # Clients

    def new_peer(self, kind: str) -> bytes:
        self.peers += 1
        return f"{kind}-{self.peers}".encode()

    @initialize()
    def somebody_is_there(self) -> None:
        self.a_client_greets()
        self.a_worker_registers(capacity=2)

    @precondition(lambda self: len(self.clients) < 3)
    @rule()
    def a_client_greets(self) -> None:
        peer = self.new_peer("client")
        self.clients[peer] = Client(self.now)
        self.says(peer, GREETING)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), model=st.sampled_from([A, B, C]), size=st.integers(1, 4))
    def a_client_submits(self, data: st.DataObject, model: m.ModelSpec, size: int) -> None:
        peer = data.draw(st.sampled_from(sorted(self.clients)))
        first, self.items = self.items, self.items + size
        work = m.RollingWork(texts=[str(first + i) for i in range(size)])
        batch = m.Submit(batch=first, model=model, work=work)
        self.clients[peer].batches[first] = Submitted(batch, first, set(range(size)))
        self.says(peer, batch)

    @precondition(lambda self: any(client.batches for client in self.clients.values()))
    @rule(data=st.data())
    def a_client_submits_again(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(sorted(peer for peer in self.clients if self.clients[peer].batches)))
        number = data.draw(st.sampled_from(sorted(self.clients[peer].batches)))
        self.says(peer, self.clients[peer].batches[number].message)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), politely=st.booleans())
    def a_client_leaves(self, data: st.DataObject, politely: bool) -> None:
        peer = data.draw(st.sampled_from(sorted(self.clients)))
        del self.clients[peer]
        self.happens(Received(peer, m.CloseSession()) if politely else Unreachable(peer))

    # Workers

    @precondition(lambda self: len(self.workers) < 3)
    @rule(capacity=st.integers(1, 3))
    def a_worker_registers(self, capacity: int) -> None:
        peer = self.new_peer("worker")
        self.workers[peer] = Worker(self.now, capacity)
        self.says(peer, register(capacity))

    def held(self, *, complete: bool) -> list[tuple[bytes, Held]]:
        """The leases of all workers that have, or have not, answered every item."""
        return [
            (peer, held)
            for peer, worker in self.workers.items()
            for held in worker.leases.values()
            if complete == (not held.unanswered)
        ]

    @precondition(lambda self: self.held(complete=False))
    @rule(data=st.data())
    def a_worker_answers(self, data: st.DataObject) -> None:
        peer, held = data.draw(st.sampled_from(self.held(complete=False)))
        indices = data.draw(st.lists(st.sampled_from(held.unanswered), min_size=1, unique=True))
        held.answered.update(indices)
        self.says(peer, held.answer(indices))

    @precondition(lambda self: self.held(complete=True))
    @rule(data=st.data())
    def a_worker_is_done(self, data: st.DataObject) -> None:
        peer, held = data.draw(st.sampled_from(self.held(complete=True)))
        self.ends(peer, held)
        self.says(peer, m.LeaseDone(lease=held.lease.lease))

    @precondition(lambda self: self.held(complete=False))
    @rule(data=st.data())
    def a_worker_fails(self, data: st.DataObject) -> None:
        peer, held = data.draw(st.sampled_from(self.held(complete=False)))
        index = data.draw(st.sampled_from(held.unanswered))
        self.fault = held.batch, held.items[index] - held.batch.first
        self.ends(peer, held)
        self.says(peer, fail(held.lease, index))

    def ends(self, peer: bytes, held: Held) -> None:
        del self.workers[peer].leases[held.lease.lease]
        self.past.append((peer, held))

    def is_lost(self, peer: bytes, *, counts: bool = True) -> None:
        """A worker is gone from now on, and whatever it holds is to be given to another."""
        for held in list(self.workers[peer].leases.values()):
            held.batch.losses += counts
            self.ends(peer, held)
        del self.workers[peer]

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), how=st.sampled_from(["unreachable", "goodbye", "registers again"]))
    def a_worker_leaves(self, data: st.DataObject, how: str) -> None:
        peer = data.draw(st.sampled_from(sorted(self.workers)))
        capacity = self.workers[peer].capacity
        self.is_lost(peer, counts=how != "goodbye")
        match how:
            case "unreachable":
                assert self.happens(Unreachable(peer)) == []
            case "goodbye":
                assert self.happens(Received(peer, m.CloseWorker())) == []
            case "registers again":
                self.workers[peer] = Worker(self.now, capacity)
                self.says(peer, register(capacity))

    # What should not be said

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def an_answer_comes_late(self, data: st.DataObject) -> None:
        peer, held = data.draw(st.sampled_from(self.past))
        before = self.delivered
        refusals = self.happens(Received(peer, held.answer(range(len(held.items)))))
        if peer in self.workers:
            self.workers[peer].seen_at = self.now
            assert refusals == []
        else:
            assert [refusal.error.code for refusal in refusals] == [UnknownPeer.code]
        assert self.delivered == before

    @precondition(
        lambda self: any(held.answered for worker in self.workers.values() for held in worker.leases.values())
    )
    @rule(data=st.data())
    def an_answer_comes_twice(self, data: st.DataObject) -> None:
        leases = [(p, held) for p, worker in self.workers.items() for held in worker.leases.values() if held.answered]
        peer, held = data.draw(st.sampled_from(leases))
        self.workers[peer].seen_at = self.now
        before = self.delivered
        assert len(self.happens(Received(peer, held.answer(range(len(held.items)))))) == 1
        assert self.delivered == before

    @rule(data=st.data())
    def somebody_sends_garbage(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from([b"stranger", *sorted(self.clients), *sorted(self.workers)]))
        assert len(self.happens(Unreadable(peer, MalformedMessage("no message")))) == 1

    # Time

    @rule(data=st.data(), seconds=st.floats(0.5, 19))
    def time_passes(self, data: st.DataObject, seconds: float) -> None:
        """Time passes, and everybody gives a sign of life but those who are silent."""
        peers = sorted({*self.clients, *self.workers})
        silent = data.draw(st.lists(st.sampled_from(peers), max_size=2)) if peers else []
        self.now += seconds
        for peer in peers:
            if peer not in silent:
                self.says(peer, m.Ping() if peer in self.clients else m.Heartbeat(phase="ready"))
        self.ticks()

    def ticks(self) -> None:
        for peer, client in list(self.clients.items()):
            if self.now - client.seen_at > self.SETTINGS.client_timeout_s:
                del self.clients[peer]
        for peer, worker in list(self.workers.items()):
            if self.now - worker.seen_at > self.SETTINGS.worker_timeout_s:
                self.is_lost(peer)
        assert self.happens(Tick()) == []

    @precondition(lambda self: sum(len(client.batches) for client in self.clients.values()) > 2)
    @rule()
    def everybody_behaves_until_all_is_answered(self) -> None:
        if not self.workers:
            self.a_worker_registers(capacity=1)
        for _ in range(1 + sum(len(client.batches) for client in self.clients.values())):
            for peer, worker in self.workers.items():
                for held in list(worker.leases.values()):
                    if held.unanswered:
                        indices = held.unanswered
                        held.answered.update(indices)
                        self.says(peer, held.answer(indices))
                    self.ends(peer, held)
                    self.says(peer, m.LeaseDone(lease=held.lease.lease))
        assert not any(client.batches for client in self.clients.values())
        assert not any(worker.leases for worker in self.workers.values())

    # What always holds

    @invariant()
    def every_open_batch_is_in_exactly_one_place(self) -> None:
        queued = Counter((batch.client, batch.number) for batch in self.broker._queues)
        leased = Counter(held.batch for worker in self.workers.values() for held in worker.leases.values())
        for peer, client in self.clients.items():
            for number, batch in client.batches.items():
                assert queued.pop((peer, number), 0) + leased[batch] == 1
        assert not queued

    @invariant()
    def no_worker_holds_more_than_it_can(self) -> None:
        assert all(len(worker.leases) <= worker.capacity for worker in self.workers.values())

    @invariant()
    def no_worker_holds_leases_of_two_models(self) -> None:
        for worker in self.workers.values():
            assert len({held.lease.model for held in worker.leases.values()}) <= 1


TestBrokerUnderStress = BrokerUnderStress.TestCase
TestBrokerUnderStress.settings = settings(deadline=None, max_examples=300, stateful_step_count=50)
