"""The model process of a follower rank: it loads the model that rank 0 loads, and computes the same steps.

A follower's agent starts it, as an agent starts any model process. It sends its agent only lines for the log: an error of
loading goes to rank 0, which reports it to the user.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from birdie_zmq._version import __version__
from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.distributed.follower import Follower, FollowerRunner
from birdie_zmq.engine.distributed.leader import check_mesh
from birdie_zmq.engine.distributed.process_group import (
    GROUP_ENDED_EXIT_STATUS,
    LeaderLost,
    ProcessGroupError,
)
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.errors import BirdieError, ProcessGroupMismatch, ProtocolError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder
from birdie_zmq.sanitize import first_line
from birdie_zmq.types import Level, RankInfo
from birdie_zmq.worker.agent_connection import AgentConnection, internal_error
from birdie_zmq.worker.channel import Channel
from birdie_zmq.worker.distributed.process_group import require_params
from birdie_zmq.worker.distributed.rendezvous import Rendezvous
from birdie_zmq.worker.model_arguments import parse_arguments
from birdie_zmq.worker.start_up import apply_config, connect
from birdie_zmq.worker.user_module import import_user_module


class FollowerConnection(AgentConnection):
    """The connection of a follower rank to its agent, which answers no leases."""

    def log(self, level: Level, text: str) -> None:
        """Send a line for the worker's log."""
        self.send(m.ModelNotice(level=level, text=text))

    def set_loading(self, is_loading: bool) -> None:
        """Report that loading begins or has ended."""
        self.send(m.PhaseChanged(phase="compiling" if is_loading else "running"))

    def exit(self, error: BaseException) -> NoReturn:
        """Log an error and exit at once: a clean exit would wait for the other ranks."""
        level: Level = "info" if isinstance(error, LeaderLost) else "warning"
        self.log(level, f"left the process group: {first_line(error)}")
        os._exit(GROUP_ENDED_EXIT_STATUS)


def run(config: m.WorkerConfig, rank: RankInfo, connection: FollowerConnection) -> None:
    """Join the process group, load its model, and follow rank 0 until the group ends.

    Args:
        config: The options of the worker.
        rank: The rank of this process.
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
        backend = _load(follower, rank, config, distributed_runtime, connection)
    except ProcessGroupError:
        raise
    except BirdieError as error:
        connection.log("warning", f"cannot load the model: {error}")
        follower.report_load_failure(error)
        raise ProcessGroupError(str(error)) from error
    except Exception as error:
        follower.report_load_failure(internal_error(error))
        raise ProcessGroupError(str(error)) from error
    connection.set_loading(False)
    follower.report_loaded(backend)
    connection.log("info", "loaded the model; following process 0")
    FollowerRunner(backend, follower, distributed_runtime.is_runtime_error, connection.exit).run()


def _load(
    follower: Follower, rank: RankInfo, config: m.WorkerConfig, runtime: Any, connection: FollowerConnection
) -> Backend:
    engine = apply_config(config)
    request = follower.load()
    connection.log("info", f"loading {request.model}")
    connection.set_loading(True)
    if request.version != __version__:
        raise ProcessGroupMismatch(
            f"process 0 has birdie-zmq {request.version} and this one {__version__}; install the same version on each host"
        )
    user_module = import_user_module(config.api)
    if user_module.sha256 != request.sha256:
        raise ProcessGroupMismatch(
            f"process 0 loads models with {request.user_module} (SHA-256 {request.sha256[:12]}…), and this one with "
            f"{user_module.name} ({user_module.sha256[:12]}…), which differs; give every worker of the process group the "
            "same file with --api"
        )
    arguments = parse_arguments(request.model, is_built_in=config.api is None)
    check_mesh(arguments.mesh, runtime.device_count(), rank)
    mesh = engine.make_mesh(arguments.mesh)
    model = require_params(resolve(user_module.load_model(request.model.tag, arguments.keywords, mesh)))
    return engine.make_backend(model, follower.max_length(), mesh)


def _receive_config(channel: Channel) -> m.WorkerConfig:
    """Wait for the options of the worker; end this process if the agent is gone."""
    with contextlib.suppress(ProtocolError):
        while (messages := channel.receive()) is not None:
            for message, _ in messages:
                config: m.WorkerConfig = message.config
                return config
    os._exit(0)


def _exit_with_agent(channel: Channel) -> None:
    with contextlib.suppress(ProtocolError):
        while channel.receive() is not None:
            pass
    os._exit(0)


def main(arguments: Sequence[str]) -> NoReturn:
    """Run as a process of its own, with the arguments of `birdie_zmq.worker.start_up.connect`."""
    channel = connect(arguments, decoder(m.StartFollower))
    config = _receive_config(channel)
    connection = FollowerConnection(channel)
    threading.Thread(target=_exit_with_agent, args=[channel], daemon=True).start()
    threading.Thread(target=connection.send_heartbeats, daemon=True).start()
    assert config.rank is not None
    try:
        run(config, config.rank, connection)
    except (ProcessGroupError, BirdieError) as error:
        connection.exit(error)
    except BaseException:  # noqa: BLE001 - a clean exit would wait for the other ranks
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
