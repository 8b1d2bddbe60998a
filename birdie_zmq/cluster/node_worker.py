"""A worker's ordinary command as a child of an actor's process.

A child rather than the agent's loop in the actor: the loop wants the main thread and its signals, which are Ray's; the
memory of a GPU is given back when processes end; and what a worker is stays one thing, whoever starts it. The child's
standard input is a pipe from this process, so it ends if this one does, however that happens.
"""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

from birdie_zmq.processes.spawn import kill_group, module_command, package_environment, start

_MOST_LINES = 20
_MOST_CHARACTERS = 2_000


class NodeWorker:
    """One worker process. `wait` and `stop` may be called from several threads.

    Args:
        number: The worker's, for the lines of the log.
        arguments: Of ``birdie-zmq worker``; ``--lifeline`` must be among them.
        variables: What is added to the environment of this process.
    """

    def __init__(self, number: int, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self._number = number
        self._arguments = list(arguments)
        self._variables = dict(variables)
        self._lines: collections.deque[str] = collections.deque(maxlen=_MOST_LINES)
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"worker {self._number}"

    def start(self) -> int:
        """Start it, and give its process id."""
        environment = package_environment({**os.environ, **self._variables})
        command = module_command("birdie_zmq", "worker", *self._arguments)
        self._process = start(command, environment, stdin=subprocess.PIPE, output=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self._started.set()
        return self._process.pid

    def wait(self) -> tuple[int, str]:
        """Wait until it has ended: its exit status, below 0 for a signal, and the last line that it wrote."""
        self._started.wait()  # Ray may make this call first.
        assert self._process is not None
        assert self._reader is not None
        status = self._process.wait()
        # The pipe is open for as long as something that it started lives; that is not waited for.
        self._reader.join(1.0)
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status, self._lines[-1][:_MOST_CHARACTERS] if self._lines else "it wrote nothing"

    def stop(self, patience_s: float) -> None:
        """Tell it to finish what it is at and end, and kill it if that takes longer than `patience_s`."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            kill_group(process)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._lines.append(text)
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()
