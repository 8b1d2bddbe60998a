"""The model process: it holds one model in JAX for as long as it lives, and ends with its agent.

Started by the agent with a connected socket. One thread listens, so that the socket is always read and the agent's
end is noticed at once; another encodes the texts of the next lease; the main thread computes and speaks.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from birdie_zmq.engine.evaluator import Evaluator, ItemFailed
from birdie_zmq.errors import BirdieError, InternalError
from birdie_zmq.lifeline import die_with_parent
from birdie_zmq.wire import messages as m
from birdie_zmq.wire.codec import decoder
from birdie_zmq.worker.channel import Channel
from birdie_zmq.worker.loading import Loaded, MakeBackend, load

_decode_from_agent = decoder(m.AgentMessage)


class _LeaseListener:
    """Passes on what the evaluator says, under the number of the lease that it works on."""

    def __init__(self, channel: Channel, lease: int) -> None:
        self._channel = channel
        self._lease = lease

    def answered(self, indices: Sequence[int], answers: m.Answers) -> None:
        where = np.asarray(indices, dtype=np.int32)
        self._channel.send(m.LeaseAnswered(lease=self._lease, indices=where, answers=answers))

    def notice(self, level: m.Level, text: str) -> None:
        self._channel.send(m.LeaseNotice(lease=self._lease, level=level, text=text))

    def phase(self, phase: str) -> None:
        self._channel.send(m.PhaseChanged(phase=phase))


def run(channel: Channel, make_backend: MakeBackend) -> int:
    """Load the model that the agent names, then answer leases until the agent is gone; the exit status."""
    inbox: queue.SimpleQueue[m.AgentMessage] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, inbox), daemon=True).start()
    request = inbox.get()
    if not isinstance(request, m.LoadModel):
        raise InternalError(f"the first message to a model process was a {type(request).__name__}")
    began = time.monotonic()
    try:
        loaded = load(request, make_backend)
    except BirdieError as error:
        channel.send(m.ModelRefused(error=m.ErrorReport.of(error)))
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, the person at the prompt must hear of it
        channel.send(m.ModelRefused(error=_internal(error)))
        return 1
    channel.send(m.ModelLoaded(seconds=time.monotonic() - began))
    ready: queue.Queue[_Ready] = queue.Queue(maxsize=1)
    threading.Thread(target=_encode_ahead, args=(loaded.evaluator, inbox, ready), daemon=True).start()
    while True:
        if inbox.empty() and ready.empty():
            loaded.evaluator.rest()
        _answer(loaded, ready.get(), channel)


@dataclass(frozen=True)
class _Ready:
    """A lease whose texts are encoded already, where they are to be scored; or why they cannot be."""

    lease: m.Lease
    encoded: Any = None
    error: Exception | None = None


def _encode_ahead(evaluator: Evaluator, inbox: queue.SimpleQueue[m.AgentMessage], ready: queue.Queue[_Ready]) -> None:
    """Encode the next lease while the main thread computes."""
    while True:
        lease = inbox.get()
        if not isinstance(lease, m.Lease):
            continue
        try:
            ready.put(_Ready(lease, encoded=evaluator.encode(lease.work)))
        except Exception as error:  # noqa: BLE001 - the main thread raises it again, and tells of it
            ready.put(_Ready(lease, error=error))


def _answer(loaded: Loaded, ready: _Ready, channel: Channel) -> None:
    lease = ready.lease
    listener = _LeaseListener(channel, lease.lease)
    try:
        if ready.error is not None:
            raise ready.error
        match lease.work:
            case m.LogLikelihoodWork() as work:
                loaded.evaluator.loglikelihood(work, lease.limits, listener, ready.encoded)
            case m.RollingWork() as work:
                loaded.evaluator.rolling(work, lease.limits, listener, ready.encoded)
            case m.GenerateWork() as work:
                loaded.evaluator.generate(work, lease.limits, listener)
            case m.ChatWork() as work:
                loaded.evaluator.render_chat(work, listener)
            case m.DescribeWork():
                for text in loaded.warnings:
                    listener.notice("warning", text)
                listener.answered([0], loaded.describe())
    except ItemFailed as failure:
        report = m.ErrorReport.of(failure.error)
        channel.send(m.LeaseFailed(lease=lease.lease, error=report, index=failure.index))
    except BirdieError as error:
        channel.send(m.LeaseFailed(lease=lease.lease, error=m.ErrorReport.of(error)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the person at the prompt must hear of it
        channel.send(m.LeaseFailed(lease=lease.lease, error=_internal(error)))
    else:
        channel.send(m.LeaseDone(lease=lease.lease))


def _internal(error: Exception) -> m.ErrorReport:
    text = f"birdie-zmq failed in the model process: {type(error).__name__}: {error}"
    return m.ErrorReport(code=InternalError.code, message=text, traceback=traceback.format_exc())


def _listen(channel: Channel, inbox: queue.SimpleQueue[m.AgentMessage]) -> None:
    while (messages := channel.receive()) is not None:
        for message in messages:
            inbox.put(message)
    # The agent is gone, and nobody is left to answer. A clean exit could wait for ever on compiled code.
    os._exit(0)


def main(arguments: Sequence[str], make_backend: MakeBackend) -> int:
    """Run as a process of its own.

    Args:
        arguments: The descriptor of the connected socket, and the process id of the agent.
        make_backend: The framework's backend.
    """
    descriptor, agent = map(int, arguments)
    die_with_parent(agent)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s model process %(process)d: %(message)s")
    return run(Channel(socket.socket(fileno=descriptor), _decode_from_agent), make_backend)


if __name__ == "__main__":
    from birdie_zmq.engine.compile_cache import keep_programs
    from birdie_zmq.engine.jax_backend import JaxBackend

    keep_programs()
    raise SystemExit(main(sys.argv[1:], JaxBackend))
