"""AgentCore under random event sequences by Hypothesis."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import encode
from birdie_zmq.protocol.packing import unpack_answers
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import ModelSpec
from birdie_zmq.worker.core import AgentCore
from birdie_zmq.worker.events import (
    Event,
    ForwardToBroker,
    ForwardToModel,
    LeaseCancelled,
    LeasesRevoked,
    ModelMessageReceived,
    ModelProcessExited,
    SendToBroker,
    SendToModel,
    StartModelProcess,
    StopModelProcess,
    Tick,
)
from tests.worker.harness import (
    LOAD_FAILED,
    LOADED,
    A,
    B,
    ToBroker,
    answer,
    decode,
    done,
    fail,
    prompts,
    received,
    texts_of,
)


@dataclass(eq=False)
class BrokerLease:
    """A lease at the broker, with its unanswered items."""

    lease: m.Lease
    unanswered: set[int]


@dataclass(eq=False)
class Process:
    """A model process with its queue of leases."""

    model: ModelSpec
    is_loaded: bool = False
    is_to_end: bool = False
    inbox: list[m.Lease] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)

    @property
    def unanswered(self) -> list[int]:
        """Return the items of the first lease that have no answer yet."""
        return [i for i in range(len(self.inbox[0].work)) if i not in self.answered] if self.inbox else []


class AgentUnderStress(RuleBasedStateMachine):
    """An AgentCore between model processes that die and a broker that restarts."""

    SETTINGS = AgentSettings(terminate_s=5, max_load_crashes=2, restart_delay_s=3, silence_s=1e6, loading_silence_s=1e6)

    def __init__(self) -> None:
        super().__init__()
        self.core = AgentCore(self.SETTINGS)
        self.now = 0.0
        self.outstanding: dict[int, BrokerLease] = {}
        self.process: Process | None = None
        self.leases = 0
        self.items = 0
        self.fault = ""
        self.at_work: str | None = None

    def handle(self, event: Event) -> None:
        for action in self.core.handle(event, self.now):
            match action:
                case StartModelProcess(model, _):
                    assert self.process is None
                    self.process = Process(model)
                case SendToModel(m.CancelLease(lease=number)):
                    assert self.process is not None
                    self.process.cancelled.add(number)
                case ForwardToModel(frame):
                    lease = decode(frame)
                    assert isinstance(lease, m.Lease)
                    assert self.process is not None
                    assert self.process.is_loaded
                    assert not self.process.is_to_end
                    assert lease.model == self.process.model
                    assert len(lease.work) > 0
                    self.process.inbox.append(lease)
                case StopModelProcess(kill=False):
                    assert self.process is not None
                    assert not self.process.is_to_end
                    inbox = [lease for lease in self.process.inbox if lease.lease not in self.process.cancelled]
                    at_work = {text for lease in inbox for text in texts_of(lease)}
                    assert all(at_work.isdisjoint(texts_of(work.lease)) for work in self.outstanding.values())
                    self.process.is_to_end = True
                case StopModelProcess(kill=True):
                    assert self.process is not None
                    assert self.process.is_to_end
                case SendToBroker(message):
                    self.check_broker_message(message)
                case ForwardToBroker(frame):
                    self.check_broker_message(decode(frame))

    def check_broker_message(self, message: ToBroker) -> None:
        assert not isinstance(message, m.DrainWorker)
        work = self.outstanding[message.lease]
        match message:
            case m.LeaseCrashed():
                assert work.unanswered
                assert self.at_work is None or self.at_work in texts_of(work.lease), (
                    "another lease than the running one is suspect"
                )
                del self.outstanding[message.lease]
            case m.LeaseReturned():
                assert work.unanswered
                del self.outstanding[message.lease]
            case m.LeaseAnswered():
                texts = unpack_answers("generate", message.answers)
                for index, text in zip(message.indices, texts, strict=True):
                    assert text == texts_of(work.lease)[index].upper()
                    work.unanswered.remove(index)
            case m.LeaseDone():
                assert not work.unanswered
                del self.outstanding[message.lease]
            case m.LeaseFailed():
                assert message.index is None or texts_of(work.lease)[message.index] == self.fault
                del self.outstanding[message.lease]

    # The broker

    @initialize()
    def first_lease(self) -> None:
        self.send_lease(A, 2)

    @precondition(lambda self: len(self.outstanding) < 3)
    @rule(model=st.sampled_from([A, B]), size=st.integers(1, 3))
    def send_lease(self, model: ModelSpec, size: int) -> None:
        self.leases += 1
        texts = [f"item-{self.items + i}" for i in range(size)]
        self.items += size
        lease = m.Lease(lease=self.leases, attempt=1, model=model, work=prompts(texts))
        self.outstanding[lease.lease] = BrokerLease(lease, set(range(size)))
        self.handle(received(lease))

    # The model process

    def send_from_process(self, message: m.ModelProcessMessage) -> None:
        self.handle(ModelMessageReceived(message, encode(message)))

    @precondition(lambda self: self.process is not None and (self.process.inbox or not self.process.is_loaded))
    @rule(data=st.data())
    def run_process(self, data: st.DataObject) -> None:
        assert self.process is not None
        if self.process.is_loaded and self.process.unanswered:
            some = st.lists(st.sampled_from(self.process.unanswered), min_size=1, unique=True)
            self.step_process(self.process, data.draw(some))
        else:
            self.step_process(self.process, [])

    def step_process(self, process: Process, indices: list[int]) -> None:
        """Load the model, answer these items of the first lease, or finish it."""
        if not process.is_loaded:
            process.is_loaded = True
            self.send_from_process(LOADED)
        elif indices:
            process.answered.update(indices)
            self.send_from_process(answer(process.inbox[0], *indices))
        else:
            process.answered.clear()
            self.send_from_process(done(process.inbox.pop(0)))

    def exit_process(self) -> None:
        process = self.process
        assert process is not None
        expected_action = {text for work in self.outstanding.values() for text in texts_of(work.lease)}
        waiting = [text for lease in process.inbox for text in texts_of(lease) if text in expected_action]
        done_with = [texts_of(process.inbox[0])[i] for i in process.answered] if process.inbox else []
        self.at_work = next((text for text in waiting if text not in done_with), None)
        self.process = None
        self.handle(ModelProcessExited(-11))
        self.at_work = None

    # Both

    @rule(what=st.sampled_from(["a crash", "a failure", "a new broker", "a cancel"]))
    def inject_fault(self, what: str) -> None:
        process = self.process
        if what == "a new broker":
            self.outstanding.clear()
            self.leases += 1_000
            self.handle(LeasesRevoked())
        elif what == "a cancel":
            if self.outstanding:
                number = min(self.outstanding)
                del self.outstanding[number]
                self.handle(LeaseCancelled(number))
        elif process is None:
            pass
        elif what == "a crash":
            self.exit_process()
        elif not process.is_loaded:
            self.send_from_process(LOAD_FAILED)
            self.exit_process()
        elif process.unanswered:
            index = process.unanswered[0]
            self.fault = texts_of(process.inbox[0])[index]
            process.answered.clear()
            self.send_from_process(fail(process.inbox.pop(0), index))

    @rule(seconds=st.floats(0.1, 10))
    def advance_time(self, seconds: float) -> None:
        self.now += seconds
        self.handle(Tick())

    @precondition(lambda self: len(self.outstanding) > 1)
    @rule()
    def run_until_all_answered(self) -> None:
        while self.outstanding or (self.process is not None and self.process.inbox):
            process = self.process
            if process is None:
                self.advance_time(3.0)
            elif process.is_to_end:
                self.exit_process()
            else:
                assert process.inbox or not process.is_loaded, "the agent has lost a lease"
                self.step_process(process, process.unanswered)
        assert not self.outstanding

    # Invariants

    @invariant()
    def leases_imply_a_process_or_a_load_crash(self) -> None:
        assert self.process is not None or not self.outstanding or self.core._load_crashes

    @invariant()
    def heartbeat_matches_the_process(self) -> None:
        assert self.core.model == (None if self.process is None else self.process.model)
        phases = {"no model"} if self.process is None else {"loading", "ready", "ending"}
        assert self.core.phase in phases


TestAgentUnderStress = AgentUnderStress.TestCase
TestAgentUnderStress.settings = settings(deadline=None, max_examples=250, stateful_step_count=30)
