"""Records of the peers of a broker: clients, which submit batches, and workers, which compute them."""

from __future__ import annotations

from dataclasses import dataclass, field

from birdie_zmq.broker.scheduler import Batch, SubBatch
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ComputeCounters, ModelSpec


@dataclass
class Client:
    """A client session.

    ``number`` is the number of the session at this broker, counted from 1. ``requests_answered`` counts the answered
    requests of the session. ``batches`` maps the client's own batch numbers to the batches that are not settled.
    """

    peer: bytes
    last_seen_at: float
    number: int
    connected_at: float
    requests_answered: int = 0
    batches: dict[int, Batch] = field(default_factory=dict)


@dataclass
class Worker:
    """A registered worker.

    ``phase`` is the phase of its last heartbeat; ``displayed_phase`` follows from that and from its leases.
    ``requests_answered`` counts the requests that it has answered. ``computed`` holds the counters of its last
    heartbeat, None before the first. ``prefix`` names the common prefix of its last leased batch for its current model;
    batches without a common prefix do not change it. ``idle_since`` is the start of the time in which it has held no
    lease, ``last_lease_since`` the start of the time in which it has held exactly one. Times are in monotonic seconds.
    """

    peer: bytes
    last_seen_at: float
    registration: m.RegisterWorker
    connected_at: float
    model: ModelSpec | None = None
    model_since: float = 0.0
    leases: dict[int, SubBatch] = field(default_factory=dict)
    is_draining: bool = False
    phase: str = ""
    displayed_phase: str = ""
    displayed_phase_since: float = 0.0
    requests_answered: int = 0
    computed: ComputeCounters | None = None
    prefix: str | None = None
    idle_since: float | None = None
    last_lease_since: float | None = None

    @property
    def has_capacity(self) -> bool:
        """Whether the worker may be granted another lease; a suspect sub-batch shares its worker with no other lease."""
        has_suspect = any(sub_batch.is_suspect for sub_batch in self.leases.values())
        return not self.is_draining and not has_suspect and len(self.leases) < self.registration.capacity

    @property
    def name(self) -> str:
        """Name of the worker in log lines and error messages."""
        return f"{self.registration.engine} worker {self.registration.process_id} on {self.registration.host}"

    def update_displayed_phase(self, now: float) -> None:
        """Derive the displayed phase: a ready worker is running if it holds leases, otherwise idle."""
        phase = self.phase
        if phase in ("ready", "running"):
            phase = "running" if self.leases else "idle"
        if phase != self.displayed_phase:
            self.displayed_phase, self.displayed_phase_since = phase, now

    def update_idle_times(self, now: float) -> None:
        """Update the times since which the worker has held no lease, or exactly one."""
        count = len(self.leases)
        self.idle_since = None if count else now if self.idle_since is None else self.idle_since
        self.last_lease_since = None if count != 1 else now if self.last_lease_since is None else self.last_lease_since
