"""Settings of broker, agent and client: frozen, validated at construction, with units in their names."""

from __future__ import annotations

from dataclasses import dataclass, fields

from birdie_zmq.errors import UsageError

DEFAULT_STATUS_PORT = 5556
"""Port of the status page if it is enabled without a number."""

ENGINE_VARIABLE = "BIRDIE_ZMQ_ENGINE"
"""Environment variable that a model process sets to its engine: jax, torch, or the path of a file. A user module may read it."""
ATTENTION_VARIABLE = "BIRDIE_ZMQ_ATTENTION"
"""The environment variable that may be ``xla``: built-in models then use no kernel of a library for attention."""

GROUP_TIMEOUT_S = 300.0
"""How long the processes of a process group wait for each other to join, as in JAX."""


@dataclass(frozen=True)
class _Settings:
    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise UsageError(f"{field.name} must be above 0, not {value!r}")


@dataclass(frozen=True)
class BrokerSettings(_Settings):
    """The broker's timeouts and limits.

    ``switch_delay_s`` is how long a batch waits before a worker with another model switches to its model although that
    worker's own queue is not empty. A worker that has been idle, or on its last lease, for ``steal_after_s`` steals work
    from other workers. The broker sends a message to a peer that has been silent for ``probe_s``, to test its connection.
    A request fails after ``max_crashes_per_request`` processes died while computing it, the last two of them while
    computing nothing else. A batch fails after ``max_consecutive_crashes`` processes of its model died without an answer
    in between. ``drain_s`` is how long a stopping broker lets its workers finish their leases.

    ``max_batches_per_client`` and ``max_bytes_per_client`` limit the unanswered work of a client; bytes are counted as
    received. A peer receives ``max_refusal_burst`` refusals for invalid messages at once, then one per second. The log
    has ``max_log_burst`` lines at once, then ``max_log_lines_per_s``, and at most one line per second for refusals.
    """

    client_timeout_s: float = 30.0
    worker_timeout_s: float = 10.0
    switch_delay_s: float = 30.0
    steal_after_s: float = 1.0
    probe_s: float = 2.5
    max_crashes_per_request: int = 3
    max_consecutive_crashes: int = 16
    max_batches_per_client: int = 1024
    max_bytes_per_client: int = 256 * 2**20
    max_refusal_burst: int = 16
    max_log_burst: int = 100
    max_log_lines_per_s: float = 10.0
    tick_s: float = 0.5
    drain_s: float = 20.0


@dataclass(frozen=True)
class AgentSettings(_Settings):
    """The agent's timeouts and limits.

    ``capacity`` is the number of leases that the agent holds: one in computation and the next one, so that the model never
    waits. ``terminate_s`` is how long a model process may take to exit before it is killed. ``drain_s`` is how long a
    stopping agent lets the model process finish its lease.

    A model process is killed if it sends nothing for ``silence_s``, or for ``loading_silence_s`` while it loads, since a
    user module may hold Python's GIL for long. It is also killed if it makes no progress: if loading takes longer than
    ``load_s``, one compilation longer than ``compile_s``, or one step longer than ``step_s``. A process that dies while
    loading is restarted after ``restart_delay_s``, which doubles each time, and at most ``max_load_crashes`` times. If the
    memory of its device can be watched, the next process waits until it is free, for at most ``memory_wait_s``.
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
    restart_delay_s: float = 1.0
    max_load_crashes: int = 3
    memory_wait_s: float = 30.0


@dataclass(frozen=True)
class ClientSettings(_Settings):
    """The client's timeouts and batch sizes.

    ``batch_items`` and ``batch_characters`` limit one message. ``window`` is the number of batches in flight. With many
    workers it grows to ``max_window``, and the texts in flight to ``max_characters_in_flight``, at up to four bytes a
    character; both must stay within the broker's limits per client. ``connect_s`` is how long the broker may take to answer
    the first OpenSession, ``open_retry_s`` the interval at which that message is repeated. ``broker_timeout_s`` is how long
    a broker may be silent after it has answered once, ``worker_wait_s`` how long the broker may be without a worker while
    there is work. After ``max_failed_items`` failed items, a call does not wait for the rest.
    """

    connect_s: float = 5.0
    open_retry_s: float = 1.0
    worker_wait_s: float = 300.0
    ping_s: float = 1.0
    broker_timeout_s: float = 300.0
    window: int = 4
    max_window: int = 512
    max_characters_in_flight: int = 32_000_000
    batch_items: int = 256
    batch_characters: int = 4_000_000
    max_failed_items: int = 8
