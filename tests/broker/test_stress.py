"""A stateful Hypothesis test of the broker core."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from birdie_zmq.broker.core import BrokerCore
from birdie_zmq.broker.events import Event, Received, Send, Tick, Unreachable, Unreadable
from birdie_zmq.broker.scheduler import SubBatch
from birdie_zmq.errors import (
    MalformedMessage,
    ModelCallError,
    ModelProcessDied,
    ProtocolError,
    UnknownPeer,
    WorkerUnavailable,
)
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.packing import pack_answers, unpack_answers
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ModelSpec
from tests.broker.harness import OPEN_SESSION, A, B, C, FromPeer, crash, fail, register, rolling, texts_of


@dataclass(eq=False)
class Submitted:
    """A batch as its client sees it: items are numbered across the whole test, and the score of an item is its number."""

    message: m.Submit
    items: list[int]
    open: set[int]
    submitted_at: float


@dataclass(eq=False)
class ActiveLease:
    """A lease as its worker sees it."""

    lease: m.Lease
    batch: Submitted
    items: list[int]
    answered: set[int] = field(default_factory=set)

    @property
    def unanswered(self) -> list[int]:
        return [i for i in range(len(self.items)) if i not in self.answered]

    def answer(self, indices: Iterable[int]) -> m.LeaseAnswered:
        answered = list(indices)
        answers = pack_answers("rolling", [float(self.items[i]) for i in answered])
        return m.LeaseAnswered(lease=self.lease.lease, indices=answered, answers=answers)


@dataclass(eq=False)
class Client:
    last_seen_at: float
    batches: dict[int, Submitted] = field(default_factory=dict)


@dataclass(eq=False)
class Worker:
    last_seen_at: float
    capacity: int
    model_since: float = 0.0
    model: ModelSpec | None = None
    is_draining: bool = False
    leases: dict[int, ActiveLease] = field(default_factory=dict)

    @property
    def running_lease(self) -> ActiveLease | None:
        """The first unanswered lease, which a crash of the worker counts against."""
        return next((active for active in self.leases.values() if active.unanswered), None)


class BrokerUnderStress(RuleBasedStateMachine):
    """A broker with clients and workers that connect, leave, time out, crash and send invalid messages.

    Clients track the items that are neither answered nor failed, and workers track their leases; the messages of the
    broker are checked against both. Some requests are poison: they crash every process that computes them.
    """

    SETTINGS = BrokerSettings(
        client_timeout_s=30,
        worker_timeout_s=20,
        switch_delay_s=15,
        max_crashes_per_request=3,
        max_consecutive_crashes=10,
        max_batches_per_client=5,
        max_refusal_burst=1_000_000,  # no limit here: every refusal is checked
    )

    def __init__(self) -> None:
        super().__init__()
        self.broker = BrokerCore(self.SETTINGS)
        self.now = 0.0
        self.clients: dict[bytes, Client] = {}
        self.workers: dict[bytes, Worker] = {}
        self.ended_leases: list[tuple[bytes, ActiveLease]] = []
        self.peer_count = 0
        self.items = 0
        self.poison: set[int] = set()
        self.answers: Counter[int] = Counter()
        self.failed: dict[int, str] = {}
        self.crashes: Counter[int] = Counter()
        self.crashes_alone: Counter[int] = Counter()
        self.consecutive_crashes: Counter[ModelSpec] = Counter()
        self.total_crashes = self.model_switches = 0
        self.last_crashed: list[int] = []
        self.reported_failure: tuple[Submitted, int | None] | None = None
        self.refusals: list[m.Refusal] = []

    # Messages of the broker

    def handle(self, event: Event) -> list[m.Refusal]:
        """Let the broker handle an event, deliver its messages, and return the refusals."""
        self.refusals = []
        for action in self.broker.handle(event, self.now):
            if isinstance(action, Send):
                self.deliver(action.peer, action.message)
        return self.refusals

    def send(self, peer: bytes, message: FromPeer) -> None:
        """Send a valid message of a peer."""
        known = self.clients.get(peer) or self.workers.get(peer)
        if known is not None:
            known.last_seen_at = self.now
        assert self.handle(Received(peer, message)) == []

    def deliver(self, peer: bytes, message: m.BrokerToClient | m.BrokerToWorker | m.Refusal) -> None:
        match message:
            case m.SessionOpened():
                assert peer in self.clients
            case m.Notice():
                assert message.batch in self.clients[peer].batches
            case m.WorkerRegistered():
                assert peer in self.workers
            case m.Pong():
                assert message == m.Pong(
                    workers=len(self.workers), model_switches=self.model_switches, retries=self.total_crashes
                )
            case m.Answered():
                self.deliver_answers(peer, message)
            case m.ItemFailed():
                self.deliver_item_failure(peer, message)
            case m.BatchFailed():
                self.deliver_batch_failure(peer, message)
            case m.Lease():
                self.deliver_lease(peer, message)
            case m.CancelLease(lease=lease):
                is_first = next(iter(self.workers[peer].leases)) == lease
                active = self.workers[peer].leases.pop(lease)
                is_open = self.is_unanswered(active.batch) and not active.batch.open.isdisjoint(active.items)
                assert not is_open or not is_first, "the lease was running"
                self.ended_leases.append((peer, active))
            case m.Refusal():
                self.refusals.append(message)

    def is_unanswered(self, batch: Submitted) -> bool:
        return any(batch in client.batches.values() for client in self.clients.values())

    def settle(self, peer: bytes, batch: Submitted, item: int) -> None:
        batch.open.remove(item)
        if not batch.open:
            del self.clients[peer].batches[batch.message.batch]

    def deliver_answers(self, peer: bytes, message: m.Answered) -> None:
        batch = self.clients[peer].batches[message.batch]
        scores = unpack_answers("rolling", message.answers)
        for index, score in zip(message.indices, scores, strict=True):
            item = batch.items[index]
            assert score == item
            self.answers[item] += 1
            self.settle(peer, batch, item)

    def deliver_item_failure(self, peer: bytes, message: m.ItemFailed) -> None:
        batch = self.clients[peer].batches[message.batch]
        item = batch.items[message.index]
        if message.error.code == ModelCallError.code:
            assert self.reported_failure == (batch, item)
        else:
            assert message.error.code in (ModelProcessDied.code, WorkerUnavailable.code)
            assert self.last_crashed == [item], "it was abandoned for a crash together with other items"
            assert self.crashes[item] >= self.SETTINGS.max_crashes_per_request
            assert self.crashes_alone[item] >= 2
        self.failed[item] = message.error.code
        self.settle(peer, batch, item)

    def deliver_batch_failure(self, peer: bytes, message: m.BatchFailed) -> None:
        batch = self.clients[peer].batches.pop(message.batch)
        match message.error.code:
            case ModelCallError.code:
                assert self.reported_failure == (batch, None)
            case ProtocolError.code:
                assert len(self.clients[peer].batches) == self.SETTINGS.max_batches_per_client
            case code:
                assert code in (ModelProcessDied.code, WorkerUnavailable.code)
                assert self.consecutive_crashes.pop(batch.message.model) == self.SETTINGS.max_consecutive_crashes
        for item in batch.open:
            self.failed[item] = message.error.code
        batch.open.clear()

    def deliver_lease(self, peer: bytes, lease: m.Lease) -> None:
        worker = self.workers[peer]
        items = [int(text) for text in texts_of(lease)]
        assert items, "the lease has no items"
        (batch,) = (b for client in self.clients.values() for b in client.batches.values() if items[0] in b.open)
        assert batch.open.issuperset(items)
        assert lease.model == batch.message.model
        assert not worker.is_draining
        assert lease.lease not in worker.leases
        if lease.model != worker.model:
            assert not worker.leases
            self.model_switches += worker.model is not None
            worker.model, worker.model_since = lease.model, self.now
        else:
            self.check_switch_delay(worker)
        worker.leases[lease.lease] = ActiveLease(lease, batch, items)
        suspects = [active for active in worker.leases.values() if any(self.crashes[item] for item in active.items)]
        assert not suspects or len(worker.leases) == 1, "a suspect shares its worker"

    def check_switch_delay(self, worker: Worker) -> None:
        queue_heads: dict[ModelSpec, SubBatch] = {}
        for sub_batch in self.broker.waiting:
            queue_heads.setdefault(sub_batch.batch.model, sub_batch)
        for model, sub_batch in queue_heads.items():
            waited_s = self.now - max(sub_batch.batch.submitted_at, worker.model_since)
            assert model == worker.model or waited_s <= self.SETTINGS.switch_delay_s

    # Clients

    def new_peer(self, kind: str) -> bytes:
        self.peer_count += 1
        return f"{kind}-{self.peer_count}".encode()

    @initialize()
    def first_peers_connect(self) -> None:
        self.a_client_opens_a_session()
        self.a_worker_registers(capacity=2, loaded=None)

    @precondition(lambda self: len(self.clients) < 3)
    @rule()
    def a_client_opens_a_session(self) -> None:
        peer = self.new_peer("client")
        self.clients[peer] = Client(self.now)
        self.send(peer, OPEN_SESSION)

    @precondition(lambda self: self.clients)
    @rule(
        data=st.data(),
        model=st.sampled_from([A, A, B, C]),
        are_poison=st.lists(st.sampled_from([False] * 7 + [True]), min_size=1, max_size=6),
    )
    def a_client_submits(self, data: st.DataObject, model: ModelSpec, are_poison: list[bool]) -> None:
        peer = data.draw(st.sampled_from(sorted(self.clients)))
        items = list(range(self.items, self.items + len(are_poison)))
        self.items += len(items)
        self.poison.update(item for item, is_poison in zip(items, are_poison, strict=True) if is_poison)
        batch = m.Submit(batch=items[0], model=model, work=rolling(*map(str, items)))
        self.clients[peer].batches[batch.batch] = Submitted(batch, items, set(items), self.now)
        self.send(peer, batch)

    @precondition(lambda self: any(client.batches for client in self.clients.values()))
    @rule(data=st.data())
    def a_client_submits_again(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(sorted(peer for peer in self.clients if self.clients[peer].batches)))
        number = data.draw(st.sampled_from(sorted(self.clients[peer].batches)))
        self.send(peer, self.clients[peer].batches[number].message)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), closes_session=st.booleans())
    def a_client_leaves(self, data: st.DataObject, closes_session: bool) -> None:
        peer = data.draw(st.sampled_from(sorted(self.clients)))
        del self.clients[peer]
        self.handle(Received(peer, m.CloseSession()) if closes_session else Unreachable(peer))

    # Workers

    @precondition(lambda self: len(self.workers) < 3)
    @rule(capacity=st.integers(1, 3), loaded=st.sampled_from([None, A, B]))
    def a_worker_registers(self, capacity: int, loaded: ModelSpec | None) -> None:
        self.register_as(self.new_peer("worker"), capacity, loaded)

    def register_as(self, peer: bytes, capacity: int, loaded: ModelSpec | None) -> None:
        self.workers[peer] = Worker(self.now, capacity, self.now, loaded)
        self.send(peer, register(capacity, loaded))

    def active_leases(self, *, complete: bool) -> list[tuple[bytes, ActiveLease]]:
        """Return the leases of all workers that are completely answered, or those that are not."""
        return [
            (peer, active)
            for peer, worker in self.workers.items()
            for active in worker.leases.values()
            if complete == (not active.unanswered)
        ]

    def send_answers(self, peer: bytes, active: ActiveLease, indices: list[int]) -> None:
        active.answered.update(indices)
        self.consecutive_crashes.pop(active.batch.message.model, None)
        self.send(peer, active.answer(indices))

    @precondition(lambda self: self.active_leases(complete=False))
    @rule(data=st.data())
    def a_worker_answers(self, data: st.DataObject) -> None:
        peer, active = data.draw(st.sampled_from(self.active_leases(complete=False)))
        self.send_answers(
            peer, active, data.draw(st.lists(st.sampled_from(active.unanswered), min_size=1, unique=True))
        )

    @precondition(lambda self: self.active_leases(complete=True))
    @rule(data=st.data())
    def a_worker_is_done(self, data: st.DataObject) -> None:
        peer, active = data.draw(st.sampled_from(self.active_leases(complete=True)))
        self.end_lease(peer, active)
        self.send(peer, m.LeaseDone(lease=active.lease.lease))

    @precondition(lambda self: self.active_leases(complete=False))
    @rule(data=st.data(), has_index=st.sampled_from([True, True, True, False]))
    def a_worker_fails(self, data: st.DataObject, has_index: bool) -> None:
        peer, active = data.draw(st.sampled_from(self.active_leases(complete=False)))
        index = data.draw(st.sampled_from(active.unanswered)) if has_index else None
        self.reported_failure = active.batch, None if index is None else active.items[index]
        self.end_lease(peer, active)
        self.send(peer, fail(active.lease, index))

    @precondition(lambda self: self.active_leases(complete=False))
    @rule(data=st.data())
    def a_worker_returns_a_lease(self, data: st.DataObject) -> None:
        peer, active = data.draw(st.sampled_from(self.active_leases(complete=False)))
        self.end_lease(peer, active)
        self.send(peer, m.LeaseReturned(lease=active.lease.lease))

    @precondition(lambda self: any(worker.running_lease for worker in self.workers.values()))
    @rule(data=st.data())
    def a_model_process_crashes(self, data: st.DataObject) -> None:
        self.crash_running_lease(
            data.draw(st.sampled_from(sorted(peer for peer, worker in self.workers.items() if worker.running_lease)))
        )

    def crash_running_lease(self, peer: bytes) -> None:
        """Crash the model process of a worker at its first lease; its agent reports that and returns the other leases."""
        worker = self.workers[peer]
        running_lease = worker.running_lease
        others = [active for active in worker.leases.values() if active is not running_lease]
        assert running_lease is not None
        self.end_lease(peer, running_lease)
        self.count_crash(running_lease)
        self.send(peer, crash(running_lease.lease))
        for active in others:
            if active.lease.lease in worker.leases:  # it may have been cancelled by then
                self.end_lease(peer, active)
                self.send(peer, m.LeaseReturned(lease=active.lease.lease))

    def count_crash(self, active: ActiveLease) -> None:
        self.last_crashed = [item for item in active.items if item in active.batch.open]
        self.crashes.update(self.last_crashed)
        if len(self.last_crashed) == 1:
            self.crashes_alone.update(self.last_crashed)
        self.consecutive_crashes[active.batch.message.model] += 1
        self.total_crashes += 1

    def end_lease(self, peer: bytes, active: ActiveLease) -> None:
        del self.workers[peer].leases[active.lease.lease]
        self.ended_leases.append((peer, active))

    def remove_worker(self, peer: bytes, *, is_crash: bool = True) -> None:
        """Remove a worker and end its leases, which the broker leases to another."""
        running_lease = self.workers[peer].running_lease
        for active in list(self.workers[peer].leases.values()):
            self.end_lease(peer, active)
        del self.workers[peer]
        if is_crash and running_lease is not None:
            self.count_crash(running_lease)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), how=st.sampled_from(["unreachable", "shutdown", "registers again", "drains"]))
    def a_worker_leaves(self, data: st.DataObject, how: str) -> None:
        peer = data.draw(st.sampled_from(sorted(self.workers)))
        worker = self.workers[peer]
        if how == "drains":
            worker.is_draining = True
            self.send(peer, m.DrainWorker())
            return
        self.remove_worker(peer, is_crash=how != "shutdown")
        match how:
            case "unreachable":
                assert self.handle(Unreachable(peer)) == []
            case "shutdown":
                assert self.handle(Received(peer, m.CloseWorker())) == []
            case "registers again":
                self.register_as(peer, worker.capacity, worker.model)

    # Invalid messages

    @precondition(lambda self: self.ended_leases)
    @rule(data=st.data())
    def a_late_answer_arrives(self, data: st.DataObject) -> None:
        peer, active = data.draw(st.sampled_from(self.ended_leases))
        before = self.answers.copy()
        refusals = self.handle(Received(peer, active.answer(range(len(active.items)))))
        if peer in self.workers:
            self.workers[peer].last_seen_at = self.now
            assert refusals == []
        else:
            assert [refusal.error.code for refusal in refusals] == [UnknownPeer.code]
        assert self.answers == before

    @precondition(
        lambda self: any(active.answered for worker in self.workers.values() for active in worker.leases.values())
    )
    @rule(data=st.data())
    def an_answer_arrives_twice(self, data: st.DataObject) -> None:
        leases = [
            (p, active) for p, worker in self.workers.items() for active in worker.leases.values() if active.answered
        ]
        peer, active = data.draw(st.sampled_from(leases))
        self.workers[peer].last_seen_at = self.now
        before = self.answers.copy()
        assert len(self.handle(Received(peer, active.answer(range(len(active.items)))))) == 1
        assert self.answers == before

    @rule(data=st.data())
    def a_peer_sends_garbage(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from([b"stranger", *sorted(self.clients), *sorted(self.workers)]))
        assert len(self.handle(Unreadable(peer, MalformedMessage("no message")))) == 1

    # Time

    @rule(data=st.data(), seconds=st.floats(0.5, 19))
    def time_passes(self, data: st.DataObject, seconds: float) -> None:
        """Advance the clock; all peers send a message except the silent ones."""
        peers = sorted({*self.clients, *self.workers})
        silent = data.draw(st.lists(st.sampled_from(peers), max_size=2)) if peers else []
        self.now += seconds
        for peer in peers:
            if peer not in silent:
                self.send(peer, m.Ping() if peer in self.clients else m.Heartbeat(phase="ready"))
        self.tick()

    def tick(self) -> None:
        for peer, client in list(self.clients.items()):
            if self.now - client.last_seen_at > self.SETTINGS.client_timeout_s:
                del self.clients[peer]
        for peer, worker in list(self.workers.items()):
            if self.now - worker.last_seen_at > self.SETTINGS.worker_timeout_s:
                self.remove_worker(peer)
        assert self.handle(Tick()) == []

    @rule(seconds=st.floats(30, 1e5))
    def the_broker_is_stopped_for_a_while(self, seconds: float) -> None:
        self.now += seconds
        for client in self.clients.values():
            client.last_seen_at += seconds
        for worker in self.workers.values():
            worker.last_seen_at += seconds
        assert self.handle(Tick(stall_s=seconds)) == []

    @precondition(lambda self: sum(len(client.batches) for client in self.clients.values()) > 2)
    @rule()
    def all_workers_run_until_everything_is_settled(self) -> None:
        """Crash at poison only: every other item is answered, unless it crashed too often before."""
        if not any(not worker.is_draining for worker in self.workers.values()):
            self.register_as(self.new_peer("worker"), 1, None)
        open_before = [item for client in self.clients.values() for b in client.batches.values() for item in b.open]
        while any(client.batches for client in self.clients.values()):
            assert any(worker.leases for worker in self.workers.values()), "items wait although all workers are idle"
            for peer, worker in self.workers.items():
                for active in list(worker.leases.values()):
                    if active.lease.lease in worker.leases:
                        self.run_lease(peer, active)
        for peer, worker in self.workers.items():
            for active in list(worker.leases.values()):
                self.end_lease(peer, active)
                self.send(peer, m.LeaseDone(lease=active.lease.lease))
        failed_early = {code for item in open_before if (code := self.failed.get(item)) and item not in self.poison}
        assert not failed_early or failed_early == {ModelProcessDied.code}
        innocent = [item for item in open_before if item not in self.poison]
        if not self.has_failed_batch:
            assert all(self.answers[item] == 1 for item in innocent)

    @property
    def has_failed_batch(self) -> bool:
        """Whether a whole batch failed after too many crashes in a row."""
        return any(item in self.failed for item in range(self.items) if item not in self.poison)

    def run_lease(self, peer: bytes, active: ActiveLease) -> None:
        harmless = [i for i in active.unanswered if active.items[i] not in self.poison]
        if active.unanswered and active is self.workers[peer].running_lease and len(harmless) < len(active.unanswered):
            self.crash_running_lease(peer)
        elif harmless and len(harmless) == len(active.unanswered):
            self.send_answers(peer, active, harmless)
            self.end_lease(peer, active)
            self.send(peer, m.LeaseDone(lease=active.lease.lease))
        elif not active.unanswered:
            self.end_lease(peer, active)
            self.send(peer, m.LeaseDone(lease=active.lease.lease))

    # Invariants

    @invariant()
    def every_open_item_is_queued_or_leased_to_at_most_two_workers(self) -> None:
        waiting: Counter[int] = Counter()
        leased: Counter[int] = Counter()
        numbers = {id(b.message): b for client in self.clients.values() for b in client.batches.values()}
        by_number = {
            (peer, number): batch for peer, client in self.clients.items() for number, batch in client.batches.items()
        }
        for sub_batch in self.broker.waiting:
            batch = by_number[sub_batch.batch.client, sub_batch.batch.number]
            waiting.update(batch.items[i] for i in sub_batch.items if i not in sub_batch.batch.settled)
        for worker in self.workers.values():
            for active in worker.leases.values():
                if id(active.batch.message) in numbers:
                    leased.update(item for item in active.items if item in active.batch.open)
        open_items = {item for client in self.clients.values() for b in client.batches.values() for item in b.open}
        assert waiting.keys() | leased.keys() == open_items
        assert waiting.keys().isdisjoint(leased)
        assert all(count == 1 for count in waiting.values())
        assert all(count <= 2 for count in leased.values())

    @invariant()
    def no_item_is_answered_twice_or_both_answered_and_failed(self) -> None:
        assert all(count == 1 for count in self.answers.values())
        assert self.failed.keys().isdisjoint(self.answers)

    @invariant()
    def limits_hold(self) -> None:
        assert all(len(worker.leases) <= worker.capacity for worker in self.workers.values())
        assert all(len(client.batches) <= self.SETTINGS.max_batches_per_client for client in self.clients.values())

    @invariant()
    def no_worker_holds_leases_of_two_models(self) -> None:
        for worker in self.workers.values():
            assert len({active.lease.model for active in worker.leases.values()}) <= 1


TestBrokerUnderStress = BrokerUnderStress.TestCase
TestBrokerUnderStress.settings = settings(deadline=None, max_examples=200, stateful_step_count=50)
