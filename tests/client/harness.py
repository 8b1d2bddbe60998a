"""Helpers for tests of ClientCore: jobs, messages of a broker, and the actions that a test looks for."""

from __future__ import annotations

from collections.abc import Sequence

from birdie_zmq._version import __version__
from birdie_zmq.client.actions import Action, Deliver, FailCall, Send
from birdie_zmq.client.core import ClientCore
from birdie_zmq.client.job import Job
from birdie_zmq.errors import BirdieError, RequestError, UnknownPeer
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import encode
from birdie_zmq.protocol.packing import pack_answers, pack_work, unpack_work
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answer, ErrorReport, ModelSpec, RollingWork, StepLimits

ENDPOINT = "tcp://127.0.0.1:5555"
MODEL = ModelSpec(tag="demo", arguments='{"seed": 1}')
LIMITS = StepLimits(max_rows=8)
SETTINGS = ClientSettings(connect_s=5, worker_wait_s=60, ping_s=1, broker_timeout_s=30, window=2, max_failed_items=3)

OPEN_SESSION = Send(m.OpenSession(package_version=__version__))
OPENED = m.SessionOpened(package_version=__version__, timeout_s=30.0)
PING = Send(m.Ping())


def new_core() -> ClientCore:
    return ClientCore(MODEL, LIMITS, SETTINGS, ENDPOINT)


def job(*items: int) -> Job:
    """Return a job whose texts name the caller's items."""
    return Job(RollingWork(texts=[f"text {item}" for item in items]), list(items))


class Submission:
    """A Submit that is to be sent, compared by its frame: records with arrays cannot be compared."""

    def __init__(self, message: m.Submit) -> None:
        self._frame = encode(message)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Send) and encode(other.message) == self._frame

    __hash__ = None  # type: ignore[assignment]


def submit(batch: int, *items: int) -> Submission:
    return Submission(m.Submit(batch=batch, model=MODEL, work=pack_work(job(*items).work), limits=LIMITS))


def answered(batch: int, scores: dict[int, float]) -> m.Answered:
    """Return answers by their index in a batch."""
    return answered_in_order(batch, list(scores), list(scores.values()))


def answered_in_order(batch: int, indices: Sequence[int], scores: Sequence[float]) -> m.Answered:
    """Return answers whose indices may repeat, or not match the answers."""
    return m.Answered(batch=batch, indices=list(indices), answers=pack_answers("rolling", scores))


def batch_failed(batch: int) -> m.BatchFailed:
    return m.BatchFailed(batch=batch, error=ErrorReport.of(RequestError("no such model")))


def item_failed(batch: int, index: int) -> m.ItemFailed:
    return m.ItemFailed(batch=batch, index=index, error=ErrorReport.of(RequestError("too long")))


def refusal(error: BirdieError) -> m.Refusal:
    return m.Refusal(error=ErrorReport.of(error))


UNKNOWN_PEER = refusal(UnknownPeer("a Submit came before an OpenSession"))


def open_core(*jobs: Job, now: float = 0.0) -> ClientCore:
    """Return a core with an open session that has sent its first batches."""
    core = new_core()
    core.begin(jobs, now)
    core.received(OPENED, now)
    return core


def delivered(actions: Sequence[Action]) -> dict[int, Answer]:
    """Return the delivered answers, by the caller's numbers."""
    result: dict[int, Answer] = {}
    for action in actions:
        if isinstance(action, Deliver):
            for item, answer in zip(action.items, action.answers, strict=True):
                assert item not in result
                result[item] = answer
    return result


def sent(actions: Sequence[Action]) -> list[Send]:
    return [action for action in actions if isinstance(action, Send)]


def failure(actions: Sequence[Action]) -> FailCall:
    (fail,) = actions
    assert isinstance(fail, FailCall)
    return fail


def texts_of(message: m.Submit) -> list[str]:
    """Return the texts of a batch."""
    work = unpack_work(message.work)
    assert isinstance(work, RollingWork)
    return work.texts
