"""The model process of a host that follows: it loads what the first process of the group loads, and computes the same.

Started by a follower's agent as a model process is. It has nothing to say to its agent: what it cannot load, the first
process says to the person who asked.
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
from birdie_zmq.engine.distributed.follower import Follower, Following
from birdie_zmq.engine.distributed.leader import check_mesh
from birdie_zmq.engine.distributed.process_group import GROUP_ENDED, PAGE_VARIABLE, GroupBroken, LeaderLost, RankInfo
from birdie_zmq.engine.mesh_shape import take_mesh
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.errors import BirdieError, GroupMismatch, InternalError, ProtocolError
from birdie_zmq.processes.parent_death import die_with_parent
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.types import Level
from birdie_zmq.worker.channel import Channel
from birdie_zmq.worker.distributed.rendezvous import Rendezvous
from birdie_zmq.worker.engine_registry import DEFAULT, import_engine
from birdie_zmq.worker.model_loader import jitted, mesh_for
from birdie_zmq.worker.user_module import import_user_module

_BEAT_S = 1.0


class Voice:
    """What the process says to its agent, which writes it down; whichever thread says it.

    Args:
        channel: To the agent.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def say(self, level: Level, text: str) -> None:
        """Say a line."""
        self._send(m.ModelNotice(level=level, text=text))

    def loads(self, now: bool) -> None:
        """Say that loading begins, or is over."""
        self._send(m.PhaseChanged(phase="compiling" if now else "running"))

    def beat(self) -> None:
        """Say for ever that the process is there."""
        while True:
            self._send(m.ModelHeartbeat(steps=0))
            time.sleep(_BEAT_S)

    def _send(self, message: m.ModelProcessMessage) -> None:
        with self._lock:
            self._channel.send(message)

    def end(self, error: BaseException) -> NoReturn:
        """Say why, and end the process at once: a clean exit would wait for the others."""
        first = (str(error).splitlines() or [type(error).__name__])[0]
        self.say(
            "info" if isinstance(error, LeaderLost) else "warning", f"the group has ended for this process: {first}"
        )
        os._exit(GROUP_ENDED)


def run(place: RankInfo, engine_name: str, api: str | None, voice: Voice) -> None:
    """Join the group, load its model, and follow until it ends.

    Args:
        place: The place of this process.
        engine_name: As `birdie_zmq.worker.engine_registry.find_engine` gives it.
        api: The page, None for the built-in one.
        voice: Heard by the agent.

    Raises:
        GroupBroken: The group has ended, or can no longer go on.
    """
    from birdie_zmq.engine.jax import distributed_runtime

    coordinator = distributed_runtime.settle(place)
    distributed_runtime.wait_for_port(coordinator)
    with Rendezvous(place, coordinator, lambda text: voice.say("info", text), voice.end):
        store = distributed_runtime.join(place, coordinator)
    follower = Follower(store, place, socket.gethostname())
    try:
        backend = _load(follower, place, engine_name, api, distributed_runtime, voice)
    except GroupBroken:
        raise
    except BirdieError as error:
        voice.say("warning", f"cannot load the model: {error}")
        follower.refuse(error)
        raise GroupBroken(str(error)) from error
    except Exception as error:
        text = f"birdie-zmq failed in the model process, by {type(error).__name__}; the traceback says more"
        follower.refuse(InternalError(text, remote_traceback="".join(traceback.format_exception(error))))
        raise GroupBroken(str(error)) from error
    voice.loads(False)
    follower.loaded(backend)
    voice.say("info", "loaded; it computes what process 0 computes")
    Following(backend, follower, distributed_runtime.is_of_runtime, voice.end).run()


def _load(follower: Follower, place: RankInfo, engine_name: str, api: str | None, group: Any, voice: Voice) -> Backend:
    engine = import_engine(engine_name)
    request = follower.load()
    voice.say("info", f"loading {request.model}")
    voice.loads(True)
    if request.version != __version__:
        raise GroupMismatch(
            f"process 0 has birdie-zmq {request.version} and this one {__version__}; install the same on each host"
        )
    page = import_user_module(api)
    if page.sha256 != request.sha256:
        raise GroupMismatch(
            f"process 0 loads models by {request.page} (SHA-256 {request.sha256[:12]}…), and this one by {page.name} "
            f"({page.sha256[:12]}…), which is another page; give each worker of the group the same, with --api"
        )
    shape = take_mesh(json.loads(request.model.arguments))
    check_mesh(None if shape is None else shape.size, group.device_count(), place)
    mesh = mesh_for(request.model, engine)
    model = jitted(resolve(page.load_model(request.model, mesh)))
    return engine.make_backend(model, follower.max_length(), mesh)


def _end_with_agent(channel: Channel) -> None:
    with contextlib.suppress(ProtocolError):
        while channel.receive() is not None:
            pass
    os._exit(0)


def main(arguments: Sequence[str]) -> NoReturn:
    """Run as a process of its own; arguments as of `birdie_zmq.worker.model_server.main`."""
    descriptor, trace, agent = map(int, arguments)
    die_with_parent(agent)
    faulthandler.enable(trace, all_threads=False)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s model process %(process)d: %(message)s")
    channel = Channel(socket.socket(fileno=descriptor), decoder(m.AgentMessage))
    voice = Voice(channel)
    threading.Thread(target=_end_with_agent, args=[channel], daemon=True).start()
    threading.Thread(target=voice.beat, daemon=True).start()
    place = RankInfo.of_environment(os.environ)
    assert place is not None
    try:
        run(place, os.environ.get(ENGINE_VARIABLE, DEFAULT), os.environ.get(PAGE_VARIABLE), voice)
    except (GroupBroken, BirdieError) as error:
        voice.end(error)
    except BaseException:  # noqa: BLE001 - a clean exit would wait for the others
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
