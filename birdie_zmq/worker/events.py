"""Events that the agent core handles, and the actions that it returns."""

from __future__ import annotations

from dataclasses import dataclass

from birdie_zmq.protocol import messages as m
from birdie_zmq.types import Level, ModelSpec


@dataclass(frozen=True)
class LeaseReceived:
    """The broker sent a lease, in this frame."""

    lease: m.Lease
    frame: bytes


@dataclass(frozen=True)
class LeaseCancelled:
    """The broker cancelled a lease, because no client waits for it."""

    lease: int


@dataclass(frozen=True)
class LeasesRevoked:
    """The broker no longer knows this worker, and has given its leases to other workers."""


@dataclass(frozen=True)
class ModelMessageReceived:
    """The model process sent a message, in this frame."""

    message: m.ModelProcessMessage
    frame: bytes = b""


@dataclass(frozen=True)
class ModelProcessExited:
    """The model process exited.

    ``returncode`` is as in subprocess, negative for a signal. ``trace`` is the traceback at a fault, None if the process
    could not write one.
    """

    returncode: int
    trace: str | None = None


@dataclass(frozen=True)
class MemoryFreed:
    """The device memory of the last model process is free again."""


@dataclass(frozen=True)
class Drain:
    """The agent must finish its running lease and stop."""


@dataclass(frozen=True)
class Tick:
    """Time passed.

    ``stall_s`` is the excess over the usual interval, in seconds, if this process itself was stopped; else 0.
    """

    stall_s: float = 0.0


Event = (
    LeaseReceived
    | LeaseCancelled
    | LeasesRevoked
    | ModelMessageReceived
    | ModelProcessExited
    | MemoryFreed
    | Drain
    | Tick
)


@dataclass(frozen=True)
class StartModelProcess:
    """Start a process for this model; ``start_count`` is the number of processes that this agent has started."""

    model: ModelSpec
    start_count: int


@dataclass(frozen=True)
class SendToModel:
    """Send a message to the model process."""

    message: m.CancelLease | m.SwapWeights


@dataclass(frozen=True)
class ForwardToModel:
    """Send a frame of the broker to the model process, unchanged."""

    frame: bytes


@dataclass(frozen=True)
class StopModelProcess:
    """Stop the model process: by SIGTERM, or by SIGKILL if ``kill``."""

    kill: bool


@dataclass(frozen=True)
class SendToBroker:
    """Send a message to the broker."""

    message: m.LeaseMessage | m.LeaseCrashed | m.LeaseReturned | m.DrainWorker


@dataclass(frozen=True)
class ForwardToBroker:
    """Send a frame of the model process to the broker, unchanged."""

    frame: bytes


@dataclass(frozen=True)
class Log:
    """Write a line to the worker's log."""

    level: Level
    text: str


@dataclass(frozen=True)
class Stop:
    """End the agent: no lease is left."""


Action = (
    StartModelProcess | SendToModel | ForwardToModel | StopModelProcess | SendToBroker | ForwardToBroker | Log | Stop
)
