"""A worker's ordinary command as a child of a Ray actor's process.

The worker is a child process, and the agent does not run in the actor, for three reasons: the agent needs the main thread
and its signals, which belong to Ray in an actor; GPU memory is freed only when a process exits; and a worker is the same
command, however it is started. The child's standard input is a pipe from this process, so the child ends when this process
ends, for whatever reason.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from birdie_zmq.processes.spawn import kill_group, module_command, package_environment, start
from birdie_zmq.sanitize import one_line

_MAX_CHARACTERS = 2_000


class NodeWorker:
    """One worker process. `wait` and `stop` may be called from different threads.

    Args:
        number: The worker's number, for the log.
        arguments: The arguments of ``birdie-zmq worker``, which must include ``--lifeline``.
        variables: Variables to add to the environment of this process.
    """

    def __init__(self, number: int, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self._number = number
        self._arguments = list(arguments)
        self._variables = dict(variables)
        self._last_line = "it wrote nothing"
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"worker {self._number}"

    def start(self) -> int:
        """Start the process and return its process id."""
        environment = package_environment({**os.environ, **self._variables})
        command = module_command("birdie_zmq", "worker", *self._arguments)
        self._process = start(command, environment, stdin=subprocess.PIPE, output=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self._started.set()
        return self._process.pid

    def wait(self) -> tuple[int, str]:
        """Wait for the exit, and return the exit status, negative for a signal, and the last line that was written."""
        self._started.wait()  # Ray may run this call before `start`.
        assert self._process is not None
        assert self._reader is not None
        status = self._process.wait()
        # The pipe stays open while a process that the worker started still has it; do not wait for such processes.
        self._reader.join(1.0)
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status, one_line(self._last_line, _MAX_CHARACTERS)

    def stop(self, timeout_s: float) -> None:
        """Let the worker finish its running lease and exit; kill it if that takes longer than `timeout_s` seconds."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            kill_group(process)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._last_line = text
                if sys.stderr is not None:
                    sys.stderr.write(f"{text}\n")
                    sys.stderr.flush()
