"""Records of the peers of a broker: clients, which submit batches, and workers, which compute them."""

from __future__ import annotations

from dataclasses import dataclass, field

from birdie_zmq.broker.scheduler import Batch, SubBatch
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ComputeCounters, ModelSpec, RequestArgument


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

    ``model`` is the model that it has loaded or is told to load. It serves others that differ only in its
    ``request_arguments``, the names of arguments for which it does not load a model again.
    ``phase`` is the phase of its last heartbeat; ``displayed_phase`` follows from that and from its leases.
    ``requests_answered`` counts the requests that it has answered. ``computed`` holds the counters of its last
    heartbeat, None before the first. ``prefix`` names the common prefix of its last leased batch for its current model;
    batches without a common prefix do not change it. ``spare_since`` is the start of the time in which it has held
    no lease, or one lease while it could take another; ``spare_leases`` is their number at the last tick. Times are in
    monotonic seconds.
    """

    peer: bytes
    last_seen_at: float
    registration: m.RegisterWorker
    connected_at: float
    model: ModelSpec | None = None
    model_since: float = 0.0
    request_arguments: frozenset[RequestArgument] = frozenset()
    leases: dict[int, SubBatch] = field(default_factory=dict)
    is_draining: bool = False
    phase: str = ""
    displayed_phase: str = ""
    displayed_phase_since: float = 0.0
    requests_answered: int = 0
    computed: ComputeCounters | None = None
    prefix: str | None = None
    spare_since: float | None = None
    spare_leases: int = 0

    @property
    def loaded(self) -> ModelSpec | None:
        """The model without the arguments for which the worker does not load it again; None without a model."""
        return None if self.model is None else self.model.without(self.request_arguments)

    def serves(self, model: ModelSpec) -> bool:
        """Return whether the worker computes a model without loading another one."""
        return self.loaded == model.without(self.request_arguments)

    @property
    def has_capacity(self) -> bool:
        """Whether the worker may be granted another lease; a suspect sub-batch shares its worker with no other lease."""
        has_suspect = any(sub_batch.is_suspect for sub_batch in self.leases.values())
        return not self.is_draining and not has_suspect and len(self.leases) < self.registration.capacity

    @property
    def unsettled_count(self) -> int:
        """Number of unsettled items in its leases."""
        return sum(sub_batch.unsettled_count for sub_batch in self.leases.values())

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

    def update_spare_since(self, now: float) -> None:
        """Update the time since which the worker has held no lease, or one while it could take another."""
        count = len(self.leases)
        if count > 1 or not self.has_capacity:
            self.spare_since = None
        elif self.spare_since is None or count != self.spare_leases:
            self.spare_since = now
        self.spare_leases = count
