"""What a model process does first: connect to the agent that started it, and apply the options of its worker."""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from birdie_zmq.models.checkpoint_policy import CheckpointPolicy, set_process_policy
from birdie_zmq.processes.parent_death import die_with_parent
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import ENGINE_VARIABLE
from birdie_zmq.worker.channel import Channel
from birdie_zmq.worker.engine_registry import Engine, import_engine


def connect(arguments: Sequence[str], decode: Callable[[bytes], Any]) -> Channel:
    """Return the channel to the agent, and end this process with the agent from now on.

    Args:
        arguments: The arguments that `birdie_zmq.worker.model_process.ModelProcess` gives to its process: the descriptor of
            the connected socket, the descriptor of the file to which faulthandler writes a traceback when a fault ends the
            process, and the process id of the agent.
        decode: Decodes a frame into a message, as returned by `birdie_zmq.protocol.codec.decoder`.
    """
    descriptor, trace, agent = map(int, arguments)
    die_with_parent(agent)
    faulthandler.enable(trace, all_threads=False)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s model process %(process)d: %(message)s")
    return Channel(socket.socket(fileno=descriptor), decode)


def apply_config(config: m.WorkerConfig) -> Engine:
    """Set the checkpoint policy and the environment variable that user modules may read, then import the engine.

    Raises:
        EngineError: The import of the engine failed.
    """
    folders = config.checkpoint_folders
    set_process_policy(CheckpointPolicy(None if folders is None else tuple(map(Path, folders)), config.hub))
    os.environ[ENGINE_VARIABLE] = config.engine
    return import_engine(config.engine)
