"""A broker with a clock that moves only when told to, among peers that say what a test has them say."""

from collections import defaultdict
from typing import TypeVar

import numpy as np

from birdie_zmq.broker.core import BrokerCore
from birdie_zmq.broker.events import Event, Log, Received, Send, Stop, Tick
from birdie_zmq.errors import BirdieError, ModelCallError, ModelProcessDied
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import ErrorReport, ModelSpec, RollingWork, Texts

T = TypeVar("T")
FromPeer = m.ClientMessage | m.WorkerMessage

CLIENT, OTHER_CLIENT = b"client", b"other-client"
WORKER, OTHER_WORKER = b"worker", b"other-worker"
A, B, C = (ModelSpec(tag=tag) for tag in "ABC")
GREETING = m.OpenSession(package_version="1.0")


class Room:
    """A broker, a clock that moves only when told to, and what each peer has heard."""

    def __init__(self, settings: BrokerSettings | None = None) -> None:
        self.settings = settings or BrokerSettings()
        self.broker = BrokerCore(self.settings)
        self.now = 1_000.0
        self.logged: list[str] = []
        self.stops = 0
        self._heard: defaultdict[bytes, list[object]] = defaultdict(list)

    def happens(self, event: Event) -> None:
        for action in self.broker.handle(event, self.now):
            match action:
                case Send(peer, message):
                    self._heard[peer].append(message)
                case Log(_, text):
                    self.logged.append(text)
                case Stop():
                    self.stops += 1

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

    def failed_items(self, client: bytes = CLIENT) -> list[tuple[int, int, BirdieError]]:
        """The items that a client heard are lost: batch, index, why."""
        heard = self.hears(client, m.ItemFailed)
        return [(failure.batch, failure.index, failure.error.to_error()) for failure in heard]

    def answers(self, client: bytes = CLIENT) -> list[tuple[int, list[int], list[str]]]:
        """The answers that a client has heard: batch, indices, texts."""
        heard = []
        for answered in self.hears(client, m.Answered):
            assert isinstance(answered.answers, Texts)
            heard.append((answered.batch, answered.indices.tolist(), answered.answers.texts))
        return heard


def submit(batch: int, model: ModelSpec = A, texts: str = "x") -> m.Submit:
    """A batch with one item a letter."""
    return m.Submit(batch=batch, model=model, work=RollingWork(texts=list(texts)))


def register(capacity: int = 1, model: ModelSpec | None = None) -> m.RegisterWorker:
    return m.RegisterWorker(
        package_version="1.0", engine="jax", host="here", process_id=7, capacity=capacity, model=model
    )


def answer(lease: m.Lease, *indices: int) -> m.LeaseAnswered:
    """An answer to some items of a lease, each of which is its letter in upper case."""
    texts = texts_of(lease)
    answers = Texts(texts=[texts[i].upper() for i in indices if 0 <= i < len(texts)])
    return m.LeaseAnswered(lease=lease.lease, indices=np.array(indices, np.int32), answers=answers)


def texts_of(lease: m.Lease) -> list[str]:
    assert isinstance(lease.work, RollingWork)
    return lease.work.texts


def finish(lease: m.Lease) -> tuple[m.LeaseAnswered, m.LeaseDone]:
    return answer(lease, *range(len(lease.work))), m.LeaseDone(lease=lease.lease)


def crash(lease: m.Lease) -> m.LeaseCrashed:
    error = ErrorReport(code=ModelProcessDied.code, message="it ended by SIGSEGV", traceback="line 7")
    return m.LeaseCrashed(lease=lease.lease, error=error)


def fail(lease: m.Lease, index: int | None = None) -> m.LeaseFailed:
    return m.LeaseFailed(lease=lease.lease, error=ErrorReport(code=ModelCallError.code, message="boom"), index=index)


def name_of(message: object) -> str:
    return type(message).__name__
