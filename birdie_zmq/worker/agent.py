"""The agent's loop: the broker's socket, the model process, the clock. All decisions are in `state`."""

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

_STOPPED_S = 3.0
"""A loop that comes round so much too late was stopped, or its machine was."""

_REGISTER_S = 5.0
"""How long a registration may take before it is sent again: it may have gone to a broker that died."""

_MOST_PHASE = 1_000

_decode_from_broker = decoder(m.BrokerToWorker | m.Refusal)


class Agent:
    """Runs one worker.

    Args:
        dealer: The socket to the broker; it stays open.
        settings: Timeouts and bounds.
        engine: The name that the broker shows, such as ``jax``.
        process_module: The main module of the model process.
        environment: The environment of the model process.
        api: The page to load models from, None for the built-in one.
        memory: Watches the memory of the devices, None where it cannot be watched.
        processes: How many processes hold the model, of which this worker's is the first.
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
        processes: int = 1,
    ) -> None:
        self._dealer = dealer
        self._settings = settings
        self._engine = engine
        self._process_module = process_module
        self._environment = environment
        self._api = api
        self._memory = memory
        self._agent = core.AgentCore(settings, watches_memory=memory is not None, processes=processes)
        self._process: ModelProcess | None = None
        self._registered = False
        self._registered_at = 0.0
        self._is_done = False
        self._heard_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.close(self._settings.terminate_s)
            self._process = None

    def run(self, stop: StopSignals, lifeline: int | None = None) -> None:
        """Work until a stop signal, and then until the lease at work is done; or until the lifeline closes.

        Then say goodbye and end the model process. Must run in the main thread, since the model process ends with the
        thread that started it. A second signal ends the agent at once.

        Raises:
            VersionMismatch: The broker speaks another version of the protocol.
            NotAllowed: The broker does not let this worker's key in, or no longer, or wants one.
        """
        ends = {stop.descriptor} if lifeline is None else {stop.descriptor, lifeline}
        self._register()
        next_beat = time.monotonic() + self._settings.heartbeat_s
        while not self._is_done:
            readable, writable = list(ends), []
            if self._process is not None:
                readable.append(self._process.channel.fileno())
                if self._process.channel.has_unsent:
                    writable.append(self._process.channel.fileno())
            ready = wait(self._dealer, next_beat - time.monotonic(), readable, writable)
            if lifeline in ready:
                break
            if stop.descriptor in ready:
                ends.discard(stop.descriptor)
                self._handle(core.Drain())
            while (frame := self._dealer.receive()) is not None:
                self._from_broker(frame)
            self._from_process(ready)
            stall_s = time.monotonic() - next_beat
            if stall_s >= 0:
                next_beat = time.monotonic() + self._settings.heartbeat_s
                self._beat(stall_s if stall_s > _STOPPED_S else 0.0)
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
            model=self._agent.model,
        )
        self._dealer.send(encode(registration))

    def _beat(self, stall_s: float) -> None:
        self._handle(core.Tick(stall_s))
        if self._agent.waits_for_memory and self._memory is not None and self._memory.is_free():
            self._handle(core.MemoryFreed())
        self._heard_at += stall_s
        if time.monotonic() - self._heard_at > self._settings.broker_timeout_s:
            doubt = self._dealer.doubt
            logger.warning("the broker is silent; trying to reach it again%s", "" if doubt is None else f"; {doubt}")
            self._heard_at = time.monotonic()
            self._handle(core.LeasesLost())
            self._dealer.reconnect()
            self._register()
        elif not self._registered:
            if time.monotonic() - self._registered_at > _REGISTER_S:
                if (doubt := self._dealer.doubt) is not None:
                    logger.warning("there is no broker to register with: %s", doubt)
                self._register()
        else:
            agent = self._agent
            beat = m.Heartbeat(phase=agent.phase[:_MOST_PHASE], model=agent.model, computed=agent.computed)
            self._dealer.send(encode(beat))

    def _from_broker(self, frame: bytes) -> None:
        try:
            message = _decode_from_broker(frame)
        except VersionMismatch:
            raise
        except ProtocolError as error:
            logger.warning("ignored a message of the broker: %s", error)
            return
        self._heard_at = time.monotonic()
        match message:
            case m.WorkerRegistered():
                self._registered = True
                logger.info("registered with the broker (birdie-zmq %s)", message.package_version)
            case m.Lease():
                self._handle(core.LeaseReceived(message))
            case m.CancelLease(lease=lease):
                self._handle(core.LeaseCancelled(lease))
            case m.Refusal(error=report):
                refusal = report.to_error()
                if isinstance(refusal, UnknownPeer):
                    # Whatever was sent before the new registration is refused as well: one registration is enough.
                    if self._registered:
                        self._handle(core.LeasesLost())
                        self._register()
                elif isinstance(refusal, VersionMismatch | NotAllowed):
                    raise refusal
                else:
                    logger.warning("the broker refused a message: %s", refusal)

    # --- The model process -------------------------------------------------------------------------------------------

    def _from_process(self, ready: frozenset[int]) -> None:
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
                logger.warning("the model process sent what is no message: %s", error)
                messages = None
            hung_up = messages is None
            for message in messages or ():
                self._handle(core.ProcessSaid(message))
        returncode = process.reap(hung_up=hung_up)
        if returncode is not None:
            self._read_rest(process)
            trace = process.trace()
            process.close(self._settings.terminate_s)
            self._process = None
            self._handle(core.ProcessExited(returncode, trace))

    def _read_rest(self, process: ModelProcess) -> None:
        """Hear what the process said last: an exit can be noticed before the message that explains it is read."""
        try:
            for message in process.channel.receive_rest():
                self._handle(core.ProcessSaid(message))
        except ProtocolError as error:
            logger.warning("the model process ended in the middle of a message: %s", error)

    def _handle(self, event: core.Event) -> None:
        for action in self._agent.handle(event, time.monotonic()):
            match action:
                case core.Log("warning", text):
                    logger.warning(text)
                case core.Log(_, text):
                    logger.info(text)
                case core.TellBroker(message):
                    self._dealer.send(encode(message))
                case core.TellProcess(message):
                    if self._process is not None:
                        self._process.channel.send(message)
                case core.EndProcess(kill):
                    if self._process is not None:
                        self._process.end(kill)
                case core.StartProcess(model, started):
                    self._start(model, started)
                case core.Stop():
                    self._is_done = True

    def _start(self, model: ModelSpec, started: int) -> None:
        if self._memory is not None:
            self._memory.note()
        self._process = ModelProcess(self._process_module, self._environment)
        logger.info("model process %d is for %s", self._process.pid, model)
        load = m.LoadModel(model=model, api=None if self._api is None else str(self._api), start_count=started)
        self._process.channel.send(load)
