"""A running model process, as the agent sees it: how it is started, watched and ended."""

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

_MOST_TRACE_BYTES = 1 << 16

_decode_from_process = decoder(m.ModelProcessMessage)


class ModelProcess:
    """A running model process and the channel to it.

    Must be made in the main thread: it ends with the thread that started it.

    Args:
        engine: The module that is its main, such as ``birdie_zmq.worker.model_server``.
        environment: Its environment.
    """

    def __init__(self, engine: str, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        # Where the process writes down what it was at, if a fault or a signal leaves it the time.
        self._trace = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        with theirs:
            given = [theirs.fileno(), self._trace.fileno()]
            command = module_command(engine, *map(str, given), str(os.getpid()))
            self._process = start(command, package_environment(environment), pass_fds=given)
        self.channel = Channel(ours, _decode_from_process)
        self.pid = self._process.pid

    def end(self, kill: bool) -> None:
        """Ask the process to end, or kill it and all that it has started."""
        if kill:
            kill_group(self._process)
        else:
            self._process.terminate()

    def reap(self, *, hung_up: bool) -> int | None:
        """The exit status if the process has ended, None if it runs on; ``hung_up`` says that its channel is closed."""
        if not hung_up:
            return self._process.poll()
        # Its end of the channel closes at its exit, a moment before it can be waited for.
        try:
            return self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            kill_group(self._process)
            return self._process.wait()

    def trace(self) -> str | None:
        """What the process was at when a fault ended it, None if it did not say."""
        self._trace.seek(0)
        text = self._trace.read(_MOST_TRACE_BYTES).decode(errors="replace")
        # Then follows a list of all extension modules, which says nothing of the fault.
        return text.partition("Extension modules:")[0].strip() or None

    def close(self, patience_s: float) -> None:
        """Make an end of the process, if it still runs, and of the channel."""
        end(self._process, patience_s)
        self.channel.close()
        self._trace.close()
