"""The server of the broker: it decodes frames, passes events to the core, and carries out the actions of the core."""

from __future__ import annotations

import logging
import secrets
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
from birdie_zmq.processes.ticker import Ticker
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.messages import ClientMessage, WorkerMessage
from birdie_zmq.protocol.router import ReceivedFrame, Router
from birdie_zmq.protocol.transport import wait
from birdie_zmq.settings import BrokerSettings

logger = logging.getLogger("birdie_zmq.broker")

_MAX_FIRST_LEASE = 2**52
"""The first lease of a broker has a random number below this: the leases of two brokers are then never equal."""

_GENERATED_ID_PREFIX = b"\0"
"""First byte of a routing id that the ROUTER generated; libzmq reserves it."""

_decode = decoder(ClientMessage | WorkerMessage)


def serve(
    router: Router,
    settings: BrokerSettings,
    stop: StopSignals,
    parent_pipe: int | None = None,
    on_tick: Callable[[BrokerCore, float], None] | None = None,
) -> bool:
    """Serve until a stop signal and until workers have finished their leases, or until the parent process is gone.

    Args:
        router: The bound socket; it stays open.
        settings: Timeouts and limits.
        stop: Stop signals, entered by the caller in the main thread. A second signal ends the process at once.
        parent_pipe: A descriptor that becomes readable when the parent process is gone; None for a standalone broker.
        on_tick: Called at each tick with the core, which it may read until it returns, and the monotonic time.

    Returns:
        Whether the parent process is gone.
    """
    core = BrokerCore(settings, first_lease=secrets.randbelow(_MAX_FIRST_LEASE))
    stop_descriptors = {stop.descriptor} if parent_pipe is None else {stop.descriptor, parent_pipe}
    ticker = Ticker(settings.tick_s, first_at=time.monotonic())
    while True:
        ready = wait(router, ticker.remaining_s(time.monotonic()), readable=stop_descriptors)
        if parent_pipe in ready:
            return True
        if stop.descriptor in ready:
            stop_descriptors.discard(stop.descriptor)
            if _dispatch(router, core, Drain()):
                return False
        while (arrival := router.receive()) is not None:
            if _dispatch(router, core, _to_event(router, arrival)):
                return False
            if not ticker.remaining_s(time.monotonic()):
                break  # Ticks and stop signals must not starve, however many messages arrive.
        if (stall_s := ticker.tick(time.monotonic())) is not None:
            router.restore_path()
            _poll_keys(router, core)
            if _dispatch(router, core, Tick(stall_s)):
                return False
            if on_tick is not None:
                on_tick(core, time.monotonic())


def _to_event(router: Router, arrival: ReceivedFrame) -> Event:
    """Decode a received frame, and find the principal of its key."""
    peer, frame, key = arrival
    try:
        sender = None if router.keys is None else router.keys.principal(key)
        if sender is not None and not peer.startswith(_GENERATED_ID_PREFIX):
            raise NotAllowed(f"{sender} may not choose the routing id of its connection, which could be another's")
        return Received(peer, _decode(frame), len(frame), sender)
    except ProtocolError as error:
        return Unreadable(peer, error)
    except MemoryError:
        return Unreadable(
            peer, ProtocolError("the broker has no memory left to read this message; its --memory-limit is reached")
        )


def _poll_keys(router: Router, core: BrokerCore) -> None:
    """Log connections that were refused, and pass revoked keys to the core."""
    if (line := router.refused_connections()) is not None:
        logger.warning(line)
    if router.keys is not None and (revoked := router.keys.take_revoked()):
        _dispatch(router, core, Revoked(revoked))


def _dispatch(router: Router, core: BrokerCore, event: Event) -> bool:
    """Pass an event to the core and carry out the actions that it returns; return whether the broker is to stop.

    A failed send is an event of its own, which is handled in turn.
    """
    events = deque([event])
    is_stopped = False
    while events:
        for action in core.handle(events.popleft(), time.monotonic()):
            match action:
                case Log("warning", text):
                    logger.warning(text)
                case Log(_, text):
                    logger.info(text)
                case Stop():
                    is_stopped = True
                case Send(peer, message):
                    try:
                        frame = encode(message)
                    except BirdieError as error:
                        events.append(Unsendable(peer, message, error))
                        continue
                    if not router.send(peer, frame):
                        events.append(Unreachable(peer))
    return is_stopped
