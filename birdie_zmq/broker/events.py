"""Events that the broker core handles, and the actions that it returns."""

from __future__ import annotations

from dataclasses import dataclass

from birdie_zmq.errors import BirdieError, ProtocolError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.security.principals import Principal
from birdie_zmq.types import Level


@dataclass(frozen=True)
class Received:
    """A peer sent a message in a frame of ``size_bytes``; ``sender`` is the principal of its key, if there are keys."""

    peer: bytes
    message: m.ClientMessage | m.WorkerMessage
    size_bytes: int = 0
    sender: Principal | None = None


@dataclass(frozen=True)
class Unreadable:
    """A peer sent bytes that cannot be decoded as a message."""

    peer: bytes
    error: ProtocolError


@dataclass(frozen=True)
class Revoked:
    """The keys of these principals were removed from the allow list."""

    principals: frozenset[Principal]


@dataclass(frozen=True)
class Unreachable:
    """A message could not be delivered because the peer's connection is closed."""

    peer: bytes


@dataclass(frozen=True)
class Unsendable:
    """A message cannot be encoded: with the fields that the broker added, it exceeds the limits of a frame."""

    peer: bytes
    message: m.BrokerToClient | m.BrokerToWorker | m.Refusal
    error: BirdieError


@dataclass(frozen=True)
class Tick:
    """Time passed.

    ``stall_s`` is the delay of this tick beyond its interval, in seconds. The broker's own process was stopped for that
    time and could not receive messages, so it does not count towards the timeouts of peers.
    """

    stall_s: float = 0.0


@dataclass(frozen=True)
class Drain:
    """The broker must let its workers finish their leases, and stop."""


Event = Received | Unreadable | Revoked | Unreachable | Unsendable | Tick | Drain


@dataclass(frozen=True)
class Send:
    """Deliver a message to a peer."""

    peer: bytes
    message: m.BrokerToClient | m.BrokerToWorker | m.Refusal


@dataclass(frozen=True)
class Log:
    """Write a line to the log of the broker."""

    level: Level
    text: str


@dataclass(frozen=True)
class Stop:
    """The broker has nothing left to wait for and can exit."""


Action = Send | Log | Stop
