"""The broker under whatever Hypothesis thinks of."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from birdie_zmq.broker.core import BrokerCore
from birdie_zmq.broker.events import Event, Received, Send, Tick, Unreachable, Unreadable
from birdie_zmq.errors import (
    MalformedMessage,
    ModelCallError,
    ModelProcessDied,
    ProtocolError,
    UnknownPeer,
    WorkerUnavailable,
)
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ModelSpec, RollingScores, RollingWork
from tests.broker.harness import GREETING, A, B, C, FromPeer, crash, fail, register, texts_of


@dataclass(eq=False)
class Submitted:
    """A batch as its client sees it: its items are numbers of the whole run, and each item's score is its number."""

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
        where = np.array(list(indices), np.int32)
        scores = np.array([self.items[i] for i in where], np.float64)
        answers = RollingScores(loglikelihoods=scores)
        return m.LeaseAnswered(lease=self.lease.lease, indices=where, answers=answers)


@dataclass(eq=False)
class Client:
    seen_at: float
    batches: dict[int, Submitted] = field(default_factory=dict)


@dataclass(eq=False)
class Worker:
    seen_at: float
    capacity: int
    model_since: float = 0.0
    model: ModelSpec | None = None
    drains: bool = False
    leases: dict[int, ActiveLease] = field(default_factory=dict)

    @property
    def at_work(self) -> ActiveLease | None:
        """The first lease that is not answered: what it loses when it dies."""
        return next((held for held in self.leases.values() if held.unanswered), None)


