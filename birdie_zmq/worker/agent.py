"""The agent's I/O: the broker's socket, the model process and the clock. `core` makes all decisions."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from birdie_zmq._version import __version__
from birdie_zmq.errors import NotAllowed, ProtocolError, UnknownPeer, VersionMismatch
from birdie_zmq.processes.signals import StopSignals
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.sockets import Dealer, wait
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import ModelSpec
from birdie_zmq.worker import core
from birdie_zmq.worker.device_memory import DeviceMemory
from birdie_zmq.worker.model_process import ModelProcess

logger = logging.getLogger("birdie_zmq.worker")

_MIN_STALL_S = 3.0
"""An iteration of the loop that is later than this was delayed because the process, or its machine, was stopped."""

_REGISTER_S = 5.0
"""Seconds to wait for an answer before a registration is sent again: the broker may have died meanwhile."""

_MAX_PHASE_CHARACTERS = 1_000

_decode_from_broker = decoder(m.BrokerToWorker | m.Refusal)


class Agent:
    """The process that connects a broker and one model process.

    Args:
        dealer: The socket to the broker; the caller closes it.
        settings: Timeouts and limits.
        engine: The engine's name as the broker shows it, such as ``jax``.
        process_module: The main module of the model process.
        environment: The environment of the model process.
        api: The path of the user module that loads models, None for the built-in models.
        memory: The watcher of device memory, None where it cannot be watched.
        num_processes: The number of ranks of the process group that holds the model; this worker's process is rank 0.
    """

    def __init__(
        self,
        dealer: Dealer,
        settings: AgentSettings,
        *,
        engine: str,
        process_module: str,
        environment: Mapping[str, str],
        api: Path | None,
        memory: DeviceMemory | None = None,
        num_processes: int = 1,
    ) -> None:
        self._dealer = dealer
        self._settings = settings
        self._engine = engine
        self._process_module = process_module
        self._environment = environment
        self._api = api
        self._memory = memory
        self._core = core.AgentCore(settings, watches_memory=memory is not None, num_processes=num_processes)
        self._process: ModelProcess | None = None
        self._registered = False
        self._registered_at = 0.0
        self._is_done = False
        self._broker_seen_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.close(self._settings.terminate_s)
            self._process = None

    def run(self, stop: StopSignals, parent_pipe: int | None = None) -> None:
        """Run until a stop signal arrives and the running lease is done, or until the parent-death pipe closes.

        Then deregister from the broker and end the model process. Must run in the main thread, since the model process
        ends with the thread that started it. A second signal ends the agent at once.

        Args:
            stop: The stop signals.
            parent_pipe: The descriptor of the parent-death pipe, None for a worker that does not end with its parent.

        Raises:
            VersionMismatch: The broker speaks another version of the protocol.
            NotAllowed: The broker requires a key, does not authorise this worker's key, or has revoked it.
        """
        stops = {stop.descriptor} if parent_pipe is None else {stop.descriptor, parent_pipe}
        self._register()
        next_heartbeat = time.monotonic() + self._settings.heartbeat_s
        while not self._is_done:
            readable, writable = list(stops), []
            if self._process is not None:
                readable.append(self._process.channel.fileno())
                if self._process.channel.has_unsent:
                    writable.append(self._process.channel.fileno())
            ready = wait(self._dealer, next_heartbeat - time.monotonic(), readable, writable)
            if parent_pipe in ready:
                break
            if stop.descriptor in ready:
                stops.discard(stop.descriptor)
                self._handle(core.Drain())
            while (frame := self._dealer.receive()) is not None:
                self._handle_broker_frame(frame)
            self._poll_process(ready)
            stall_s = time.monotonic() - next_heartbeat
            if stall_s >= 0:
                next_heartbeat = time.monotonic() + self._settings.heartbeat_s
                self._tick(stall_s if stall_s > _MIN_STALL_S else 0.0)
        if self._registered:
            self._dealer.send(encode(m.CloseWorker()))

    # --- The broker --------------------------------------------------------------------------------------------------

    def _register(self) -> None:
        self._registered = False
        self._registered_at = time.monotonic()
        registration = m.RegisterWorker(
            package_version=__version__,
            engine=self._engine,
            host=socket.gethostname(),
            process_id=os.getpid(),
            capacity=self._settings.capacity,
            model=self._core.model,
        )
        self._dealer.send(encode(registration))

    def _tick(self, stall_s: float) -> None:
        """Advance the core's clock, then send a heartbeat, or register again where that is needed."""
        self._handle(core.Tick(stall_s))
        if self._core.waits_for_memory and self._memory is not None and self._memory.is_free():
            self._handle(core.MemoryFreed())
        self._broker_seen_at += stall_s
        if time.monotonic() - self._broker_seen_at > self._settings.broker_timeout_s:
            handshake_hint = self._dealer.handshake_hint
            logger.warning(
                "the broker sent nothing for %.0f s; reconnecting%s",
                self._settings.broker_timeout_s,
                "" if handshake_hint is None else f"; {handshake_hint}",
            )
            self._broker_seen_at = time.monotonic()
            self._handle(core.LeasesRevoked())
            self._dealer.reconnect()
            self._register()
        elif not self._registered:
            if time.monotonic() - self._registered_at > _REGISTER_S:
                if (handshake_hint := self._dealer.handshake_hint) is not None:
                    logger.warning("cannot register with the broker: %s", handshake_hint)
                self._register()
        else:
            phase = self._core.phase[:_MAX_PHASE_CHARACTERS]
            heartbeat = m.Heartbeat(phase=phase, model=self._core.model, computed=self._core.computed)
            self._dealer.send(encode(heartbeat))

    def _handle_broker_frame(self, frame: bytes) -> None:
        try:
            message = _decode_from_broker(frame)
        except VersionMismatch:
            raise
        except ProtocolError as error:
            logger.warning("ignored a malformed message of the broker: %s", error)
            return
        self._broker_seen_at = time.monotonic()
        match message:
            case m.WorkerRegistered():
                self._registered = True
                logger.info("registered with the broker (birdie-zmq %s)", message.package_version)
            case m.Lease():
                self._handle(core.LeaseReceived(message, frame))
            case m.CancelLease(lease=lease):
                self._handle(core.LeaseCancelled(lease))
            case m.Refusal(error=report):
                refusal = report.to_error()
                if isinstance(refusal, UnknownPeer):
                    # The messages before the new registration are refused as well, but one new registration is enough.
                    if self._registered:
                        self._handle(core.LeasesRevoked())
                        self._register()
                elif isinstance(refusal, VersionMismatch | NotAllowed):
                    raise refusal
                else:
                    logger.warning("the broker refused a message: %s", refusal)

    # --- The model process -------------------------------------------------------------------------------------------

    def _poll_process(self, ready: frozenset[int]) -> None:
        process = self._process
        if process is None:
            return
        hung_up = False
        if process.channel.has_unsent:
            process.channel.flush()
        if process.channel.fileno() in ready:
            try:
                messages = process.channel.receive()
            except ProtocolError as error:
                logger.warning("the model process sent a malformed message: %s", error)
                messages = None
            hung_up = messages is None
            for message, frame in messages or ():
                self._handle(core.ModelMessageReceived(message, frame))
        returncode = process.reap(hung_up=hung_up)
        if returncode is not None:
            self._receive_rest(process)
            trace = process.crash_trace()
            process.close(self._settings.terminate_s)
            self._process = None
            self._handle(core.ModelProcessExited(returncode, trace))

    def _receive_rest(self, process: ModelProcess) -> None:
        """Handle the last messages of the process: its exit can be noticed before the message that explains it is read."""
        try:
            for message, frame in process.channel.receive_rest():
                self._handle(core.ModelMessageReceived(message, frame))
        except ProtocolError as error:
            logger.warning("the last message of the model process is malformed: %s", error)

    def _handle(self, event: core.Event) -> None:
        for action in self._core.handle(event, time.monotonic()):
            match action:
                case core.Log("warning", text):
                    logger.warning(text)
                case core.Log(_, text):
                    logger.info(text)
                case core.SendToBroker(message):
                    self._dealer.send(encode(message))
                case core.ForwardToBroker(frame):
                    self._dealer.send(frame)
                case core.SendToModel(message):
                    if self._process is not None:
                        self._process.channel.send(message)
                case core.ForwardToModel(frame):
                    if self._process is not None:
                        self._process.channel.send_frame(frame)
                case core.StopModelProcess(kill):
                    if self._process is not None:
                        self._process.end(kill)
                case core.StartModelProcess(model, start_count):
                    self._start(model, start_count)
                case core.Stop():
                    self._is_done = True

    def _start(self, model: ModelSpec, start_count: int) -> None:
        if self._memory is not None:
            self._memory.record_baseline()
        self._process = ModelProcess(self._process_module, self._environment)
        logger.info("started model process %d for %s", self._process.pid, model)
        load = m.LoadModel(model=model, api=None if self._api is None else str(self._api), start_count=start_count)
        self._process.channel.send(load)
