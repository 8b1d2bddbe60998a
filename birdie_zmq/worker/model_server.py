"""The model process: it holds one model in its framework until it exits, and it ends with its agent.

The agent starts it with a connected socket. Four threads work: one reads the socket at all times, so that the agent's end
is noticed at once; one sends heartbeats, so that the agent can tell a process that is stopped or makes no progress from a
working process; one encodes the texts of the next lease; the main thread computes.
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
from birdie_zmq.engine.distributed.process_group import GROUP_ENDED_EXIT_STATUS, ProcessGroupError, RankInfo
from birdie_zmq.engine.evaluator import ItemFailed
from birdie_zmq.engine.progress_reporter import ProgressReporter
from birdie_zmq.errors import BirdieError, InternalError, ProtocolError
from birdie_zmq.processes.parent_death import die_with_parent
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder
from birdie_zmq.protocol.packing import pack_answers, unpack_work
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.types import Answer, ComputeCounters, ErrorReport, Level, Work
from birdie_zmq.worker.channel import Channel
from birdie_zmq.worker.distributed.rendezvous import Rendezvous
from birdie_zmq.worker.engine_registry import DEFAULT, import_engine
from birdie_zmq.worker.model_loader import ProcessGroup, ServedModel, load

logger = logging.getLogger(__name__)

_decode_from_agent = decoder(m.AgentMessage)


_HEARTBEAT_S = 1.0
_PROGRESS_S = 0.5
"""Seconds between progress reports for a lease while it has no new answers."""

_MAX_DETAIL_CHARACTERS = 1_000
"""Maximum length of the detail of a phase, since a list of shapes is unbounded."""


class _Cancelled(Exception):
    """The lease that is being computed was cancelled."""


class _AgentConnection:
    """The sending side of the channel to the agent; thread-safe."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._steps = 0
        self.computed: Callable[[], ComputeCounters] = ComputeCounters

    def send(self, message: m.ModelProcessMessage) -> None:
        """Send a whole message."""
        with self._lock:
            self._channel.send(message)

    def count_step(self) -> None:
        """Count a step, which the next heartbeat reports as progress."""
        self._steps += 1

    def send_heartbeats(self) -> None:
        """Send heartbeats with the number of steps and the counters, for as long as the process runs."""
        while True:
            self.send(m.ModelHeartbeat(steps=self._steps, computed=self.computed()))
            time.sleep(_HEARTBEAT_S)


class _LeaseListener:
    """The evaluator's listener, which forwards answers, notices and progress to the agent for one lease.

    Raises:
        _Cancelled: From any method, when the lease has been cancelled.
    """

    def __init__(
        self, connection: _AgentConnection, lease: m.Lease, cancelled: set[int], progress: ProgressReporter
    ) -> None:
        self._connection = connection
        self._lease = lease.lease
        self._kind = lease.work.kind
        self._cancelled = cancelled
        self._progress = progress
        self._reported_at = -math.inf

    def answered(self, indices: Sequence[int], answers: Sequence[Answer]) -> None:
        where = np.asarray(indices, dtype=np.int32)
        self._send(m.LeaseAnswered(lease=self._lease, indices=where, answers=pack_answers(self._kind, answers)))

    def notice(self, level: Level, text: str) -> None:
        self._send(m.LeaseNotice(lease=self._lease, level=level, text=text, once=True))

    def compiling(self, detail: str) -> None:
        self._send(m.PhaseChanged(phase="compiling", detail=detail[:_MAX_DETAIL_CHARACTERS]))

    def running(self) -> None:
        self._send(m.PhaseChanged(phase="running"))

    def begin(self) -> None:
        self._connection.count_step()
        self._raise_if_cancelled()

    def step(self) -> None:
        self._connection.count_step()
        if time.monotonic() - self._reported_at >= _PROGRESS_S:
            self._reported_at = time.monotonic()
            self._send(m.LeaseProgressed(lease=self._lease, progress=self._progress.since_last()))
        self._raise_if_cancelled()

    def _send(self, message: m.ModelProcessMessage) -> None:
        self._raise_if_cancelled()
        self._connection.send(message)

    def _raise_if_cancelled(self) -> None:
        if self._lease in self._cancelled:
            raise _Cancelled


