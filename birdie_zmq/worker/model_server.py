"""The model process: it holds one model in its framework for as long as it lives, and ends with its agent.

Started by the agent with a connected socket. One thread listens, so that the socket is always read and the agent's
end is noticed at once; one beats, so that a process that is stopped or does not come on can be told from one that works;
another encodes the texts of the next lease; the main thread computes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import math
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from birdie_zmq.engine.distributed.leader import Leader
from birdie_zmq.engine.distributed.process_group import GROUP_ENDED, GroupBroken, RankInfo
from birdie_zmq.engine.evaluator import ItemFailed
from birdie_zmq.engine.progress_delta import ProgressReporter
from birdie_zmq.errors import BirdieError, InternalError, ProtocolError
from birdie_zmq.processes.parent_death import die_with_parent
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.types import Answers, ComputeCounters, ErrorReport, Level, ProgressDelta
from birdie_zmq.worker.channel import Channel
from birdie_zmq.worker.distributed.rendezvous import Rendezvous
from birdie_zmq.worker.engine_registry import DEFAULT, import_engine
from birdie_zmq.worker.model_loader import Group, ServedModel, load

logger = logging.getLogger(__name__)

_decode_from_agent = decoder(m.AgentMessage)


_BEAT_S = 1.0
_ADVANCE_S = 0.5
"""How far a lease has come is said so often, where nothing was answered."""

_MOST_DETAIL = 1_000
"""Characters; a list of shapes has no bound of its own."""


class _Cancelled(Exception):
    """Nobody waits any more for the lease that is being computed."""


class _Voice:
    """What the process says to its agent: whole messages, whichever thread says them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._steps = 0
        self.computed: Callable[[], ComputeCounters] = ComputeCounters

    def say(self, message: m.ModelProcessMessage) -> None:
        """Send a message."""
        with self._lock:
            self._channel.send(message)

    def step(self) -> None:
        """Something is computed."""
        self._steps += 1

    def beat(self) -> None:
        """Say for ever that the process is there, and how far it has come."""
        while True:
            self.say(m.ModelHeartbeat(steps=self._steps, computed=self.computed()))
            time.sleep(_BEAT_S)


class _LeaseListener:
    """Passes on what the evaluator says, under the number of the lease that it works on.

    Raises:
        _Cancelled: From any method, when the lease has been cancelled.
    """

    def __init__(self, voice: _Voice, lease: int, cancelled: set[int], advances: ProgressReporter) -> None:
        self._voice = voice
        self._lease = lease
        self._cancelled = cancelled
        self._advances = advances
        self._advanced_at = -math.inf

    def answered(self, indices: Sequence[int], answers: Answers) -> None:
        where = np.asarray(indices, dtype=np.int32)
        self._say(m.LeaseAnswered(lease=self._lease, indices=where, answers=answers, progress=self._advance()))

    def notice(self, level: Level, text: str) -> None:
        self._say(m.LeaseNotice(lease=self._lease, level=level, text=text, once=True))

    def compiling(self, detail: str) -> None:
        self._say(m.PhaseChanged(phase="compiling", detail=detail[:_MOST_DETAIL]))

    def running(self) -> None:
        self._say(m.PhaseChanged(phase="running"))

    def begin(self) -> None:
        self._voice.step()
        self._stop_if_cancelled()

    def step(self) -> None:
        self._voice.step()
        if time.monotonic() - self._advanced_at >= _ADVANCE_S:
            self._say(m.LeaseProgressed(lease=self._lease, progress=self._advance()))
        self._stop_if_cancelled()

    def _advance(self) -> ProgressDelta:
        self._advanced_at = time.monotonic()
        return self._advances.since_last()

    def _say(self, message: m.ModelProcessMessage) -> None:
        self._stop_if_cancelled()
        self._voice.say(message)

    def _stop_if_cancelled(self) -> None:
        if self._lease in self._cancelled:
            raise _Cancelled


def run(channel: Channel, engine: str, place: RankInfo | None = None) -> int:
    """Load the model that the agent names, then answer leases until the agent is gone; the exit status.

    The engine is imported here, once the process can say what went wrong with it. Where there is a place, this process
    leads a group of them.
    """
    inbox: queue.SimpleQueue[m.LoadModel | m.Lease] = queue.SimpleQueue()
    cancelled: set[int] = set()
    voice = _Voice(channel)
    threading.Thread(target=_listen, args=(channel, inbox, cancelled), daemon=True).start()
    threading.Thread(target=voice.beat, daemon=True).start()
    request = inbox.get()
    if not isinstance(request, m.LoadModel):
        raise InternalError(f"the first message to a model process was a {type(request).__name__}")
    began = time.monotonic()
    try:
        imported = import_engine(engine)
        loaded = load(request, imported, None if place is None else _gather(place, voice))
    except GroupBroken as broken:
        _end_group(broken)
    except BirdieError as error:
        voice.say(m.ModelLoadFailed(error=ErrorReport.of(error)))
        return _status(1, place)
    except Exception as error:  # noqa: BLE001 - whatever it is, the person at the prompt must hear of it
        voice.say(m.ModelLoadFailed(error=_internal(error)))
        return _status(1, place)
    voice.computed = lambda: loaded.evaluator.computed
    advances = ProgressReporter(loaded.evaluator)
    voice.say(m.ModelLoaded(seconds=time.monotonic() - began))
    ready: queue.Queue[_Ready] = queue.Queue(maxsize=1)
    threading.Thread(target=_encode_ahead, args=(loaded, inbox, ready), daemon=True).start()
    while True:
        if inbox.empty() and ready.empty():
            loaded.evaluator.rest()
        _answer(loaded, ready.get(), voice, cancelled, advances)


