"""The agent's I/O: the broker's socket, the model process and the clock. `core` makes all decisions."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from birdie_zmq._version import __version__
from birdie_zmq.errors import NotAllowed, ProtocolError, UnknownPeer, VersionMismatch
from birdie_zmq.processes.signals import StopSignals
from birdie_zmq.processes.ticker import Ticker
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.dealer import Dealer
from birdie_zmq.protocol.transport import wait
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import REQUEST_ARGUMENTS, ModelSpec
from birdie_zmq.worker import events
from birdie_zmq.worker.core import AgentCore
from birdie_zmq.worker.device_memory import DeviceMemory
from birdie_zmq.worker.engine_registry import engine_name
from birdie_zmq.worker.model_process import ModelProcess

logger = logging.getLogger("birdie_zmq.worker")

_REGISTER_S = 5.0
"""Seconds to wait for an answer before a registration is sent again: the broker may have died meanwhile."""

_MAX_PHASE_CHARACTERS = 1_000

_decode_from_broker = decoder(m.BrokerToWorker | m.Refusal)


class Agent:
    """The process that connects a broker and one model process.

    Args:
        dealer: The socket to the broker; the caller closes it.
        settings: Timeouts and limits.
        config: The options that each model process needs.
        environment: The environment of the model process.
        memory: The watcher of device memory, None where it cannot be watched.
    """

    def __init__(
        self,
        dealer: Dealer,
        settings: AgentSettings,
        config: m.WorkerConfig,
        environment: Mapping[str, str],
        memory: DeviceMemory | None = None,
    ) -> None:
        self._dealer = dealer
        self._settings = settings
        self._config = config
        self._environment = environment
        self._memory = memory
        num_processes = 1 if config.rank is None else config.rank.num_processes
        self._core = AgentCore(
            settings,
            watches_memory=memory is not None,
            num_processes=num_processes,
            request_arguments=REQUEST_ARGUMENTS if config.api is None else frozenset(),
            swaps_weights=config.swap_weights,
        )
        self._process: ModelProcess | None = None
        self._registered = False
        self._registered_at = 0.0
        self._logged_hint: str | None = None
        self._announced = self._core.request_arguments
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
        interval_s = self._settings.heartbeat_s
        ticker = Ticker(interval_s, first_at=time.monotonic() + interval_s)
        while not self._is_done:
            readable, writable = list(stops), []
            if self._process is not None:
                readable.append(self._process.channel.fileno())
                if self._process.channel.has_unsent:
                    writable.append(self._process.channel.fileno())
            ready = wait(self._dealer, ticker.remaining_s(time.monotonic()), readable, writable)
            if parent_pipe in ready:
                break
            if stop.descriptor in ready:
                stops.discard(stop.descriptor)
                self._handle(events.Drain())
            while (frame := self._dealer.receive()) is not None:
                self._handle_broker_frame(frame)
            self._poll_process(ready)
            if (stall_s := ticker.tick(time.monotonic())) is not None:
                self._tick(stall_s)
        if self._registered:
            self._dealer.send(encode(m.CloseWorker()))

    # --- The broker --------------------------------------------------------------------------------------------------

    def _register(self) -> None:
        self._registered = False
        self._registered_at = time.monotonic()
        registration = m.RegisterWorker(
            package_version=__version__,
            engine=engine_name(self._config.engine),
            host=socket.gethostname(),
            process_id=os.getpid(),
            capacity=self._settings.capacity,
            model=self._core.model,
            request_arguments=self._core.request_arguments,
        )
        self._announced = registration.request_arguments
        self._dealer.send(encode(registration))

    def _tick(self, stall_s: float) -> None:
        """Advance the core's clock, then send a heartbeat, or register again where that is needed."""
        self._handle(events.Tick(stall_s))
        if self._core.waits_for_memory and self._memory is not None and self._memory.is_free():
            self._handle(events.MemoryFreed())
        self._broker_seen_at += stall_s
        if time.monotonic() - self._broker_seen_at > self._settings.broker_timeout_s:
            hint = self._dealer.hint
            logger.warning(
                "the broker sent nothing for %.0f s; reconnecting%s",
                self._settings.broker_timeout_s,
                "" if hint is None else f"; {hint}",
            )
            self._broker_seen_at = time.monotonic()
            self._handle(events.LeasesRevoked())
            self._dealer.reconnect()
            self._register()
        elif not self._registered:
            if time.monotonic() - self._registered_at > _REGISTER_S:
                if (hint := self._dealer.hint) is not None and hint != self._logged_hint:
                    self._logged_hint = hint
                    logger.warning("cannot register with the broker: %s", hint)
                self._register()
        else:
            self._send_heartbeat()

    def _send_heartbeat(self) -> None:
        heartbeat = m.Heartbeat(
            phase=self._core.phase[:_MAX_PHASE_CHARACTERS],
            model=self._core.model,
            request_arguments=self._core.request_arguments,
            computed=self._core.computed,
        )
        self._announced = heartbeat.request_arguments
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
                self._logged_hint = None
                logger.info("registered with the broker (birdie-zmq %s)", message.package_version)
            case m.Lease():
                self._handle(events.LeaseReceived(message, frame))
            case m.CancelLease(lease=lease):
                self._handle(events.LeaseCancelled(lease))
            case m.Refusal(error=report):
                refusal = report.to_error()
                if isinstance(refusal, UnknownPeer):
                    # The messages before the new registration are refused as well, but one new registration is enough.
                    if self._registered:
                        self._handle(events.LeasesRevoked())
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
                self._handle(events.ModelMessageReceived(message, frame))
        returncode = process.reap(hung_up=hung_up)
        if returncode is not None:
            self._receive_rest(process)
            trace = process.crash_trace()
            process.close(self._settings.terminate_s)
            self._process = None
            self._handle(events.ModelProcessExited(returncode, trace))

    def _receive_rest(self, process: ModelProcess) -> None:
        """Handle the last messages of the process: its exit can be noticed before the message that explains it is read."""
        try:
            for message, frame in process.channel.receive_rest():
                self._handle(events.ModelMessageReceived(message, frame))
        except ProtocolError as error:
            logger.warning("the last message of the model process is malformed: %s", error)

    def _handle(self, event: events.Event) -> None:
        for action in self._core.handle(event, time.monotonic()):
            match action:
                case events.Log("warning", text):
                    logger.warning(text)
                case events.Log(_, text):
                    logger.info(text)
                case events.SendToBroker(message):
                    self._dealer.send(encode(message))
                case events.ForwardToBroker(frame):
                    self._dealer.send(frame)
                case events.SendToModel(message):
                    if self._process is not None:
                        self._process.channel.send(message)
                case events.ForwardToModel(frame):
                    if self._process is not None:
                        self._process.channel.send_frame(frame)
                case events.StopModelProcess(kill):
                    if self._process is not None:
                        self._process.end(kill)
                case events.StartModelProcess(model, start_count):
                    self._start(model, start_count)
                case events.Stop():
                    self._is_done = True
        # Before the answers of the process, so that the broker does not count a model switch for the next lease.
        if self._registered and self._core.request_arguments != self._announced:
            self._send_heartbeat()

    def _start(self, model: ModelSpec, start_count: int) -> None:
        if self._memory is not None:
            self._memory.record_baseline()
        self._process = ModelProcess("birdie_zmq.worker.model_server", self._environment)
        logger.info("started model process %d for %s", self._process.pid, model)
        self._process.channel.send(m.StartModel(model=model, start_count=start_count, config=self._config))