def run(channel: Channel, engine: str, rank: RankInfo | None = None) -> int:
    """Load the model that the agent names, then answer leases until the agent is gone; return the exit status.

    The engine is imported here, where the process can already report an error of the import to the agent.

    Args:
        channel: The channel to the agent.
        engine: The engine, as `birdie_zmq.worker.engine_registry.find_engine` returns it.
        rank: The rank of this process, which leads a process group; None where it holds the model alone.
    """
    inbox: queue.SimpleQueue[m.LoadModel | m.Lease] = queue.SimpleQueue()
    cancelled: set[int] = set()
    connection = _AgentConnection(channel)
    threading.Thread(target=_read_messages, args=(channel, inbox, cancelled), daemon=True).start()
    threading.Thread(target=connection.send_heartbeats, daemon=True).start()
    request = inbox.get()
    if not isinstance(request, m.LoadModel):
        raise InternalError(f"the first message to a model process was a {type(request).__name__}, not LoadModel")
    began = time.monotonic()
    try:
        imported = import_engine(engine)
        served = load(request, imported, None if rank is None else _join_process_group(rank, connection))
    except ProcessGroupError as broken:
        _exit_group(broken)
    except BirdieError as error:
        connection.send(m.ModelLoadFailed(error=ErrorReport.of(error)))
        return _exit_status(1, rank)
    except Exception as error:  # noqa: BLE001 - any error must reach the user
        connection.send(m.ModelLoadFailed(error=_internal_error(error)))
        return _exit_status(1, rank)
    connection.computed = lambda: served.evaluator.computed
    progress = ProgressReporter(served.evaluator)
    connection.send(m.ModelLoaded(seconds=time.monotonic() - began))
    encoded: queue.Queue[_EncodedLease] = queue.Queue(maxsize=1)
    threading.Thread(target=_encode_leases, args=(served, inbox, encoded), daemon=True).start()
    while True:
        if inbox.empty() and encoded.empty():
            served.evaluator.pause_idle_clock()
        _answer(served, encoded.get(), connection, cancelled, progress)


def _join_process_group(rank: RankInfo, connection: _AgentConnection) -> ProcessGroup:
    """Wait for the follower ranks of the process group that this process leads, and connect to them."""
    from birdie_zmq.engine.jax import distributed_runtime

    def fail(error: BirdieError) -> NoReturn:
        connection.send(m.ModelLoadFailed(error=ErrorReport.of(error)))
        os._exit(1)

    def wait_for_refusal() -> None:
        try:
            error = leader.wait_for_load_failure()
        except ProcessGroupError as broken:
            _exit_group(broken)
        if error is not None:
            fail(error)

    coordinator = distributed_runtime.resolve_coordinator(rank)
    with Rendezvous(rank, coordinator, lambda text: connection.send(m.ModelNotice(level="info", text=text)), fail):
        store = distributed_runtime.join(rank, coordinator)
    leader = Leader(store, rank)
    # A follower rank may fail to load the model while this process waits for it in a collective step of loading.
    threading.Thread(target=wait_for_refusal, daemon=True).start()
    return ProcessGroup(leader, rank, distributed_runtime.device_count, distributed_runtime.is_runtime_error)


def _exit_group(error: ProcessGroupError) -> NoReturn:
    """Exit this process, which ends the process group: the agent restarts it, and the running lease is computed again."""
    logger.warning("the process group cannot continue: %s", (str(error).splitlines() or [""])[0])
    os._exit(GROUP_ENDED_EXIT_STATUS)


