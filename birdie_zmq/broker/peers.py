"""Who is at a broker: clients, which ask, and workers, which compute."""

from __future__ import annotations

from dataclasses import dataclass, field

from birdie_zmq.broker.scheduler import Batch, SubBatch
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ComputeCounters, ModelSpec


@dataclass
class Client:
    """One session.

    ``number`` counts the sessions of this broker, ``answered`` the requests that were answered in it; ``batches`` are those
    that are not settled, by the client's own numbers.
    """

    peer: bytes
    seen_at: float
    number: int
    since: float
    answered: int = 0
    batches: dict[int, Batch] = field(default_factory=dict)


@dataclass
class Worker:
    """One worker. ``phase`` is what it last said that it does, ``doing`` what follows from that and its leases.

    ``served`` counts the requests that it has answered, ``computed`` what it says that it has computed. ``beginning``
    is what the last texts that it was given all begin with, if that has a name. ``idle_since`` is since when it was seen to
    hold nothing, ``at_last_since`` since when to hold one lease alone.
    """

    peer: bytes
    seen_at: float
    registration: m.RegisterWorker
    since: float
    model: ModelSpec | None = None
    model_since: float = 0.0
    leases: dict[int, SubBatch] = field(default_factory=dict)
    drains: bool = False
    phase: str = ""
    doing: str = ""
    doing_since: float = 0.0
    served: int = 0
    computed: ComputeCounters | None = None
    prefix: str | None = None
    idle_since: float | None = None
    at_last_since: float | None = None

    @property
    def has_room(self) -> bool:
        """Whether it may be given another lease; a suspect has its worker for itself."""
        suspected = any(part.is_suspect for part in self.leases.values())
        return not self.drains and not suspected and len(self.leases) < self.registration.capacity

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.registration.engine} worker {self.registration.process_id} on {self.registration.host}"
