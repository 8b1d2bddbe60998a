"""Settings: frozen, validated where they are made, with units in their names."""

from __future__ import annotations

from dataclasses import dataclass, fields

from birdie_zmq.errors import UsageError

DEFAULT_STATUS_PORT = 5556
"""Of the status page, where one is asked for without a number."""

ENGINE_VARIABLE = "BIRDIE_ZMQ_ENGINE"
"""The variable by which the agent tells a model process its engine: jax, torch, or the path of a file. A page may read it."""


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
    although its own queue is not empty. A worker that has had nothing to do for ``share_after_s`` takes over from others.
    To a peer that is silent for ``probe_s`` something is sent, to see whether its
    connection still is there. ``max_losses`` is how many processes may die at a request, the last two of
    them at nothing else, before it is given up, ``max_losses_in_a_row`` how many may die at one model without an answer
    in between before its batch is. ``drain_s`` is how long a broker that is told to stop lets its workers finish what they hold.

    ``max_batches_per_client`` and ``max_bytes_per_client`` bound what a client has submitted and what has no answer
    yet, in bytes as they came. A peer hears of ``max_refusals_in_a_row`` messages that make no sense, then of one a
    second. The log has ``max_log_lines_at_once`` lines without a pause, then ``max_log_lines_per_s``; of refusals,
    one a second.
    """

    client_timeout_s: float = 30.0
    worker_timeout_s: float = 10.0
    switch_delay_s: float = 30.0
    share_after_s: float = 1.0
    probe_s: float = 2.5
    max_losses: int = 3
    max_losses_in_a_row: int = 16
    max_batches_per_client: int = 1024
    max_bytes_per_client: int = 256 * 2**20
    max_refusals_in_a_row: int = 16
    max_log_lines_at_once: int = 100
    max_log_lines_per_s: float = 10.0
    tick_s: float = 0.5
    drain_s: float = 20.0


@dataclass(frozen=True)
class AgentSettings(_Settings):
    """The agent's timeouts.

    ``capacity`` is how many leases it holds: one that is computed, and the next, so that the model never waits for it.
    ``terminate_s`` is how long a model process may take to end by itself before it is killed, ``drain_s`` how long the
    agent itself lets it finish its lease when it is told to stop.

    A model process is killed if it is silent for ``silence_s``, which a process that lives is not, or while it loads
    for ``loading_silence_s``, since a page's code may keep Python's lock for long; and if it does not come on: if
    loading takes longer than ``load_s``, compiling one program longer than ``compile_s``, or one step longer than
    ``step_s``. One that dies while it loads is started again after ``restart_s``, then after twice that, and
    ``max_load_crashes`` times at most. Where the memory of its device can be watched, the next one waits for it to be
    free again, for ``free_s`` at most.
    """

    capacity: int = 2
    heartbeat_s: float = 1.0
    broker_timeout_s: float = 20.0
    terminate_s: float = 5.0
    drain_s: float = 20.0
    silence_s: float = 20.0
    loading_silence_s: float = 300.0
    load_s: float = 3600.0
    compile_s: float = 3600.0
    step_s: float = 900.0
    restart_s: float = 1.0
    max_load_crashes: int = 3
    free_s: float = 30.0


@dataclass(frozen=True)
class ClientSettings(_Settings):
    """The client's timeouts and the size of its batches.

    ``batch_items`` and ``batch_characters`` bound one message; ``window`` is how many batches are in flight, and
    ``max_window`` how many where there are many workers, with ``max_characters_in_flight``, of up to four bytes each: both
    must not be more than the broker lets a client have.
    ``connect_s`` is how long the broker may take to answer the first greeting, ``greet_s`` how often it is greeted
    meanwhile, ``broker_timeout_s`` how long a broker that was there may be gone, and ``worker_wait_s`` how long a
    worker may be missing once there is work. After ``max_failed_items`` the rest of a call is not waited for.
    """

    connect_s: float = 5.0
    greet_s: float = 1.0
    worker_wait_s: float = 300.0
    ping_s: float = 1.0
    broker_timeout_s: float = 300.0
    window: int = 4
    max_window: int = 512
    max_characters_in_flight: int = 32_000_000
    batch_items: int = 256
    batch_characters: int = 4_000_000
    max_failed_items: int = 8
