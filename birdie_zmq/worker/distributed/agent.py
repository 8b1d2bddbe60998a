"""The loop of an agent that follows: its model process, the clock, no broker. All decisions are in `follower_state`."""

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
from birdie_zmq.worker.distributed import core as state
from birdie_zmq.worker.model_process import ModelProcess

logger = logging.getLogger("birdie_zmq.worker")

_TICK_S = 0.5

_STOPPED_S = 3.0
"""A loop that comes round so much too late was stopped, or its machine was."""


class FollowerAgent:
    """Runs the model process of one host that follows.

    Args:
        place: The place of the process in its group.
        environment: The environment of the model process.
        settings: How long it may be silent, and take to end by itself.
    """

    def __init__(self, place: RankInfo, environment: Mapping[str, str], settings: AgentSettings) -> None:
        self._environment = environment
        self._terminate_s = settings.terminate_s
        self._agent = state.FollowerCore(str(place), settings)
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

    def run(self, stop: StopSignals, lifeline: int | None = None) -> None:
        """Work until a stop signal, or until the lifeline closes. Must run in the main thread."""
        ends = {stop.descriptor} if lifeline is None else {stop.descriptor, lifeline}
        self._handle(state.Begin())
        while not self._is_done:
            watched = [*ends] if self._process is None else [*ends, self._process.channel.fileno()]
            began = time.monotonic()
            ready, _, _ = select.select(watched, [], [], _TICK_S)
            stall_s = time.monotonic() - began - _TICK_S
            if lifeline in ready:
                return
            if stop.descriptor in ready:
                ends.discard(stop.descriptor)
                self._handle(state.Stop())
            self._from_process(ready)
            self._handle(state.Tick(stall_s if stall_s > _STOPPED_S else 0.0))

    def _from_process(self, ready: list[int]) -> None:
        process = self._process
        if process is None:
            return
        hung_up = False
        if process.channel.fileno() in ready:
            messages = self._heard(process)
            hung_up = messages is None
            self._said(messages or [])
        returncode = process.reap(hung_up=hung_up)
        if returncode is not None:
            if not hung_up:
                self._said(process.channel.receive_rest())
            # What JAX ends by SIGABRT has written its own stack; the process itself was waiting.
            if returncode != -signal.SIGABRT and (trace := process.trace()) is not None:
                logger.warning("the model process was at:\n%s", trace)
            process.close(self._terminate_s)
            self._process = None
            self._handle(state.Exited(returncode))

    def _heard(self, process: ModelProcess) -> list[m.ModelProcessMessage] | None:
        try:
            return process.channel.receive()
        except ProtocolError as error:
            logger.warning("the model process sent what is no message: %s", error)
            return None

    def _said(self, messages: list[m.ModelProcessMessage]) -> None:
        for message in messages:
            match message:
                case m.ModelNotice(level=level, text=text):
                    self._handle(state.Said(level, text))
                case m.PhaseChanged(phase=phase):
                    self._handle(state.Loads(phase == "compiling"))
                case m.ModelHeartbeat():
                    self._handle(state.ModelHeartbeat())

    def _handle(self, event: state.Event) -> None:
        for action in self._agent.handle(event, time.monotonic()):
            match action:
                case state.Start():
                    self._process = ModelProcess("birdie_zmq.worker.distributed.model_server", self._environment)
                case state.End(kill):
                    if self._process is not None:
                        self._process.end(kill)
                case state.Log("warning", text):
                    logger.warning(text)
                case state.Log(_, text):
                    logger.info(text)
                case state.Done():
                    self._is_done = True
