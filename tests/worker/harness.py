"""A harness for tests of AgentCore: a manual clock, leases, and messages of a model process."""

from collections.abc import Sequence

from birdie_zmq.errors import ModelCallError, UserModuleError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.items import PackedWork
from birdie_zmq.protocol.packing import pack_answers, pack_work, unpack_answers, unpack_work
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import Answer, ErrorReport, GenerateWork, GenerationParams, ModelSpec, RequestArgument
from birdie_zmq.worker.core import AgentCore
from birdie_zmq.worker.events import (
    Action,
    Event,
    ForwardToBroker,
    ForwardToModel,
    LeaseReceived,
    Log,
    ModelMessageReceived,
    ModelProcessExited,
    SendToBroker,
    Tick,
)

A, B = (ModelSpec(tag=tag) for tag in "AB")
decode = decoder(m.AgentMessage | m.WorkerMessage)
LOADED = m.ModelLoaded(seconds=1.5)
REPORT = ErrorReport(code=ModelCallError.code, message="boom", traceback="line 3")
LOAD_FAILED = m.ModelLoadFailed(
    error=ErrorReport(code=UserModuleError.code, message="no such user module", traceback="line 1")
)


class Harness:
    """An AgentCore with a fake clock, which records its log and notices."""

    def __init__(
        self,
        settings: AgentSettings | None = None,
        request_arguments: frozenset[RequestArgument] = frozenset(),
        *,
        swaps_weights: bool = False,
    ) -> None:
        self.settings = settings or AgentSettings()
        self.core = AgentCore(self.settings, request_arguments=request_arguments, swaps_weights=swaps_weights)
        self.now = 1_000.0
        self.logged: list[str] = []
        self.notices: list[m.LeaseNotice] = []

    def handle(self, event: Event) -> list[Action]:
        """Return the actions for an event, without log lines and notices, which are recorded."""
        actions: list[Action] = []
        for action in self.core.handle(event, self.now):
            match action:
                case Log(_, text):
                    self.logged.append(text)
                case SendToBroker(m.LeaseNotice() as notice):
                    self.notices.append(notice)
                case ForwardToBroker(frame) if isinstance(notice := decode(frame), m.LeaseNotice):
                    self.notices.append(notice)
                case _:
                    actions.append(action)
        return actions

    def receive_leases(self, *leases: m.Lease) -> list[Action]:
        return [action for lease in leases for action in self.handle(received(lease))]

    def from_model(self, *messages: m.ModelProcessMessage) -> list[Action]:
        return [
            action for message in messages for action in self.handle(ModelMessageReceived(message, encode(message)))
        ]

    def exit_process(self, returncode: int = -11, trace: str | None = None) -> list[Action]:
        return self.handle(ModelProcessExited(returncode, trace))

    def run_without_progress(self, seconds: float) -> list[Action]:
        """Advance the clock second by second while the process sends heartbeats and makes no progress."""
        actions: list[Action] = []
        for _ in range(round(seconds)):
            self.now += 1.0
            actions += self.from_model(m.ModelHeartbeat(steps=0)) + self.handle(Tick())
        return actions

    def advance(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.handle(Tick())

    def serve(self, *leases: m.Lease) -> list[m.Lease]:
        """Receive leases of one model, let a process load it, and return the leases that the process was sent."""
        self.receive_leases(*leases)
        return sent_leases(self.from_model(LOADED))


def received(lease: m.Lease) -> LeaseReceived:
    return LeaseReceived(lease, encode(lease))


def prompts(texts: Sequence[str]) -> PackedWork:
    return pack_work(GenerateWork(prompts=list(texts), settings=GenerationParams()))


def lease(number: int, model: ModelSpec = A, texts: str = "x") -> m.Lease:
    """Make a lease with one item per letter."""
    return m.Lease(lease=number, attempt=1, model=model, work=prompts(texts))


def texts_of(lease: m.Lease) -> list[str]:
    work = unpack_work(lease.work)
    assert isinstance(work, GenerateWork)
    return work.prompts


def answer(sent: m.Lease, *indices: int) -> m.LeaseAnswered:
    """Answer some items, each with its letter in upper case."""
    return answered(sent.lease, {i: texts_of(sent)[i].upper() for i in indices})


def answered(number: int, texts: dict[int, str]) -> m.LeaseAnswered:
    packed = pack_answers("generate", list(texts.values()))
    return m.LeaseAnswered(lease=number, indices=list(texts), answers=packed)


def done(sent: m.Lease) -> m.LeaseDone:
    return m.LeaseDone(lease=sent.lease)


def fail(sent: m.Lease, index: int | None = None) -> m.LeaseFailed:
    return m.LeaseFailed(lease=sent.lease, error=REPORT, index=index)


def sent_leases(actions: Sequence[Action]) -> list[m.Lease]:
    """Return the leases that the model process was sent."""
    messages = [decode(action.frame) for action in actions if isinstance(action, ForwardToModel)]
    return [message for message in messages if isinstance(message, m.Lease)]


ToBroker = m.LeaseMessage | m.LeaseCrashed | m.LeaseReturned | m.DrainWorker


def to_broker(actions: Sequence[Action]) -> list[ToBroker]:
    """Return the messages that the broker was sent, forwarded ones included."""
    return [
        action.message if isinstance(action, SendToBroker) else decode(action.frame)
        for action in actions
        if isinstance(action, SendToBroker | ForwardToBroker)
    ]


def answers(actions: Sequence[Action]) -> list[tuple[int, list[int], list[Answer]]]:
    """Return the answers that the broker was sent: lease, indices, texts."""
    return [
        (message.lease, message.indices, unpack_answers("generate", message.answers))
        for message in to_broker(actions)
        if isinstance(message, m.LeaseAnswered)
    ]


def crashes(actions: Sequence[Action]) -> list[m.LeaseCrashed]:
    return [message for message in to_broker(actions) if isinstance(message, m.LeaseCrashed)]


def absent(harness: Harness) -> None:
    pass


def loading(harness: Harness) -> None:
    harness.receive_leases(lease(1))


def idle(harness: Harness) -> None:
    (sent,) = harness.serve(lease(1))
    harness.from_model(done(sent))


def busy(harness: Harness) -> None:
    harness.serve(lease(1))


def ending(harness: Harness) -> None:
    idle(harness)
    harness.receive_leases(lease(2, B))