def _gather(place: RankInfo, voice: _Voice) -> Group:
    """Meet the other processes of the group that this one leads."""
    from birdie_zmq.engine.jax import distributed_runtime

    def give_up(error: BirdieError) -> NoReturn:
        voice.say(m.ModelLoadFailed(error=ErrorReport.of(error)))
        os._exit(1)

    def hear_of_refusal() -> None:
        try:
            error = leader.refusal()
        except GroupBroken as broken:
            _end_group(broken)
        if error is not None:
            give_up(error)

    coordinator = distributed_runtime.settle(place)
    with Rendezvous(place, coordinator, lambda text: voice.say(m.ModelNotice(level="info", text=text)), give_up):
        store = distributed_runtime.join(place, coordinator)
    leader = Leader(store, place)
    # Another process may be unable to load the model while this one waits for it in a step of loading.
    threading.Thread(target=hear_of_refusal, daemon=True).start()
    return Group(leader, place, distributed_runtime.device_count, distributed_runtime.is_of_runtime)


def _end_group(error: GroupBroken) -> NoReturn:
    """End this process, and so the group: the agent starts it anew, and what was at work is computed again."""
    logger.warning("the group of processes cannot go on: %s", (str(error).splitlines() or [""])[0])
    os._exit(GROUP_ENDED)


def _status(status: int, place: RankInfo | None) -> int:
    if place is not None:
        os._exit(status)  # A clean exit would wait for the others.
    return status


@dataclass(frozen=True)
class _Ready:
    """A lease whose texts are encoded already, where they are to be scored; or why they cannot be."""

    lease: m.Lease
    encoded: Any = None
    error: Exception | None = None


def _encode_ahead(
    loaded: ServedModel, inbox: queue.SimpleQueue[m.LoadModel | m.Lease], ready: queue.Queue[_Ready]
) -> None:
    """Encode the next lease while the main thread computes, unless it is for another model than this."""
    while True:
        lease = inbox.get()
        if not isinstance(lease, m.Lease):
            continue
        try:
            loaded.check(lease.identity)
            ready.put(_Ready(lease, encoded=loaded.evaluator.encode(lease.work)))
        except Exception as error:  # noqa: BLE001 - the main thread raises it again, and tells of it
            ready.put(_Ready(lease, error=error))


def _answer(loaded: ServedModel, ready: _Ready, voice: _Voice, cancelled: set[int], advances: ProgressReporter) -> None:
    lease = ready.lease
    listener = _LeaseListener(voice, lease.lease, cancelled, advances)
    try:
        listener.begin()
        if ready.error is not None:
            raise ready.error
        loaded.answer(lease.work, lease.limits, listener, ready.encoded)
    except _Cancelled:
        cancelled.discard(lease.lease)
    except GroupBroken as broken:
        _end_group(broken)
    except ItemFailed as failure:
        report = ErrorReport.of(failure.error)
        voice.say(m.LeaseFailed(lease=lease.lease, error=report, index=failure.index))
    except BirdieError as error:
        voice.say(m.LeaseFailed(lease=lease.lease, error=ErrorReport.of(error)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the person at the prompt must hear of it
        voice.say(m.LeaseFailed(lease=lease.lease, error=_internal(error)))
    else:
        voice.say(m.LeaseDone(lease=lease.lease))


def _internal(error: Exception) -> ErrorReport:
    # What the error says may repeat a text: that is in the traceback alone, which goes to the run and into no log.
    text = f"birdie-zmq failed in the model process, by {type(error).__name__}; the traceback says more"
    return ErrorReport.of(InternalError(text, remote_traceback="".join(traceback.format_exception(error))))


def _listen(channel: Channel, inbox: queue.SimpleQueue[m.LoadModel | m.Lease], cancelled: set[int]) -> None:
    with contextlib.suppress(ProtocolError):  # Whoever sends what is no message is not the agent that we were made by.
        while (messages := channel.receive()) is not None:
            for message in messages:
                if isinstance(message, m.CancelLease):
                    cancelled.add(message.lease)
                else:
                    inbox.put(message)
    # The agent is gone, and nobody is left to answer. A clean exit could wait for ever on compiled code.
    os._exit(0)


def main(arguments: Sequence[str], engine: str) -> int:
    """Run as a process of its own.

    Args:
        arguments: The descriptor of the connected socket, that of the file in which to write down what the process was
            at when a fault ends it, and the process id of the agent.
        engine: What computes, as `birdie_zmq.worker.engine_registry.find_engine` gives it.
    """
    descriptor, trace, agent = map(int, arguments)
    die_with_parent(agent)
    faulthandler.enable(trace, all_threads=False)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s model process %(process)d: %(message)s")
    channel = Channel(socket.socket(fileno=descriptor), _decode_from_agent)
    return run(channel, engine, RankInfo.of_environment(os.environ))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], os.environ.get(ENGINE_VARIABLE, DEFAULT)))
