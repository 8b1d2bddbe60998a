"""What can happen to a broker, and what it can want done because of it."""

from __future__ import annotations

from dataclasses import dataclass

from birdie_zmq.errors import BirdieError, ProtocolError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.security.principals import Principal
from birdie_zmq.types import Level


@dataclass(frozen=True)
class Received:
    """A peer sent a message, in a frame of ``size_bytes`` and under a key of ``sender``, where there are keys."""

    peer: bytes
    message: m.ClientMessage | m.WorkerMessage
    size_bytes: int = 0
    sender: Principal | None = None


@dataclass(frozen=True)
class Unreadable:
    """A peer sent bytes that are no message."""

    peer: bytes
    error: ProtocolError


@dataclass(frozen=True)
class Revoked:
    """The keys of these are let in no more."""

    holders: frozenset[Principal]


@dataclass(frozen=True)
class Unreachable:
    """A message could not be delivered: the peer's connection is gone."""

    peer: bytes


@dataclass(frozen=True)
class Unsendable:
    """A message cannot be put into a frame: with what was added to it, it is over the limits of one."""

    peer: bytes
    message: m.BrokerToClient | m.BrokerToWorker | m.Refusal
    error: BirdieError


@dataclass(frozen=True)
class Tick:
    """Time has passed.

    ``late_s`` is how much more of it than should have: this process itself was stopped, and no peer is to blame for
    what it could not hear meanwhile.
    """

    stall_s: float = 0.0


@dataclass(frozen=True)
class Drain:
    """The broker is to stop in good order."""


Event = Received | Unreadable | Revoked | Unreachable | Unsendable | Tick | Drain


@dataclass(frozen=True)
class Send:
    """Deliver a message to a peer."""

    peer: bytes
    message: m.BrokerToClient | m.BrokerToWorker | m.Refusal


@dataclass(frozen=True)
class Log:
    """Tell the person who watches the broker."""

    level: Level
    text: str


@dataclass(frozen=True)
class Stop:
    """Nothing is left to wait for."""


Action = Send | Log | Stop
