"""The broker's loop: bytes in, the state machine, bytes out. All decisions are in `state`."""

from __future__ import annotations

import logging
import time
from collections import deque

from birdie_zmq.broker.state import Broker, Drain, Event, Log, Received, Send, Stop, Tick, Unreachable, Unreadable
from birdie_zmq.config import BrokerSettings
from birdie_zmq.errors import BirdieError, ProtocolError
from birdie_zmq.signals import StopSignals
from birdie_zmq.wire.codec import decoder, encode
from birdie_zmq.wire.messages import ClientMessage, ErrorReport, Refusal, WorkerMessage
from birdie_zmq.wire.transport import Router, wait

logger = logging.getLogger("birdie_zmq.broker")

_STOPPED_S = 3.0
"""A loop that comes round so much too late was stopped, or its machine was."""

_decode = decoder(ClientMessage | WorkerMessage)


def serve(router: Router, settings: BrokerSettings, stop: StopSignals, lifeline: int | None = None) -> bool:
    """Serve until a stop signal, and then as long as workers finish what they hold; or until the lifeline closes.

    Args:
        router: The bound socket; it stays open.
        settings: Timeouts and bounds.
        stop: Entered by the caller, in the main thread. A second signal ends the process at once.
        lifeline: A descriptor that becomes readable when the parent is gone; None for a broker of its own.

    Returns:
        Whether the lifeline closed.
    """
    broker = Broker(settings)
    ends = {stop.descriptor} if lifeline is None else {stop.descriptor, lifeline}
    next_tick = time.monotonic()
    while True:
        ready = wait(router, next_tick - time.monotonic(), readable=ends)
        if lifeline in ready:
            return True
        if stop.descriptor in ready:
            ends.discard(stop.descriptor)
            if _act(router, broker, Drain()):
                return False
        while (arrival := router.receive()) is not None:
            if _act(router, broker, _read(*arrival)):
                return False
        late_s = time.monotonic() - next_tick
        if late_s >= 0:
            next_tick = time.monotonic() + settings.tick_s
            if _act(router, broker, Tick(late_s if late_s > _STOPPED_S else 0.0)):
                return False


def _read(peer: bytes, frame: bytes) -> Event:
    try:
        return Received(peer, _decode(frame))
    except ProtocolError as error:
        return Unreadable(peer, error)


def _act(router: Router, broker: Broker, event: Event) -> bool:
    """Let the broker handle an event, and whatever follows from carrying out what it says; whether it is to stop."""
    events = deque([event])
    stops = False
    while events:
        for action in broker.handle(events.popleft(), time.monotonic()):
            match action:
                case Log("warning", text):
                    logger.warning(text)
                case Log(_, text):
                    logger.info(text)
                case Stop():
                    stops = True
                case Send(peer, message):
                    try:
                        frame = encode(message)
                    except BirdieError as error:
                        frame = encode(Refusal(error=ErrorReport.of(error)))
                    if not router.send(peer, frame):
                        events.append(Unreachable(peer))
    return stops
