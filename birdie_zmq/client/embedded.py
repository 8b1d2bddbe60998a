"""The embedded broker and worker of one run.

They communicate over a Unix socket in a folder that only this user may enter. They always end with the run: `close` shuts
them down cleanly and also runs at the interpreter's exit; if the run is killed, the kernel closes the parent-death
pipe that is their standard input. In that case the broker removes the folder before it exits.

While the run waits for answers, it restarts a process that has ended, and kills and restarts a process that hangs. If a
cleaner of temporary files removes the folder, the broker creates it again and binds its path anew.
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

from birdie_zmq.client.client import Liveness
from birdie_zmq.errors import UnavailableError
from birdie_zmq.processes.restart_policy import RestartPolicy
from birdie_zmq.processes.spawn import kill_group, module_command, package_environment, start
from birdie_zmq.protocol.endpoints import MAX_IPC_PATH_BYTES
from birdie_zmq.protocol.ipc_path import make_owned_folder
from birdie_zmq.worker.devices import process_gpus
from birdie_zmq.worker.engine_registry import DEFAULT

logger = logging.getLogger("lm_eval.birdie_zmq")

CONNECT_S = 60.0
"""Seconds that an embedded broker may take to start on a busy machine."""
_END_S = 10.0
_MAX_STARTS = 3
"""Maximum number of starts of a child without an answer in between."""
_SILENT_S = 10.0
"""Seconds that the broker may be silent, or have no worker, before the child is considered to hang."""
_STARTING_S = 60.0
"""Seconds that a child may take to start on a busy machine before it is considered to hang."""


@dataclass
class _Child:
    """One of the two processes with its command. ``answered`` is the number of answers when it was last started."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    answered: int = 0
    restarts: RestartPolicy = field(default_factory=lambda: RestartPolicy(max_failures=_MAX_STARTS))


@dataclass(frozen=True)
class WorkerOptions:
    """The options of an embedded worker.

    Attributes:
        api: The user module that it loads models from, None for the built-in one.
        device: Its device, in the form that `birdie_zmq.worker.devices` parses.
        engine: Its engine, as `birdie_zmq.worker.engine_registry.find_engine` returns it.
        swap_weights: Whether it may load other weights of the same model into a running model process.
    """

    api: Path | None = None
    device: str | None = None
    engine: str = DEFAULT
    swap_weights: bool = False

    def arguments(self) -> list[str]:
        """Return the options as arguments of the command ``worker``."""
        api = ["--built-in"] if self.api is None else ["--api", str(self.api)]
        device = [] if self.device is None else ["--device", self.device]
        return ["--engine", self.engine, *api, *device, *(["--swap-weights"] if self.swap_weights else [])]


class EmbeddedProcesses:
    """An embedded broker and worker, which are kept running until `close`.

    Args:
        options: The options of the worker.
        verbose: Whether both processes also log information, and not only warnings and errors.
        status_port: The port of the broker's status page, None for no page.
    """

    def __init__(
        self, options: WorkerOptions | None = None, verbose: bool = False, status_port: int | None = None
    ) -> None:
        folder = self._folder = _private_folder()
        self.endpoint = f"ipc://{folder / 'broker'}"
        environment = package_environment(process_gpus.original_environment())
        common = ["--lifeline"] if verbose else ["--lifeline", "--quiet"]
        worker = ["worker", "--connect", self.endpoint, *common, *(options or WorkerOptions()).arguments()]
        broker = ["broker", "--bind", self.endpoint, *common, "--remove-folder"]
        broker += [] if status_port is None else ["--status-port", str(status_port)]
        self._environment = environment
        # The parent-death pipe. Nobody writes to it. Only this process has its write end, which closes when this process ends.
        read_end, write_end = os.pipe()
        self._read_end = read_end
        self._children = [
            _Child(name, command, self._start(command))
            for name, command in (
                ("broker", module_command("birdie_zmq", *broker)),
                ("worker", module_command("birdie_zmq", *worker)),
            )
        ]
        self._finalizer = weakref.finalize(self, _close, os.getpid(), self._children, read_end, write_end, folder)

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return start(command, self._environment, stdin=self._read_end)

    def begin_run(self) -> None:
        """Note that another client uses the processes from now on, which counts its answers from 0."""
        for child in self._children:
            child.answered = 0

    def check(self, liveness: Liveness) -> None:
        """Restart a child that has ended or hangs.

        Raises:
            UnavailableError: A child has ended too often without an answer in between.
            UsageError: The folder of the socket has been removed, and another user has taken its name.
        """
        broker, worker = self._children
        self._check(broker, liveness, liveness.broker_silent_s)
        self._check(worker, liveness, liveness.worker_missing_s)

    def _check(self, child: _Child, liveness: Liveness, silent_s: float) -> None:
        status = child.process.poll()
        age_s = time.monotonic() - child.started_at
        limit_s = _SILENT_S if liveness.answered > child.answered else _STARTING_S
        if status is None and silent_s > _SILENT_S and age_s > limit_s:
            logger.warning("the embedded %s does not answer; restarting it", child.name)
            kill_group(child.process)
            status = child.process.wait()
        if status is None:
            return
        now = time.monotonic()
        if liveness.answered > child.answered:
            child.restarts.succeeded()
        elif not child.restarts.is_exhausted:
            child.restarts.failed(now)
        if child.restarts.is_exhausted:
            raise UnavailableError(
                f"the embedded {child.name} ended {child.restarts.failures} times without an answer in between, the last "
                f"time with exit status {status}; see its output above"
            )
        logger.warning("the embedded %s ended with exit status %d; restarting it", child.name, status)
        # It may have been removed together with the socket, and then belong to another user.
        make_owned_folder(self._folder)
        child.started_at, child.answered = now, liveness.answered
        child.process = self._start(child.command)

    def close(self) -> None:
        """Shut down both processes and their children; a second call does nothing."""
        self._finalizer()


def _close(owner: int, children: list[_Child], read_end: int, write_end: int, folder: Path) -> None:
    if os.getpid() != owner:
        return  # This process is a fork of the run: it does not own the children.
    os.close(write_end)
    os.close(read_end)
    for child in children:
        try:
            child.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            kill_group(child.process)
            child.process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _private_folder() -> Path:
    """Create a folder of mode 0700 whose path is short enough for a Unix socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="birdie-"))
    if len(bytes(folder / "broker")) > MAX_IPC_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="birdie-", dir="/tmp"))
    return folder
