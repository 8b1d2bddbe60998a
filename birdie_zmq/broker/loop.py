"""The broker's loop: bytes in, the state machine, bytes out. All decisions are in `state`."""

from __future__ import annotations

import logging
import time
from collections import deque

from birdie_zmq.broker.state import Broker, Event, Log, Received, Send, Tick, Unreachable, Unreadable
from birdie_zmq.config import BrokerSettings
from birdie_zmq.errors import BirdieError, ProtocolError
from birdie_zmq.signals import StopSignals
from birdie_zmq.wire.codec import decoder, encode
from birdie_zmq.wire.messages import ClientMessage, ErrorReport, Refusal, WorkerMessage
from birdie_zmq.wire.transport import Router, wait

logger = logging.getLogger("birdie_zmq.broker")

_decode = decoder(ClientMessage | WorkerMessage)


def serve(router: Router, settings: BrokerSettings, stop: StopSignals, lifeline: int | None = None) -> None:
    """Serve until a stop signal, or until the lifeline closes.

    Args:
        router: The bound socket; it stays open.
        settings: Timeouts and bounds.
        stop: Entered by the caller, in the main thread.
        lifeline: A descriptor that becomes readable when the parent is gone; None for a broker of its own.
    """
    broker = Broker(settings)
    ends = [stop.descriptor] if lifeline is None else [stop.descriptor, lifeline]
    next_tick = time.monotonic()
    while True:
        ready = wait(router, next_tick - time.monotonic(), readable=ends)
        if ready:
            return
        while (arrival := router.receive()) is not None:
            _act(router, broker, _read(*arrival))
        if time.monotonic() >= next_tick:
            next_tick = time.monotonic() + settings.tick_s
            _act(router, broker, Tick())


def _read(peer: bytes, frame: bytes) -> Event:
    try:
        return Received(peer, _decode(frame))
    except ProtocolError as error:
        return Unreadable(peer, error)


def _act(router: Router, broker: Broker, event: Event) -> None:
    """Let the broker handle an event, and whatever follows from carrying out what it says."""
    events = deque([event])
    while events:
        for action in broker.handle(events.popleft(), time.monotonic()):
            match action:
                case Log("warning", text):
                    logger.warning(text)
                case Log(_, text):
                    logger.info(text)
                case Send(peer, message):
                    try:
                        frame = encode(message)
                    except BirdieError as error:
                        frame = encode(Refusal(error=ErrorReport.of(error)))
                    if not router.send(peer, frame):
                        events.append(Unreachable(peer))
