"""The leases that an agent holds, in order of arrival."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ModelSpec


@dataclass(eq=False)
class HeldLease:
    """A lease that the agent has and the broker waits for, and the frame that brought it.

    ``is_sent`` tells whether the model process has it, and ``answered`` holds the items that are answered.
    """

    lease: m.Lease
    frame: bytes
    is_sent: bool = False
    answered: set[int] = field(default_factory=set)

    @property
    def number(self) -> int:
        """The broker's number of the lease."""
        return self.lease.lease

    @property
    def is_answered(self) -> bool:
        """Whether every item is answered."""
        return len(self.answered) == len(self.lease.work)


class HeldLeases:
    """The leases of an agent, by number."""

    def __init__(self) -> None:
        self._leases: dict[int, HeldLease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[HeldLease]:
        """Iterate over a copy, so that leases may be removed meanwhile."""
        return iter(list(self._leases.values()))

    def __contains__(self, number: int) -> bool:
        return number in self._leases

    def add(self, lease: m.Lease, frame: bytes) -> None:
        """Add a lease behind the others."""
        self._leases[lease.lease] = HeldLease(lease, frame)

    def remove(self, held: HeldLease) -> None:
        """Remove a lease, which is held."""
        del self._leases[held.number]

    def get(self, number: int) -> HeldLease | None:
        """Return the lease of a number, or None."""
        return self._leases.get(number)

    def sent(self, number: int) -> HeldLease | None:
        """Return the lease of a number if the model process has it, else None."""
        held = self._leases.get(number)
        return held if held is not None and held.is_sent else None

    @property
    def first(self) -> HeldLease | None:
        """The oldest lease, or None."""
        return next(iter(self._leases.values()), None)

    @property
    def running(self) -> HeldLease | None:
        """The lease that the model process computes, which is the first unanswered one that it has, or None."""
        return next((held for held in self._leases.values() if held.is_sent and not held.is_answered), None)

    @property
    def are_sent(self) -> bool:
        """Whether the model process has any of them."""
        return any(held.is_sent for held in self._leases.values())

    def of_model(self, model: ModelSpec, ignored: Collection[str] = ()) -> list[HeldLease]:
        """Return the leases for a model, and for the same model with other values of the ignored request arguments."""
        loaded = model.without(ignored)
        return [held for held in self._leases.values() if held.lease.model.without(ignored) == loaded]
