"""A harness for tests of the broker core: a manual clock, and peers whose messages a test sends."""

from collections import defaultdict
from collections.abc import Collection
from typing import TypeVar

from birdie_zmq.broker.core import BrokerCore
from birdie_zmq.broker.events import Event, Log, Received, Send, Stop, Tick
from birdie_zmq.errors import BirdieError, ModelCallError, ModelProcessDied
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.items import PackedAnswers, PackedWork
from birdie_zmq.protocol.packing import pack_answers, pack_work, unpack_answers, unpack_work
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ErrorReport, ModelSpec, RequestArgument, RollingWork

T = TypeVar("T")
FromPeer = m.ClientMessage | m.WorkerMessage

CLIENT, OTHER_CLIENT = b"client", b"other-client"
WORKER, OTHER_WORKER = b"worker", b"other-worker"
A, B, C = (ModelSpec(tag=tag) for tag in "ABC")
OPEN_SESSION = m.OpenSession(package_version="1.0")


class BrokerHarness:
    """A broker core with a manual clock, and the messages that each peer has received."""

    def __init__(self, settings: BrokerSettings | None = None) -> None:
        self.settings = settings or BrokerSettings()
        self.broker = BrokerCore(self.settings)
        self.now = 1_000.0
        self.log_lines: list[str] = []
        self.stop_count = 0
        self._received: defaultdict[bytes, list[object]] = defaultdict(list)

    def handle(self, event: Event) -> None:
        for action in self.broker.handle(event, self.now):
            match action:
                case Send(peer, message):
                    self._received[peer].append(message)
                case Log(_, text):
                    self.log_lines.append(text)
                case Stop():
                    self.stop_count += 1

    def send(self, peer: bytes, *messages: FromPeer) -> None:
        for message in messages:
            self.handle(Received(peer, message))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.handle(Tick())

    def received(self, peer: bytes, kind: type[T]) -> list[T]:
        """Take the messages of one kind that a peer has received since the last call."""
        received = [message for message in self._received[peer] if isinstance(message, kind)]
        self._received[peer] = [message for message in self._received[peer] if not isinstance(message, kind)]
        return received

    def leases(self, worker: bytes = WORKER) -> list[m.Lease]:
        return self.received(worker, m.Lease)

    def lease(self, worker: bytes = WORKER) -> m.Lease:
        """Take the one lease that a worker was granted."""
        (lease,) = self.leases(worker)
        return lease

    def refusal_type(self, peer: bytes) -> type[BirdieError]:
        """Take the one refusal of a peer, and return the class of its error."""
        (refusal,) = self.received(peer, m.Refusal)
        return type(refusal.error.to_error())

    def batch_failure(self, client: bytes = CLIENT) -> tuple[int, BirdieError]:
        """Take the one failed batch of a client: its number and the error."""
        (failure,) = self.received(client, m.BatchFailed)
        return failure.batch, failure.error.to_error()

    def item_failures(self, client: bytes = CLIENT) -> list[tuple[int, int, BirdieError]]:
        """Take the failed items of a client: batch, index and error of each."""
        received = self.received(client, m.ItemFailed)
        return [(failure.batch, failure.index, failure.error.to_error()) for failure in received]

    def answers(self, client: bytes = CLIENT) -> list[tuple[int, list[int], list[str]]]:
        """Take the answers of a client: batch, indices and texts of each message."""
        received = []
        for answered in self.received(client, m.Answered):
            texts = [str(text) for text in unpack_answers("generate", answered.answers)]
            received.append((answered.batch, answered.indices, texts))
        return received


def rolling(*texts: str) -> PackedWork:
    """Make work of some texts."""
    return pack_work(RollingWork(texts=list(texts)))


def text_answers(*texts: str) -> PackedAnswers:
    """Make answers that are texts; the broker does not decode them, so they may answer any kind of work."""
    return pack_answers("generate", texts)


def submit(batch: int, model: ModelSpec = A, texts: str = "x") -> m.Submit:
    """Make a batch with one item per letter."""
    return m.Submit(batch=batch, model=model, work=rolling(*texts))


def register(
    capacity: int = 1, model: ModelSpec | None = None, request_arguments: Collection[RequestArgument] = ()
) -> m.RegisterWorker:
    return m.RegisterWorker(
        package_version="1.0",
        engine="jax",
        host="here",
        process_id=7,
        capacity=capacity,
        model=model,
        request_arguments=tuple(request_arguments),
    )


def answer(lease: m.Lease, *indices: int) -> m.LeaseAnswered:
    """Make answers to some items of a lease: the letter of each in upper case."""
    texts = texts_of(lease)
    answers = text_answers(*(texts[i].upper() for i in indices if 0 <= i < len(texts)))
    return m.LeaseAnswered(lease=lease.lease, indices=list(indices), answers=answers)


def texts_of(lease: m.Lease) -> list[str]:
    work = unpack_work(lease.work)
    assert isinstance(work, RollingWork)
    return work.texts


def finish(lease: m.Lease) -> tuple[m.LeaseAnswered, m.LeaseDone]:
    return answer(lease, *range(len(lease.work))), m.LeaseDone(lease=lease.lease)


def crash(lease: m.Lease) -> m.LeaseCrashed:
    error = ErrorReport(code=ModelProcessDied.code, message="it ended by SIGSEGV", traceback="line 7")
    return m.LeaseCrashed(lease=lease.lease, error=error)


def fail(lease: m.Lease, index: int | None = None) -> m.LeaseFailed:
    return m.LeaseFailed(lease=lease.lease, error=ErrorReport(code=ModelCallError.code, message="boom"), index=index)


def name_of(message: object) -> str:
    return type(message).__name__
