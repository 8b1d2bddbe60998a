"""jax.distributed and the key-value store of its coordination service; only this module uses private names of JAX.

The store is in the process of rank 0. Orbax, too, synchronises processes through it.
`tests/engine/jax/test_distributed_runtime.py` fails for a version of JAX that lacks one of these names.
"""

from __future__ import annotations

import inspect
import math
import os
import socket
import time
from typing import Any

import jax
from jax._src import clusters, distributed

from birdie_zmq.engine.distributed.process_group import LeaderLost
from birdie_zmq.errors import UsageError
from birdie_zmq.types import RankInfo

HEARTBEAT_TIMEOUT_S = 10
"""A process without a heartbeat for this long counts as dead, and its process group ends."""

CLIENT_METHODS = (
    "blocking_key_value_get_bytes",
    "key_value_delete",
    "key_value_dir_get_bytes",
    "key_value_set_bytes",
)
"""The methods of the coordination service's client that are used here."""

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_JAX_TIMEOUT_MARGIN_S = 60.0
"""JAX kills a process whose peers do not connect in time; this margin lets our own message come first."""

_RETRY_S = 0.25


class KeyValueStore:
    """A key-value store shared by all processes of the group, while the process of rank 0 is alive."""

    def __init__(self) -> None:
        self._client: Any = distributed.global_state.client

    def set(self, key: str, value: bytes) -> None:
        """Store a value, replacing any earlier one.

        Raises:
            LeaderLost: The store is gone.
        """
        self._call("key_value_set_bytes", key, value, True)

    def get(self, key: str, timeout_s: float) -> bytes | None:
        """Wait for a value; return None after the time-out.

        Raises:
            LeaderLost: The store is gone.
        """
        try:
            value: bytes = self._call("blocking_key_value_get_bytes", key, math.ceil(timeout_s * 1000))
        except TimeoutError:
            return None
        return value

    def items_under(self, folder: str) -> dict[str, bytes]:
        """Return all items whose key starts with the folder's name and a slash.

        Raises:
            LeaderLost: The store is gone.
        """
        return dict(self._call("key_value_dir_get_bytes", f"{folder}/"))

    def delete(self, folder: str) -> None:
        """Remove a folder.

        Raises:
            LeaderLost: The store is gone.
        """
        self._call("key_value_delete", f"{folder}/")

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._client, name)(*arguments)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                raise TimeoutError(str(error)) from None
            raise LeaderLost(str(error)) from error


def resolve_coordinator(rank: RankInfo) -> str:
    """Prepare to join the process group, and return HOST:PORT of its coordinator, the process of rank 0.

    Raises:
        UsageError: No coordinator is given, and JAX does not detect one.
    """
    # JAX's SIGTERM handler would keep an agent from ending its process.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)  # type: ignore[no-untyped-call]
    if rank.coordinator is not None:
        return rank.coordinator
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, rank.num_processes, rank.process_id, [0], None, int(rank.timeout_s)
    )
    if found[0] is None:
        raise UsageError(
            "JAX detects no cluster here that names the coordinator of the process group; give --coordinator HOST:PORT, the "
            "same for all processes, where HOST is the host of process 0"
        )
    return str(found[0])


def join(rank: RankInfo, coordinator: str) -> KeyValueStore:
    """Join the process group, and wait until all its processes have joined.

    JAX kills this process if they do not join in time; `birdie_zmq.worker.distributed.rendezvous` reports that first.
    """
    more: dict[str, Any] = {}
    if "heartbeat_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters:  # otherwise 100 s
        more["heartbeat_timeout_seconds"] = HEARTBEAT_TIMEOUT_S
    if coordinator.rpartition(":")[0] in _LOOPBACK and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        more["coordinator_bind_address"] = coordinator  # by default JAX listens on all addresses
    jax.distributed.initialize(
        coordinator,
        rank.num_processes,
        rank.process_id,
        # One process uses all devices of its host. In a Slurm job JAX would otherwise take a single device.
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(rank.timeout_s + _JAX_TIMEOUT_MARGIN_S),
        **more,
    )
    return KeyValueStore()


def wait_for_port(coordinator: str) -> None:
    """Wait without a time-out until process 0 listens; JAX itself would retry less and less frequently."""
    host, _, port = coordinator.rpartition(":")
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5.0):
                return
        except OSError:
            time.sleep(_RETRY_S)


def device_count() -> int:
    """Return the number of devices of all processes."""
    return jax.device_count()


def is_runtime_error(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes comes from the runtime, so that a peer may be gone."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__
    return False