class BrokerUnderStress(RuleBasedStateMachine):
    """A broker among clients and workers that come, go, fall silent, die, and say the wrong thing.

    Clients keep the items that are neither answered nor failed, workers the leases that they hold; what the broker says
    is checked against both. Some requests are poison: when everybody behaves, they alone kill what computes them.
    """

    SETTINGS = BrokerSettings(
        client_timeout_s=30,
        worker_timeout_s=20,
        switch_delay_s=15,
        max_losses=3,
        max_losses_in_a_row=10,
        max_batches_per_client=5,
        max_refusals_in_a_row=1_000_000,  # here each refusal is looked for; tests/broker/test_rate_limits.py bounds them
    )

    def __init__(self) -> None:
        super().__init__()
        self.broker = BrokerCore(self.SETTINGS)
        self.now = 0.0
        self.clients: dict[bytes, Client] = {}
        self.workers: dict[bytes, Worker] = {}
        self.past: list[tuple[bytes, ActiveLease]] = []
        self.peers = 0
        self.items = 0
        self.poison: set[int] = set()
        self.answers: Counter[int] = Counter()
        self.failed: dict[int, str] = {}
        self.losses: Counter[int] = Counter()
        self.losses_alone: Counter[int] = Counter()
        self.losses_in_a_row: Counter[ModelSpec] = Counter()
        self.all_losses = self.switches = 0
        self.lost: list[int] = []
        self.fault: tuple[Submitted, int | None] | None = None
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
            case m.SessionOpened():
                assert peer in self.clients
            case m.Notice():
                assert message.batch in self.clients[peer].batches
            case m.WorkerRegistered():
                assert peer in self.workers
            case m.Pong():
                assert message == m.Pong(
                    workers=len(self.workers), model_switches=self.switches, retries=self.all_losses
                )
            case m.Answered():
                self.client_is_answered(peer, message)
            case m.ItemFailed():
                self.client_loses_an_item(peer, message)
            case m.BatchFailed():
                self.client_loses_a_batch(peer, message)
            case m.Lease():
                self.worker_is_given(peer, message)
            case m.CancelLease(lease=lease):
                is_first = next(iter(self.workers[peer].leases)) == lease
                held = self.workers[peer].leases.pop(lease)
                is_open = self.is_wanted(held.batch) and not held.batch.open.isdisjoint(held.items)
                assert not is_open or not is_first, "a worker was at it"
                self.past.append((peer, held))
            case m.Refusal():
                self.refusals.append(message)

    def is_wanted(self, batch: Submitted) -> bool:
        return any(batch in client.batches.values() for client in self.clients.values())

    def settle(self, peer: bytes, batch: Submitted, item: int) -> None:
        batch.open.remove(item)
        if not batch.open:
            del self.clients[peer].batches[batch.message.batch]

    def client_is_answered(self, peer: bytes, message: m.Answered) -> None:
        batch = self.clients[peer].batches[message.batch]
        assert isinstance(message.answers, RollingScores)
        for index, score in zip(message.indices.tolist(), message.answers.loglikelihoods.tolist(), strict=True):
            item = batch.items[index]
            assert score == item
            self.answers[item] += 1
            self.settle(peer, batch, item)

    def client_loses_an_item(self, peer: bytes, message: m.ItemFailed) -> None:
        batch = self.clients[peer].batches[message.batch]
        item = batch.items[message.index]
        if message.error.code == ModelCallError.code:
            assert self.fault == (batch, item)
        else:
            assert message.error.code in (ModelProcessDied.code, WorkerUnavailable.code)
            assert self.lost == [item], "it was given up for what it did not do alone"
            assert self.losses[item] >= self.SETTINGS.max_losses
            assert self.losses_alone[item] >= 2
        self.failed[item] = message.error.code
        self.settle(peer, batch, item)

    def client_loses_a_batch(self, peer: bytes, message: m.BatchFailed) -> None:
        batch = self.clients[peer].batches.pop(message.batch)
        match message.error.code:
            case ModelCallError.code:
                assert self.fault == (batch, None)
            case ProtocolError.code:
                assert len(self.clients[peer].batches) == self.SETTINGS.max_batches_per_client
            case code:
                assert code in (ModelProcessDied.code, WorkerUnavailable.code)
                assert self.losses_in_a_row.pop(batch.message.model) == self.SETTINGS.max_losses_in_a_row
        for item in batch.open:
            self.failed[item] = message.error.code
        batch.open.clear()

    def worker_is_given(self, peer: bytes, lease: m.Lease) -> None:
        worker = self.workers[peer]
        items = [int(text) for text in texts_of(lease)]
        assert items, "a lease of nothing"
        (batch,) = (b for client in self.clients.values() for b in client.batches.values() if items[0] in b.open)
        assert batch.open.issuperset(items)
        assert lease.model == batch.message.model
        assert not worker.drains
        assert lease.lease not in worker.leases
        if lease.model != worker.model:
            assert not worker.leases
            self.switches += worker.model is not None
            worker.model, worker.model_since = lease.model, self.now
        else:
            self.no_other_model_has_waited_too_long(worker)
        worker.leases[lease.lease] = ActiveLease(lease, batch, items)
        suspected = [held for held in worker.leases.values() if any(self.losses[item] for item in held.items)]
        assert not suspected or len(worker.leases) == 1, "a suspect has company"

    def no_other_model_has_waited_too_long(self, worker: Worker) -> None:
        heads = [queue[0] for model, queue in self.broker._queues._waiting.items() if model != worker.model]
        for part in heads:
            assert self.now - max(part.batch.submitted_at, worker.model_since) <= self.SETTINGS.switch_delay_s

    # Clients

    def new_peer(self, kind: str) -> bytes:
        self.peers += 1
        return f"{kind}-{self.peers}".encode()

    @initialize()
    def somebody_is_there(self) -> None:
        self.a_client_greets()
        self.a_worker_registers(capacity=2, loaded=None)

    @precondition(lambda self: len(self.clients) < 3)
    @rule()
    def a_client_greets(self) -> None:
        peer = self.new_peer("client")
        self.clients[peer] = Client(self.now)
        self.says(peer, GREETING)

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
        work = RollingWork(texts=[str(item) for item in items])
        batch = m.Submit(batch=items[0], model=model, work=work)
        self.clients[peer].batches[batch.batch] = Submitted(batch, items, set(items), self.now)
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
    @rule(capacity=st.integers(1, 3), loaded=st.sampled_from([None, A, B]))
    def a_worker_registers(self, capacity: int, loaded: ModelSpec | None) -> None:
        self.registers(self.new_peer("worker"), capacity, loaded)

    def registers(self, peer: bytes, capacity: int, loaded: ModelSpec | None) -> None:
        self.workers[peer] = Worker(self.now, capacity, self.now, loaded)
        self.says(peer, register(capacity, loaded))

    def held(self, *, complete: bool) -> list[tuple[bytes, ActiveLease]]:
        """The leases of all workers that have, or have not, answered every item."""
        return [
            (peer, held)
            for peer, worker in self.workers.items()
            for held in worker.leases.values()
            if complete == (not held.unanswered)
        ]

    def answers_items(self, peer: bytes, held: ActiveLease, indices: list[int]) -> None:
        held.answered.update(indices)
        self.losses_in_a_row.pop(held.batch.message.model, None)
        self.says(peer, held.answer(indices))

    @precondition(lambda self: self.held(complete=False))
    @rule(data=st.data())
    def a_worker_answers(self, data: st.DataObject) -> None:
        peer, held = data.draw(st.sampled_from(self.held(complete=False)))
        self.answers_items(peer, held, data.draw(st.lists(st.sampled_from(held.unanswered), min_size=1, unique=True)))

    @precondition(lambda self: self.held(complete=True))
    @rule(data=st.data())
    def a_worker_is_done(self, data: st.DataObject) -> None:
        peer, held = data.draw(st.sampled_from(self.held(complete=True)))
        self.ends(peer, held)
        self.says(peer, m.LeaseDone(lease=held.lease.lease))

    @precondition(lambda self: self.held(complete=False))
    @rule(data=st.data(), names_it=st.sampled_from([True, True, True, False]))
    def a_worker_fails(self, data: st.DataObject, names_it: bool) -> None:
        peer, held = data.draw(st.sampled_from(self.held(complete=False)))
        index = data.draw(st.sampled_from(held.unanswered)) if names_it else None
        self.fault = held.batch, None if index is None else held.items[index]
        self.ends(peer, held)
        self.says(peer, fail(held.lease, index))

    @precondition(lambda self: self.held(complete=False))
    @rule(data=st.data())
    def a_worker_gives_a_lease_back(self, data: st.DataObject) -> None:
        peer, held = data.draw(st.sampled_from(self.held(complete=False)))
        self.ends(peer, held)
        self.says(peer, m.LeaseReturned(lease=held.lease.lease))

    @precondition(lambda self: any(worker.at_work for worker in self.workers.values()))
    @rule(data=st.data())
    def a_model_process_dies(self, data: st.DataObject) -> None:
        self.dies(data.draw(st.sampled_from(sorted(peer for peer, worker in self.workers.items() if worker.at_work))))

    def dies(self, peer: bytes) -> None:
        """The model process of a worker dies at the first lease; its agent tells, and gives back the others."""
        worker = self.workers[peer]
        at_work = worker.at_work
        others = [held for held in worker.leases.values() if held is not at_work]
        assert at_work is not None
        self.ends(peer, at_work)
        self.counts_loss(at_work)
        self.says(peer, crash(at_work.lease))
        for held in others:
            if held.lease.lease in worker.leases:  # it may have been cancelled by then
                self.ends(peer, held)
                self.says(peer, m.LeaseReturned(lease=held.lease.lease))

    def counts_loss(self, held: ActiveLease) -> None:
        self.lost = [item for item in held.items if item in held.batch.open]
        self.losses.update(self.lost)
        if len(self.lost) == 1:
            self.losses_alone.update(self.lost)
        self.losses_in_a_row[held.batch.message.model] += 1
        self.all_losses += 1

    def ends(self, peer: bytes, held: ActiveLease) -> None:
        del self.workers[peer].leases[held.lease.lease]
        self.past.append((peer, held))

    def is_lost(self, peer: bytes, *, counts: bool = True) -> None:
        """A worker is gone from now on, and whatever it holds is to be given to another."""
        at_work = self.workers[peer].at_work
        for held in list(self.workers[peer].leases.values()):
            self.ends(peer, held)
        del self.workers[peer]
        if counts and at_work is not None:
            self.counts_loss(at_work)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), how=st.sampled_from(["unreachable", "goodbye", "registers again", "drains"]))
    def a_worker_leaves(self, data: st.DataObject, how: str) -> None:
        peer = data.draw(st.sampled_from(sorted(self.workers)))
        worker = self.workers[peer]
        if how == "drains":
            worker.drains = True
            self.says(peer, m.DrainWorker())
            return
        self.is_lost(peer, counts=how != "goodbye")
        match how:
            case "unreachable":
                assert self.happens(Unreachable(peer)) == []
            case "goodbye":
                assert self.happens(Received(peer, m.CloseWorker())) == []
            case "registers again":
                self.registers(peer, worker.capacity, worker.model)

    # What should not be said

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def an_answer_comes_late(self, data: st.DataObject) -> None:
        peer, held = data.draw(st.sampled_from(self.past))
        before = self.answers.copy()
        refusals = self.happens(Received(peer, held.answer(range(len(held.items)))))
        if peer in self.workers:
            self.workers[peer].seen_at = self.now
            assert refusals == []
        else:
            assert [refusal.error.code for refusal in refusals] == [UnknownPeer.code]
        assert self.answers == before

    @precondition(
        lambda self: any(held.answered for worker in self.workers.values() for held in worker.leases.values())
    )
    @rule(data=st.data())
    def an_answer_comes_twice(self, data: st.DataObject) -> None:
        leases = [(p, held) for p, worker in self.workers.items() for held in worker.leases.values() if held.answered]
        peer, held = data.draw(st.sampled_from(leases))
        self.workers[peer].seen_at = self.now
        before = self.answers.copy()
        assert len(self.happens(Received(peer, held.answer(range(len(held.items)))))) == 1
        assert self.answers == before

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

    @rule(seconds=st.floats(30, 1e5))
    def the_broker_itself_is_stopped_for_a_while(self, seconds: float) -> None:
        self.now += seconds
        for client in self.clients.values():
            client.seen_at += seconds
        for worker in self.workers.values():
            worker.seen_at += seconds
        assert self.happens(Tick(stall_s=seconds)) == []

    @precondition(lambda self: sum(len(client.batches) for client in self.clients.values()) > 2)
    @rule()
    def everybody_behaves_until_all_is_settled(self) -> None:
        """Only poison kills now; whatever is no poison is answered, unless it had been lost too often before."""
        if not any(not worker.drains for worker in self.workers.values()):
            self.registers(self.new_peer("worker"), 1, None)
        open_before = [item for client in self.clients.values() for b in client.batches.values() for item in b.open]
        while any(client.batches for client in self.clients.values()):
            assert any(worker.leases for worker in self.workers.values()), "work waits, and nobody has it"
            for peer, worker in self.workers.items():
                for held in list(worker.leases.values()):
                    if held.lease.lease in worker.leases:
                        self.behaves(peer, held)
        for peer, worker in self.workers.items():
            for held in list(worker.leases.values()):
                self.ends(peer, held)
                self.says(peer, m.LeaseDone(lease=held.lease.lease))
        cut_short = {code for item in open_before if (code := self.failed.get(item)) and item not in self.poison}
        assert not cut_short or cut_short == {ModelProcessDied.code}
        innocent = [item for item in open_before if item not in self.poison]
        if not self.gave_up:
            assert all(self.answers[item] == 1 for item in innocent)

    @property
    def gave_up(self) -> bool:
        """Whether a whole batch was given up, because everything that was tried died."""
        return any(item in self.failed for item in range(self.items) if item not in self.poison)

    def behaves(self, peer: bytes, held: ActiveLease) -> None:
        harmless = [i for i in held.unanswered if held.items[i] not in self.poison]
        if held.unanswered and held is self.workers[peer].at_work and len(harmless) < len(held.unanswered):
            self.dies(peer)
        elif harmless and len(harmless) == len(held.unanswered):
            self.answers_items(peer, held, harmless)
            self.ends(peer, held)
            self.says(peer, m.LeaseDone(lease=held.lease.lease))
        elif not held.unanswered:
            self.ends(peer, held)
            self.says(peer, m.LeaseDone(lease=held.lease.lease))

    # What always holds

    @invariant()
    def every_open_item_is_in_one_place_or_shared_by_two_workers(self) -> None:
        waiting: Counter[int] = Counter()
        leased: Counter[int] = Counter()
        numbers = {id(b.message): b for client in self.clients.values() for b in client.batches.values()}
        by_number = {
            (peer, number): batch for peer, client in self.clients.items() for number, batch in client.batches.items()
        }
        for part in self.broker._queues:
            batch = by_number[part.batch.client, part.batch.number]
            waiting.update(batch.items[i] for i in part.items if i not in part.batch.settled)
        for worker in self.workers.values():
            for held in worker.leases.values():
                if id(held.batch.message) in numbers:
                    leased.update(item for item in held.items if item in held.batch.open)
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
    def budgets_hold(self) -> None:
        assert all(len(worker.leases) <= worker.capacity for worker in self.workers.values())
        assert all(len(client.batches) <= self.SETTINGS.max_batches_per_client for client in self.clients.values())

    @invariant()
    def no_worker_holds_leases_of_two_models(self) -> None:
        for worker in self.workers.values():
            assert len({held.lease.model for held in worker.leases.values()}) <= 1


TestBrokerUnderStress = BrokerUnderStress.TestCase
TestBrokerUnderStress.settings = settings(deadline=None, max_examples=200, stateful_step_count=50)
