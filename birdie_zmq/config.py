"""Settings: frozen, validated where they are made, with units in their names."""

from __future__ import annotations

from dataclasses import dataclass, fields

from birdie_zmq.errors import UsageError


@dataclass(frozen=True)
class _Settings:
    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise UsageError(f"{field.name} must be above 0, not {value!r}")


@dataclass(frozen=True)
class BrokerSettings(_Settings):
    """The broker's timeouts and bounds.

    ``patience_s`` is how long a batch waits for a worker that has another model before that worker changes models
    although its own queue is not empty.
    """

    client_timeout_s: float = 30.0
    worker_timeout_s: float = 20.0
    patience_s: float = 30.0
    max_attempts: int = 3
    max_batches_per_client: int = 64
    tick_s: float = 0.5


@dataclass(frozen=True)
class AgentSettings(_Settings):
    """The agent's timeouts.

    ``capacity`` is how many leases it holds: one that is computed, and the next, so that the model never waits for it.
    ``terminate_s`` is how long a model process may take to end by itself before it is killed. ``max_crashes`` is how
    often a batch may be running when the model process dies before the batch is given up.
    """

    capacity: int = 2
    heartbeat_s: float = 1.0
    broker_timeout_s: float = 20.0
    terminate_s: float = 5.0
    max_crashes: int = 2


@dataclass(frozen=True)
class ClientSettings(_Settings):
    """The client's timeouts and the size of its batches.

    ``batch_items`` and ``batch_characters`` bound one message; ``window`` is how many batches are in flight.
    ``connect_s`` is how long the broker may take to answer the greeting, ``worker_wait_s`` how long a worker may be
    missing once there is work.
    """

    connect_s: float = 5.0
    worker_wait_s: float = 60.0
    ping_s: float = 1.0
    broker_timeout_s: float = 30.0
    window: int = 4
    batch_items: int = 256
    batch_characters: int = 4_000_000
