"""A broker and a worker that belong to one run.

They talk over a Unix socket in a folder that only this user may enter. They end with the run in any case: in good
order by `close`, which also runs at the interpreter's exit; and when the run is killed, because the kernel then closes
the pipe that is their standard input. The broker, which outlives a killed run for that moment, removes the folder.

While the run waits, it starts again what has ended, and ends and starts again what is there but does not answer.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path

from birdie_zmq.client.client import Pulse
from birdie_zmq.errors import UnavailableError
from birdie_zmq.processes.spawn import kill_group, module_command, package_environment, start
from birdie_zmq.protocol.endpoints import MAX_IPC_PATH_BYTES
from birdie_zmq.worker.engine_registry import DEFAULT

logger = logging.getLogger("lm_eval.birdie_zmq")

CONNECT_S = 60.0
"""How long a run's own broker may take to start, on a machine that is busy."""
_END_S = 10.0
_MOST_STARTS = 3
"""How often a child is started without an answer in between."""
_SILENT_S = 10.0
"""How long the broker may be silent, or have no worker, before the child is taken to hang."""
_STARTING_S = 60.0
"""How long a child may take to start on a busy machine, while nothing can be said of it."""


@dataclass
class _Child:
    """One of the two processes, and how to start it again. ``answered`` is what it was when it was started last."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    starts: int = 1
    answered: int = 0


class EmbeddedProcesses:
    """Starts a broker and a worker, and keeps them running until `close`.

    Args:
        api: The page that the worker loads models from, None for the built-in one.
        device: The worker's device, as `birdie_zmq.worker.devices` reads it.
        verbose: Whether both write down what they do, and not only what goes wrong.
        engine: The worker's engine, as `birdie_zmq.worker.engine_registry.find_engine` gives it.
        status_port: The port of the broker's status page, None for no page.
    """

    def __init__(
        self,
        api: Path | None = None,
        device: str | None = None,
        verbose: bool = False,
        engine: str = DEFAULT,
        status_port: int | None = None,
    ) -> None:
        folder = _private_folder()
        self.endpoint = f"ipc://{folder / 'broker'}"
        environment = package_environment(os.environ)
        common = ["--lifeline"] if verbose else ["--lifeline", "--quiet"]
        worker = ["worker", "--connect", self.endpoint, "--engine", engine, *common]
        worker += ["--built-in"] if api is None else ["--api", str(api)]
        worker += [] if device is None else ["--device", device]
        broker = ["broker", "--bind", self.endpoint, *common, "--remove-folder"]
        broker += [] if status_port is None else ["--status-port", str(status_port)]
        self._environment = environment
        # Nobody writes to this pipe. Its writing end is only here, so it closes with this process, however that ends.
        reading, writing = os.pipe()
        self._reading = reading
        self._children = [
            _Child(name, command, self._start(command))
            for name, command in (
                ("broker", module_command("birdie_zmq", *broker)),
                ("worker", module_command("birdie_zmq", *worker)),
            )
        ]
        self._finalizer = weakref.finalize(self, _close, os.getpid(), self._children, reading, writing, folder)

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return start(command, self._environment, stdin=self._reading)

    def check(self, pulse: Pulse) -> None:
        """Start a child again that has ended, or that hangs.

        Raises:
            UnavailableError: It has ended too often, without an answer in between.
        """
        broker, worker = self._children
        self._check(broker, pulse, pulse.broker_silent_s)
        self._check(worker, pulse, pulse.worker_missing_s)

    def _check(self, child: _Child, pulse: Pulse, silent_s: float) -> None:
        status = child.process.poll()
        age_s = time.monotonic() - child.started_at
        patience_s = _SILENT_S if pulse.answered > child.answered else _STARTING_S
        if status is None and silent_s > _SILENT_S and age_s > patience_s:
            logger.warning("the run's own %s does not answer; it is ended and started again", child.name)
            kill_group(child.process)
            status = child.process.wait()
        if status is None:
            return
        if pulse.answered > child.answered:
            child.starts = 0
        if child.starts >= _MOST_STARTS:
            raise UnavailableError(
                f"the run's own {child.name} ended {child.starts} times without an answer in between, the last time "
                f"with status {status}; what it wrote is above"
            )
        logger.warning("the run's own %s ended with status %d; it is started again", child.name, status)
        child.starts += 1
        child.started_at, child.answered = time.monotonic(), pulse.answered
        child.process = self._start(child.command)

    def close(self) -> None:
        """End both, and whatever they have started; called twice, it does nothing."""
        self._finalizer()


def _close(owner: int, children: list[_Child], reading: int, writing: int, folder: Path) -> None:
    if os.getpid() != owner:
        return  # A fork of the run, which ends by itself and owns nothing.
    os.close(writing)
    os.close(reading)
    for child in children:
        try:
            child.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            kill_group(child.process)
            child.process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _private_folder() -> Path:
    """A new folder of mode 0700 whose name is short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="birdie-"))
    if len(bytes(folder / "broker")) > MAX_IPC_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="birdie-", dir="/tmp"))
    return folder
