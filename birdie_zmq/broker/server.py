"""The broker's loop: bytes in, the state machine, bytes out. All decisions are in `state`."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from birdie_zmq.broker.core import BrokerCore
from birdie_zmq.broker.events import (
    Drain,
    Event,
    Log,
    Received,
    Revoked,
    Send,
    Stop,
    Tick,
    Unreachable,
    Unreadable,
    Unsendable,
)
from birdie_zmq.errors import BirdieError, NotAllowed, ProtocolError
from birdie_zmq.processes.signals import StopSignals
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.messages import ClientMessage, WorkerMessage
from birdie_zmq.protocol.sockets import Arrival, Router, wait
from birdie_zmq.settings import BrokerSettings

logger = logging.getLogger("birdie_zmq.broker")

_STOPPED_S = 3.0
"""A loop that comes round so much too late was stopped, or its machine was."""

_GIVEN_BY_ROUTER = b"\0"
"""How a routing id begins that the ROUTER has made up."""

_decode = decoder(ClientMessage | WorkerMessage)


def serve(
    router: Router,
    settings: BrokerSettings,
    stop: StopSignals,
    lifeline: int | None = None,
    look: Callable[[BrokerCore, float], None] | None = None,
) -> bool:
    """Serve until a stop signal, and then as long as workers finish what they hold; or until the lifeline closes.

    Args:
        router: The bound socket; it stays open.
        settings: Timeouts and bounds.
        stop: Entered by the caller, in the main thread. A second signal ends the process at once.
        lifeline: A descriptor that becomes readable when the parent is gone; None for a broker of its own.
        look: Called each tick with the broker, which it may look at until it returns, and the time.

    Returns:
        Whether the lifeline closed.
    """
    broker = BrokerCore(settings)
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
            if _act(router, broker, _read(router, arrival)):
                return False
            if time.monotonic() >= next_tick:
                break  # However much comes, the clock goes on and a signal is heard.
        stall_s = time.monotonic() - next_tick
        if stall_s >= 0:
            next_tick = time.monotonic() + settings.tick_s
            _watch_keys(router, broker)
            if _act(router, broker, Tick(stall_s if stall_s > _STOPPED_S else 0.0)):
                return False
            if look is not None:
                look(broker, time.monotonic())


def _read(router: Router, arrival: Arrival) -> Event:
    peer, frame, key = arrival
    try:
        sender = None if router.keys is None else router.keys.holder(key)
        if sender is not None and not peer.startswith(_GIVEN_BY_ROUTER):
            raise NotAllowed(f"{sender} may not choose the routing id of its connection, which could be another's")
        return Received(peer, _decode(frame), len(frame), sender)
    except ProtocolError as error:
        return Unreadable(peer, error)
    except MemoryError:
        return Unreadable(peer, ProtocolError("the broker has no memory left to read this message (--memory-limit)"))


def _watch_keys(router: Router, broker: BrokerCore) -> None:
    """Say who was not let in, and let the broker forget whose key is gone."""
    if (line := router.refused_connections()) is not None:
        logger.warning(line)
    if router.keys is not None and (revoked := router.keys.take_revoked()):
        _act(router, broker, Revoked(revoked))


def _act(router: Router, broker: BrokerCore, event: Event) -> bool:
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
                        events.append(Unsendable(peer, message, error))
                        continue
                    if not router.send(peer, frame):
                        events.append(Unreachable(peer))
    return stops
