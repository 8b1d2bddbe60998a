"""Which address of a host name a peer connects to: one after the other, until a broker completes the handshake. Pure.

::

    LookingUp ──addresses──▶ Trying ──handshake──▶ Connected ──disconnected──▶ Pausing
        ▲                     │  ▲ │                                              │
        │       next address──┘──┘ └──after the last address──▶ Pausing           │
        └──────────────────────────────────────────────────────────┴──────────────┘

libzmq connects to the first address of a name only, and a DEALER with several connections would distribute its messages over
all of them. The name is looked up again before each pass over its addresses, since the broker may start on another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from birdie_zmq.protocol.endpoints import TcpEndpoint

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
"""The pause after the first failed pass over the addresses; it doubles with each further pass."""
_FIRST_TRY_S, _LONGEST_TRY_S = 0.5, 8.0
"""How long an address may take to accept a connection while there are others; it doubles with each further pass."""
_HANDSHAKE_TRIES = 4
"""A handshake may take this many times as long as a connection."""


@dataclass(frozen=True)
class LookUp:
    """Look up the addresses of the name, and pass them to `AddressRotation.looked_up`."""


@dataclass(frozen=True)
class Connect:
    """Connect to this address only; a connection to another address is closed."""

    address: TcpEndpoint


RotationAction = LookUp | Connect


@dataclass(frozen=True)
class _LookingUp:
    pass


@dataclass
class _Trying:
    remaining: list[TcpEndpoint]
    until: float


@dataclass(frozen=True)
class _Connected:
    pass


@dataclass(frozen=True)
class _Pausing:
    until: float


@dataclass
class AddressRotation:
    """The addresses of one host name and the state of the connection. All times are seconds on a monotonic clock.

    Attributes:
        host: The host name, for messages.
        address: The address that the socket is connected to, or tries to connect to; None before the first one. Events
            concern this one, unless `is_given_up`.
    """

    host: str
    address: TcpEndpoint | None = field(init=False, default=None)
    _state: _LookingUp | _Trying | _Connected | _Pausing = field(
        init=False, default_factory=lambda: _Pausing(-math.inf)
    )
    _passes: int = field(init=False, default=0)
    _known: list[TcpEndpoint] = field(init=False, default_factory=list)
    _given_up: set[str] = field(init=False, default_factory=set)
    _outcomes: dict[TcpEndpoint, str] = field(init=False, default_factory=dict)
    _lookup_error: str | None = field(init=False, default="it has not been looked up yet")

    def tick(self, now: float) -> list[RotationAction]:
        """Handle the passage of time."""
        match self._state:
            case _Pausing(until) if now >= until:
                self._state = _LookingUp()
                return [LookUp()]
            case _Trying(until=until) if now >= until:
                return self._try_next("no answer", now)
        return []

    def remaining_s(self, now: float) -> float:
        """Return the seconds until `tick` has something to do, infinity if only an event can change the state."""
        match self._state:
            case _Pausing(until) | _Trying(until=until):
                return max(0.0, until - now)
        return math.inf

    def looked_up(self, result: Sequence[TcpEndpoint] | str, now: float) -> list[RotationAction]:
        """Handle the result of a lookup: the addresses, or why there are none."""
        if not isinstance(self._state, _LookingUp):
            return []  # The connection to the last address has been established meanwhile.
        if isinstance(result, str):
            self._lookup_error = result
            return self._pause(now)
        self._lookup_error = None
        self._known = list(result)
        self._outcomes = {address: self._outcomes[address] for address in result if address in self._outcomes}
        return self._try(self._known, now)

    def is_given_up(self, address: str) -> bool:
        """Return whether an event of this address, written as libzmq does, comes from a connection that was given up."""
        return address != str(self.address) and address in self._given_up

    def accepted(self) -> None:
        """Handle an accepted connection to `address`, on which the handshake begins."""
        if isinstance(self._state, _Trying):
            self._state.until += (_HANDSHAKE_TRIES - 1) * self._try_s

    def established(self) -> None:
        """Handle a completed handshake with `address`."""
        self._state, self._passes = _Connected(), 0
        self._outcomes.clear()

    def failed(self, now: float, reason: str) -> list[RotationAction]:
        """Handle a failed attempt to connect to `address`, or the end of the connection."""
        match self._state:
            case _Trying():
                return self._try_next(reason, now)
            case _Connected():
                return self._pause(now)
        return []

    @property
    def hint(self) -> str | None:
        """What was tried and failed, None while connected."""
        if isinstance(self._state, _Connected):
            return None
        if self._lookup_error is not None:
            return f"the name {self.host} does not resolve ({self._lookup_error})"
        tried = ", ".join(f"{address} ({self._outcomes.get(address, 'not tried yet')})" for address in self._known)
        return f"addresses tried for {self.host}: {tried}"

    @property
    def _try_s(self) -> float:
        return min(_LONGEST_TRY_S, math.ldexp(_FIRST_TRY_S, min(self._passes, 16)))

    def _try(self, addresses: Sequence[TcpEndpoint], now: float) -> list[RotationAction]:
        if not addresses:
            return self._pause(now)
        previous, (self.address, *remaining) = self.address, addresses
        # A second address is worth an early attempt. After the limit of the only one, it is merely looked up again.
        limit_s = self._try_s if len(self._known) > 1 else _LONGEST_TRY_S
        self._state = _Trying(remaining, now + limit_s)
        self._outcomes.setdefault(self.address, "no answer yet")
        if self.address == previous:
            return []
        self._given_up.add(str(previous))
        return [Connect(self.address)]

    def _try_next(self, reason: str, now: float) -> list[RotationAction]:
        assert isinstance(self._state, _Trying)
        assert self.address is not None
        self._outcomes[self.address] = reason
        return self._try(self._state.remaining, now)

    def _pause(self, now: float) -> list[RotationAction]:
        pause_s = min(_LONGEST_PAUSE_S, math.ldexp(_FIRST_PAUSE_S, min(self._passes, 16)))
        self._passes += 1
        self._state = _Pausing(now + pause_s)
        return []
