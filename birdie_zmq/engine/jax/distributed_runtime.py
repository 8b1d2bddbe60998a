"""jax.distributed, and the key-value store of its coordination service; the only file that touches JAX's private names for it.

The store lies in the process that leads. It is what Orbax, too, lets processes agree by; `tests/engine/jax/test_distributed_runtime.py` says
which of these names a version of JAX lacks.
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

from birdie_zmq.engine.distributed.process_group import LeaderLost, RankInfo
from birdie_zmq.errors import UsageError

HEARTBEAT_TIMEOUT_S = 10
"""A process that is silent for so long has died, and its group with it."""

CLIENT_NAMES = (
    "blocking_key_value_get_bytes",
    "key_value_delete",
    "key_value_dir_get_bytes",
    "key_value_set_bytes",
)
"""What is asked of the client of the coordination service."""

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_LATER_S = 60.0
"""JAX ends a process that waits for others in vain; ours is to say so first."""

_KNOCK_S = 0.25


class Store:
    """Keys and bytes that all processes of the group see, for as long as the first one lives."""

    def __init__(self) -> None:
        self._client: Any = distributed.global_state.client

    def set(self, key: str, value: bytes) -> None:
        """Put a value there, perhaps in place of another.

        Raises:
            GroupLost: There is no store any more.
        """
        self._call("key_value_set_bytes", key, value, True)

    def get(self, key: str, timeout_s: float) -> bytes | None:
        """Wait for a value; None if it does not come in time.

        Raises:
            GroupLost: There is no store any more.
        """
        try:
            value: bytes = self._call("blocking_key_value_get_bytes", key, math.ceil(timeout_s * 1000))
        except TimeoutError:
            return None
        return value

    def below(self, folder: str) -> dict[str, bytes]:
        """All keys that begin with a folder's name and a slash.

        Raises:
            GroupLost: There is no store any more.
        """
        return dict(self._call("key_value_dir_get_bytes", f"{folder}/"))

    def delete(self, folder: str) -> None:
        """Remove a folder.

        Raises:
            GroupLost: There is no store any more.
        """
        self._call("key_value_delete", f"{folder}/")

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._client, name)(*arguments)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                raise TimeoutError(str(error)) from None
            raise LeaderLost(str(error)) from error


def settle(place: RankInfo) -> str:
    """Get ready to join; HOST:PORT at which process 0 is met.

    Raises:
        UsageError: Nobody said where, and JAX cannot find it.
    """
    # Its handler of SIGTERM would keep an agent from ending its process.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)  # type: ignore[no-untyped-call]
    if place.coordinator is not None:
        return place.coordinator
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, place.num_processes, place.process_id, [0], None, int(place.timeout_s)
    )
    if found[0] is None:
        raise UsageError(
            "JAX knows no cluster here that says where process 0 of the group is met; say --coordinator HOST:PORT, the same "
            "for all processes, where HOST is that of process 0"
        )
    return str(found[0])


def join(place: RankInfo, coordinator: str) -> Store:
    """Join the group, once all its processes are there.

    JAX kills this process if they are not in time: `birdie_zmq.worker.distributed.rendezvous` says so before.
    """
    more: dict[str, Any] = {}
    if "heartbeat_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters:  # else it is 100 s
        more["heartbeat_timeout_seconds"] = HEARTBEAT_TIMEOUT_S
    if coordinator.rpartition(":")[0] in _LOOPBACK and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        more["coordinator_bind_address"] = coordinator  # JAX would listen on all addresses
    jax.distributed.initialize(
        coordinator,
        place.num_processes,
        place.process_id,
        # All devices of a host are its process's, in a job of Slurm too, where JAX would take one.
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(place.timeout_s + _LATER_S),
        **more,
    )
    return Store()


def wait_for_port(coordinator: str) -> None:
    """Wait for ever until process 0 is there: JAX itself would ask less and less often."""
    host, _, port = coordinator.rpartition(":")
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5.0):
                return
        except OSError:
            time.sleep(_KNOCK_S)


def device_count() -> int:
    """How many devices all processes have together."""
    return jax.device_count()


def is_of_runtime(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the runtime's: a peer may be gone."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__
    return False
