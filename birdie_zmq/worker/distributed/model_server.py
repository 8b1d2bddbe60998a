"""The model process of a follower rank: it loads the model that rank 0 loads, and computes the same steps.

A follower's agent starts it, as an agent starts any model process. It sends its agent only lines for the log: an error of
loading goes to rank 0, which reports it to the user.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from birdie_zmq._version import __version__
from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.distributed.follower import Follower, FollowerRunner
from birdie_zmq.engine.distributed.leader import check_mesh
from birdie_zmq.engine.distributed.process_group import (
    GROUP_ENDED_EXIT_STATUS,
    USER_MODULE_VARIABLE,
    LeaderLost,
    ProcessGroupError,
    RankInfo,
)
from birdie_zmq.engine.mesh_shape import pop_mesh
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.errors import BirdieError, InternalError, ProcessGroupMismatch, ProtocolError
from birdie_zmq.processes.parent_death import die_with_parent
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder
from birdie_zmq.sanitize import first_line
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.types import Level
from birdie_zmq.worker.channel import Channel
from birdie_zmq.worker.distributed.rendezvous import Rendezvous
from birdie_zmq.worker.engine_registry import DEFAULT, import_engine
from birdie_zmq.worker.model_loader import mesh_for, require_params
from birdie_zmq.worker.user_module import import_user_module

_HEARTBEAT_S = 1.0


class AgentConnection:
    """The sending side of the channel to the agent; thread-safe.

    Args:
        channel: The channel.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def log(self, level: Level, text: str) -> None:
        """Send a line for the worker's log."""
        self._send(m.ModelNotice(level=level, text=text))

    def set_loading(self, is_loading: bool) -> None:
        """Report that loading begins or has ended."""
        self._send(m.PhaseChanged(phase="compiling" if is_loading else "running"))

    def send_heartbeats(self) -> None:
        """Send heartbeats for as long as the process runs."""
        while True:
            self._send(m.ModelHeartbeat(steps=0))
            time.sleep(_HEARTBEAT_S)

    def _send(self, message: m.ModelProcessMessage) -> None:
        with self._lock:
            self._channel.send(message)

    def exit(self, error: BaseException) -> NoReturn:
        """Log an error and exit at once: a clean exit would wait for the other ranks."""
        level: Level = "info" if isinstance(error, LeaderLost) else "warning"
        self.log(level, f"left the process group: {first_line(error)}")
        os._exit(GROUP_ENDED_EXIT_STATUS)


def run(rank: RankInfo, engine_name: str, api: str | None, connection: AgentConnection) -> None:
    """Join the process group, load its model, and follow rank 0 until the group ends.

    Args:
        rank: The rank of this process.
        engine_name: The engine, as `birdie_zmq.worker.engine_registry.find_engine` returns it.
        api: The path of the user module, None for the built-in models.
        connection: Sends to the agent.

    Raises:
        GroupBroken: The group has ended, or cannot continue.
    """
    from birdie_zmq.engine.jax import distributed_runtime

    coordinator = distributed_runtime.resolve_coordinator(rank)
    distributed_runtime.wait_for_port(coordinator)
    with Rendezvous(rank, coordinator, lambda text: connection.log("info", text), connection.exit):
        store = distributed_runtime.join(rank, coordinator)
    follower = Follower(store, rank, socket.gethostname())
    try:
        backend = _load(follower, rank, engine_name, api, distributed_runtime, connection)
    except ProcessGroupError:
        raise
    except BirdieError as error:
        connection.log("warning", f"cannot load the model: {error}")
        follower.report_load_failure(error)
        raise ProcessGroupError(str(error)) from error
    except Exception as error:
        text = f"birdie-zmq failed in the model process with {type(error).__name__}; see the traceback"
        follower.report_load_failure(InternalError(text, remote_traceback="".join(traceback.format_exception(error))))
        raise ProcessGroupError(str(error)) from error
    connection.set_loading(False)
    follower.report_loaded(backend)
    connection.log("info", "loaded the model; following process 0")
    FollowerRunner(backend, follower, distributed_runtime.is_runtime_error, connection.exit).run()


def _load(
    follower: Follower, rank: RankInfo, engine_name: str, api: str | None, runtime: Any, connection: AgentConnection
) -> Backend:
    engine = import_engine(engine_name)
    request = follower.load()
    connection.log("info", f"loading {request.model}")
    connection.set_loading(True)
    if request.version != __version__:
        raise ProcessGroupMismatch(
            f"process 0 has birdie-zmq {request.version} and this one {__version__}; install the same version on each host"
        )
    user_module = import_user_module(api)
    if user_module.sha256 != request.sha256:
        raise ProcessGroupMismatch(
            f"process 0 loads models with {request.user_module} (SHA-256 {request.sha256[:12]}…), and this one with "
            f"{user_module.name} ({user_module.sha256[:12]}…), which differs; give every worker of the process group the "
            "same file with --api"
        )
    shape = pop_mesh(json.loads(request.model.arguments))
    check_mesh(None if shape is None else shape.size, runtime.device_count(), rank)
    mesh = mesh_for(request.model, engine)
    model = require_params(resolve(user_module.load_model(request.model, mesh)))
    return engine.make_backend(model, follower.max_length(), mesh)


def _exit_with_agent(channel: Channel) -> None:
    with contextlib.suppress(ProtocolError):
        while channel.receive() is not None:
            pass
    os._exit(0)


def main(arguments: Sequence[str]) -> NoReturn:
    """Run as a process of its own, with the arguments of `birdie_zmq.worker.model_server.main`."""
    descriptor, trace, agent = map(int, arguments)
    die_with_parent(agent)
    faulthandler.enable(trace, all_threads=False)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s model process %(process)d: %(message)s")
    channel = Channel(socket.socket(fileno=descriptor), decoder(m.AgentMessage))
    connection = AgentConnection(channel)
    threading.Thread(target=_exit_with_agent, args=[channel], daemon=True).start()
    threading.Thread(target=connection.send_heartbeats, daemon=True).start()
    rank = RankInfo.from_environment(os.environ)
    assert rank is not None
    try:
        run(rank, os.environ.get(ENGINE_VARIABLE, DEFAULT), os.environ.get(USER_MODULE_VARIABLE), connection)
    except (ProcessGroupError, BirdieError) as error:
        connection.exit(error)
    except BaseException:  # noqa: BLE001 - a clean exit would wait for the other ranks
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
