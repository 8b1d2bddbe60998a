"""The model process: it holds one model in its framework until it exits, and it ends with its agent.

The agent starts it with a connected socket. Four threads work: one reads the socket at all times, so that the agent's end
is noticed at once; one sends heartbeats, so that the agent can tell a process that is stopped or makes no progress from a
working process; one encodes the texts of the next lease; the main thread computes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from birdie_zmq.engine.distributed.leader import Leader
from birdie_zmq.engine.distributed.process_group import GROUP_ENDED_EXIT_STATUS, ProcessGroupError
from birdie_zmq.errors import BirdieError, InternalError, ProtocolError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder
from birdie_zmq.sanitize import first_line
from birdie_zmq.types import ErrorReport, RankInfo
from birdie_zmq.worker.agent_connection import AgentConnection, internal_error
from birdie_zmq.worker.channel import Channel
from birdie_zmq.worker.distributed.process_group import ProcessGroup
from birdie_zmq.worker.distributed.rendezvous import Rendezvous
from birdie_zmq.worker.lease_loop import Inbox, LeaseLoop
from birdie_zmq.worker.model_loader import load
from birdie_zmq.worker.start_up import apply_config, connect
from birdie_zmq.worker.weight_swap import WeightSwap

logger = logging.getLogger(__name__)

_decode_from_agent = decoder(m.AgentMessage)


def run(channel: Channel) -> int:
    """Load the model that the agent names, then answer leases until the agent is gone; return the exit status.

    The engine is imported here, where the process can already report an error of the import to the agent.
    """
    inbox: Inbox = queue.SimpleQueue()
    cancelled: set[int] = set()
    connection = AgentConnection(channel)
    threading.Thread(target=_read_messages, args=(channel, inbox, cancelled), daemon=True).start()
    threading.Thread(target=connection.send_heartbeats, daemon=True).start()
    start = inbox.get()
    if not isinstance(start, m.StartModel):
        raise InternalError(f"the first message to a model process was a {type(start).__name__}, not StartModel")
    began = time.monotonic()
    rank = start.config.rank
    try:
        engine = apply_config(start.config)
        swap = WeightSwap(start.model, is_enabled=start.config.swap_weights and rank is None)
        served = load(start, engine, None if rank is None else _join_process_group(rank, connection))
        swap.loaded()
    except ProcessGroupError as broken:
        _exit_group(broken)
    except BirdieError as error:
        connection.send(m.ModelLoadFailed(error=ErrorReport.of(error)))
        return _exit_status(1, rank)
    except Exception as error:  # noqa: BLE001 - any error must reach the user
        connection.send(m.ModelLoadFailed(error=ErrorReport.of(internal_error(error))))
        return _exit_status(1, rank)
    connection.computed = lambda: served.evaluator.computed
    ignored = tuple(sorted(served.origin.request_arguments))
    connection.send(m.ModelLoaded(seconds=time.monotonic() - began, request_arguments=ignored))
    try:
        LeaseLoop(served, connection, inbox, cancelled, swap).run()
    except ProcessGroupError as broken:
        _exit_group(broken)


def _join_process_group(rank: RankInfo, connection: AgentConnection) -> ProcessGroup:
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
    logger.warning("the process group cannot continue: %s", first_line(error))
    os._exit(GROUP_ENDED_EXIT_STATUS)


def _exit_status(status: int, rank: RankInfo | None) -> int:
    if rank is not None:
        os._exit(status)  # A clean exit would wait for the other ranks.
    return status


def _read_messages(channel: Channel, inbox: Inbox, cancelled: set[int]) -> None:
    with contextlib.suppress(ProtocolError):  # A peer that sends malformed messages is not this process's agent.
        while (messages := channel.receive()) is not None:
            for message, _ in messages:
                if isinstance(message, m.CancelLease):
                    cancelled.add(message.lease)
                else:
                    inbox.put(message)
    # The agent is gone, so nobody reads the answers. A clean exit could wait forever on compiled code.
    os._exit(0)


def main(arguments: Sequence[str]) -> int:
    """Run the model server as a process of its own, with the arguments of `start_up.connect`; return the exit status."""
    return run(connect(arguments, _decode_from_agent))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
