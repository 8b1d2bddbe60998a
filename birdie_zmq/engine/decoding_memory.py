"""How many rows of a decode batch fit into memory."""

from __future__ import annotations

from birdie_zmq.engine.prefix_cache import ANY_CAPACITY
from birdie_zmq.errors import OutOfDeviceMemory

_SHARE_OF_FREE = 0.8
"""The share of free memory that the rows of a decode batch may take; the rest is for the temporaries of a step."""

_EXTRA_ROWS = 2
"""The rows beside the decode batch: one for the prompt that is being prefilled, and one cached row."""


def rows_that_fit(free: int, row_bytes: int, capacity: int, tokens: int, fixed_share: float = 0.0) -> int:
    """Return the number of rows of a decode batch that fit into free memory.

    Args:
        free: The free memory, in bytes.
        row_bytes: The size of the state of one row, in bytes.
        capacity: The capacity of that state in tokens; `ANY_CAPACITY` if its size does not depend on it.
        tokens: The number of tokens that the row needs.
        fixed_share: The share of `row_bytes` that does not depend on the capacity, such as the states of recurrences.

    Raises:
        OutOfDeviceMemory: Not even one row fits. The message names the number of tokens that would fit, if the size of a
            state depends on it.
    """
    rows = int(free * _SHARE_OF_FREE / row_bytes) - _EXTRA_ROWS
    if rows >= 1:
        return rows
    count, sizes = _EXTRA_ROWS + 1, f"{row_bytes / 2**20:,.0f} MiB each, and {free / 2**20:,.0f} MiB are free"
    most, fixed_bytes = free * _SHARE_OF_FREE / count, row_bytes * fixed_share
    if capacity == ANY_CAPACITY or most <= fixed_bytes:
        raise OutOfDeviceMemory(
            f"generation needs {count} states of {sizes}; shorter texts do not help, since a state of this model takes most of that for a "
            "text of any length; use a device with more memory, or a mesh"
        )
    fitting = int(capacity * (most - fixed_bytes) / (row_bytes - fixed_bytes))
    raise OutOfDeviceMemory(
        f"a prompt and its answer of {tokens} tokens need {count} states of {sizes}: about {fitting} tokens would fit; lower "
        "max_gen_toks or max_length"
    )


def can_be_enlarged(free: int | None, row_bytes: int, rows: int) -> bool:
    """Return whether a decode batch can begin with a smaller state: one of half the size and the whole one fit together.

    Args:
        free: The free memory, in bytes; None if it is not known.
        row_bytes: The size of a row in the whole state, in bytes.
        rows: The number of rows.
    """
    return free is None or 1.5 * rows * row_bytes <= free * _SHARE_OF_FREE
