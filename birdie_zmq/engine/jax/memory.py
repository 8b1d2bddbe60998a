"""Device memory in JAX: how much is free."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from birdie_zmq.engine.host_memory import host_free_bytes


def free_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Return the smallest free memory, in bytes, of a model's devices; None if a device does not report it."""
    if devices[0].platform == "cpu":
        free = host_free_bytes()  # shared by the virtual devices of a CPU
        return None if free is None else free // len(devices)
    found = []
    for device in devices:
        statistics = device.memory_stats() or {}
        if "bytes_limit" not in statistics:
            return None
        found.append(int(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)))
    return min(found)
