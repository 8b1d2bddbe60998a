"""The I/O of a follower rank's agent: its model process and the clock, without a broker. `core` makes all decisions."""

from __future__ import annotations

import logging
import select
import signal
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from birdie_zmq.engine.distributed.process_group import RankInfo
from birdie_zmq.errors import ProtocolError
from birdie_zmq.processes.signals import StopSignals
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import AgentSettings
from birdie_zmq.worker.channel import Received
from birdie_zmq.worker.distributed import core
from birdie_zmq.worker.model_process import ModelProcess

logger = logging.getLogger("birdie_zmq.worker")

_TICK_S = 0.5

_MIN_STALL_S = 3.0
"""An iteration of the loop that is later than this was delayed because the process, or its machine, was stopped."""


class FollowerAgent:
    """The process that runs the model process of a follower rank.

    Args:
        rank: The rank of the model process.
        environment: The environment of the model process.
        settings: How long the model process may go without a heartbeat, and take to exit after SIGTERM.
    """

    def __init__(self, rank: RankInfo, environment: Mapping[str, str], settings: AgentSettings) -> None:
        self._environment = environment
        self._terminate_s = settings.terminate_s
        self._core = core.FollowerCore(str(rank), settings)
        self._process: ModelProcess | None = None
        self._is_done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.close(self._terminate_s)
            self._process = None

    def run(self, stop: StopSignals, parent_pipe: int | None = None) -> None:
        """Run until a stop signal arrives, or until the parent-death pipe closes. Must run in the main thread.

        Args:
            stop: The stop signals.
            parent_pipe: The descriptor of the parent-death pipe, None for a worker that does not end with its parent.
        """
        stops = {stop.descriptor} if parent_pipe is None else {stop.descriptor, parent_pipe}
        self._handle(core.AgentStarted())
        while not self._is_done:
            watched = [*stops] if self._process is None else [*stops, self._process.channel.fileno()]
            began = time.monotonic()
            ready, _, _ = select.select(watched, [], [], _TICK_S)
            stall_s = time.monotonic() - began - _TICK_S
            if parent_pipe in ready:
                return
            if stop.descriptor in ready:
                stops.discard(stop.descriptor)
                self._handle(core.StopRequested())
            self._poll_process(ready)
            self._handle(core.Tick(stall_s if stall_s > _MIN_STALL_S else 0.0))

    def _poll_process(self, ready: list[int]) -> None:
        process = self._process
        if process is None:
            return
        hung_up = False
        if process.channel.fileno() in ready:
            messages = self._receive(process)
            hung_up = messages is None
            self._handle_messages(messages or [])
        returncode = process.reap(hung_up=hung_up)
        if returncode is not None:
            if not hung_up:
                self._handle_messages(process.channel.receive_rest())
            # When JAX aborts a process, it prints the stack that matters; the process itself was only waiting.
            if returncode != -signal.SIGABRT and (trace := process.crash_trace()) is not None:
                logger.warning("the traceback of the model process at its exit:\n%s", trace)
            process.close(self._terminate_s)
            self._process = None
            self._handle(core.ModelProcessExited(returncode))

    def _receive(self, process: ModelProcess) -> list[Received] | None:
        try:
            return process.channel.receive()
        except ProtocolError as error:
            logger.warning("the model process sent a malformed message: %s", error)
            return None

    def _handle_messages(self, messages: list[Received]) -> None:
        for message, _ in messages:
            match message:
                case m.ModelNotice(level=level, text=text):
                    self._handle(core.NoticeReceived(level, text))
                case m.PhaseChanged(phase=phase):
                    self._handle(core.LoadingChanged(phase == "compiling"))
                case m.ModelHeartbeat():
                    self._handle(core.HeartbeatReceived())

    def _handle(self, event: core.Event) -> None:
        for action in self._core.handle(event, time.monotonic()):
            match action:
                case core.StartModelProcess():
                    self._process = ModelProcess("birdie_zmq.worker.distributed.model_server", self._environment)
                case core.StopModelProcess(kill):
                    if self._process is not None:
                        self._process.end(kill)
                case core.Log("warning", text):
                    logger.warning(text)
                case core.Log(_, text):
                    logger.info(text)
                case core.Stop():
                    self._is_done = True
