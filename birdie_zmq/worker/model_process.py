"""The agent's handle on its model process: start, poll and end."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping

from birdie_zmq.processes.spawn import end, kill_group, module_command, package_environment, start
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder
from birdie_zmq.worker.channel import Channel

_MAX_TRACE_BYTES = 1 << 16

_decode_from_process = decoder(m.ModelProcessMessage)


class ModelProcess:
    """A running model process and the channel to it.

    Must be created in the main thread: the process ends with the thread that started it.

    Args:
        module: Its main module, such as ``birdie_zmq.worker.model_server``.
        environment: Its environment.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        # faulthandler writes a traceback to this file at a fault, or at a signal that leaves enough time.
        self._trace = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        with theirs:
            inherited = [theirs.fileno(), self._trace.fileno()]
            command = module_command(module, *map(str, inherited), str(os.getpid()))
            self._process = start(command, package_environment(environment), pass_fds=inherited)
        self.channel = Channel(ours, _decode_from_process)
        self.pid = self._process.pid

    def end(self, kill: bool) -> None:
        """Send SIGTERM to the process, or kill it and all of its children."""
        if kill:
            kill_group(self._process)
        else:
            self._process.terminate()

    def reap(self, *, hung_up: bool) -> int | None:
        """Return the exit status of a process that has exited, None while it runs.

        Args:
            hung_up: Whether the process has closed its end of the channel. If so, wait for its exit for up to a second,
                then kill it.
        """
        if not hung_up:
            return self._process.poll()
        # At an exit the channel closes a moment before the process can be waited for.
        try:
            return self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            kill_group(self._process)
            return self._process.wait()

    def crash_trace(self) -> str | None:
        """Return the traceback that faulthandler wrote when a fault ended the process; None if there is none."""
        self._trace.seek(0)
        text = self._trace.read(_MAX_TRACE_BYTES).decode(errors="replace")
        # A list of all extension modules follows, which does not explain the fault.
        return text.partition("Extension modules:")[0].strip() or None

    def close(self, timeout_s: float) -> None:
        """End the process if it still runs, killing it after `timeout_s` seconds, and close the channel."""
        end(self._process, timeout_s)
        self.channel.close()
        self._trace.close()
