"""Device memory in JAX: how much is free, and how many rows of a state fit."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from birdie_zmq.engine.host_memory import host_free_bytes
from birdie_zmq.errors import OutOfDeviceMemory

_SHARE_OF_FREE = 0.8
"""The share of free memory that the rows of a decode batch may take; the rest is for the temporaries of a step."""

_EXTRA_ROWS = 2
"""The rows beside the decode batch: one for the prompt that is being prefilled, and one cached row."""


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


def rows_that_fit(free: int, row_bytes: int, capacity: int, tokens: int) -> int:
    """Return the number of rows of a decode batch that fit into free memory.

    Args:
        free: The free memory, in bytes.
        row_bytes: The size of the state of one row, in bytes.
        capacity: The capacity of that state in tokens.
        tokens: The number of tokens that the row needs.

    Raises:
        OutOfDeviceMemory: Not even one row fits. The message names the number of tokens that would fit.
    """
    rows = int(free * _SHARE_OF_FREE / row_bytes) - _EXTRA_ROWS
    if rows < 1:
        fitting = int(capacity * free * _SHARE_OF_FREE / row_bytes / (_EXTRA_ROWS + 1))
        raise OutOfDeviceMemory(
            f"a prompt and its answer of {tokens} tokens need {_EXTRA_ROWS + 1} states of {row_bytes / 2**20:,.0f} MiB "
            f"each, and {free / 2**20:,.0f} MiB are free: about {fitting} tokens would fit; lower max_gen_toks or "
            "max_length"
        )
    return rows