def _exit_status(status: int, rank: RankInfo | None) -> int:
    if rank is not None:
        os._exit(status)  # A clean exit would wait for the other ranks.
    return status


@dataclass(frozen=True)
class _EncodedLease:
    """A lease with its encoded texts, if they are to be scored, or the error of encoding them."""

    lease: m.Lease
    work: Work | None = None
    encoded: Any = None
    error: Exception | None = None


def _encode_leases(
    served: ServedModel, inbox: queue.SimpleQueue[m.LoadModel | m.Lease], encoded: queue.Queue[_EncodedLease]
) -> None:
    """Encode the next lease while the main thread computes, after checking that it is for this model."""
    while True:
        lease = inbox.get()
        if not isinstance(lease, m.Lease):
            continue
        try:
            served.check(lease.identity)
            work = unpack_work(lease.work)
            encoded.put(_EncodedLease(lease, work, served.evaluator.encode(work)))
        except Exception as error:  # noqa: BLE001 - the main thread raises it again and reports it
            encoded.put(_EncodedLease(lease, error=error))


def _answer(
    served: ServedModel,
    encoded: _EncodedLease,
    connection: _AgentConnection,
    cancelled: set[int],
    progress: ProgressReporter,
) -> None:
    lease = encoded.lease
    listener = _LeaseListener(connection, lease, cancelled, progress)
    try:
        listener.begin()
        if encoded.error is not None:
            raise encoded.error
        assert encoded.work is not None
        served.answer(encoded.work, lease.limits, listener, encoded.encoded)
    except _Cancelled:
        cancelled.discard(lease.lease)
    except ProcessGroupError as broken:
        _exit_group(broken)
    except ItemFailed as failure:
        report = ErrorReport.of(failure.error)
        connection.send(m.LeaseFailed(lease=lease.lease, error=report, index=failure.index))
    except BirdieError as error:
        connection.send(m.LeaseFailed(lease=lease.lease, error=ErrorReport.of(error)))
    except Exception as error:  # noqa: BLE001 - any error must reach the user
        connection.send(m.LeaseFailed(lease=lease.lease, error=_internal_error(error)))
    else:
        connection.send(m.LeaseDone(lease=lease.lease))


def _internal_error(error: Exception) -> ErrorReport:
    # The error's message may quote a text of a request, so it is in the traceback only, which goes to the run and no log.
    text = f"birdie-zmq failed in the model process with {type(error).__name__}; see the traceback"
    return ErrorReport.of(InternalError(text, remote_traceback="".join(traceback.format_exception(error))))


def _read_messages(channel: Channel, inbox: queue.SimpleQueue[m.LoadModel | m.Lease], cancelled: set[int]) -> None:
    with contextlib.suppress(ProtocolError):  # A peer that sends malformed messages is not this process's agent.
        while (messages := channel.receive()) is not None:
            for message, _ in messages:
                if isinstance(message, m.CancelLease):
                    cancelled.add(message.lease)
                else:
                    inbox.put(message)
    # The agent is gone, so nobody reads the answers. A clean exit could wait forever on compiled code.
    os._exit(0)


def main(arguments: Sequence[str], engine: str) -> int:
    """Run the model server as a process of its own, and return the exit status.

    Args:
        arguments: The descriptor of the connected socket, the descriptor of the file to which faulthandler writes a
            traceback when a fault ends the process, and the process id of the agent.
        engine: The engine, as `birdie_zmq.worker.engine_registry.find_engine` returns it.
    """
    descriptor, trace, agent = map(int, arguments)
    die_with_parent(agent)
    faulthandler.enable(trace, all_threads=False)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s model process %(process)d: %(message)s")
    channel = Channel(socket.socket(fileno=descriptor), _decode_from_agent)
    return run(channel, engine, RankInfo.from_environment(os.environ))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], os.environ.get(ENGINE_VARIABLE, DEFAULT)))
