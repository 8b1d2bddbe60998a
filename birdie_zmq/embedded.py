"""A broker and a worker that belong to one run.

They talk over a Unix socket in a folder that only this user may enter. They end with the run in any case: in good
order by `close`, which also runs at the interpreter's exit; and when the run is killed, because the kernel then closes
the pipe that is their standard input. The broker, which outlives a killed run for that moment, removes the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

from birdie_zmq.errors import UnavailableError
from birdie_zmq.processes import kill_group, module_command, package_environment, start
from birdie_zmq.wire.endpoints import MAX_IPC_PATH_BYTES

_END_S = 10.0
_MOST_STARTS = 3


@dataclass
class _Child:
    """One of the two processes, and how to start it again."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes]
    starts: int = 1


class Embedded:
    """Starts a broker and a worker, and keeps them running until `close`.

    Args:
        api: The page that the worker loads models from, None for the built-in one.
        device: The worker's device, as `birdie_zmq.worker.devices` reads it.
        verbose: Whether both write down what they do, and not only what goes wrong.
    """

    def __init__(self, api: Path | None = None, device: str | None = None, verbose: bool = False) -> None:
        folder = _private_folder()
        self.endpoint = f"ipc://{folder / 'broker'}"
        environment = package_environment(os.environ)
        common = ["--lifeline"] if verbose else ["--lifeline", "--quiet"]
        worker = ["worker", "--connect", self.endpoint, *common]
        worker += ["--built-in"] if api is None else ["--api", str(api)]
        worker += [] if device is None else ["--device", device]
        broker = ["broker", "--bind", self.endpoint, *common, "--remove-folder"]
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

    def check(self) -> None:
        """Start a child again that has ended.

        Raises:
            UnavailableError: It has ended too often.
        """
        for child in self._children:
            status = child.process.poll()
            if status is None:
                continue
            if child.starts >= _MOST_STARTS:
                raise UnavailableError(
                    f"the run's own {child.name} ended {child.starts} times, the last time with status {status}; "
                    "what it wrote is above"
                )
            child.starts += 1
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
