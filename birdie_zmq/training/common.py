"""What both callbacks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from birdie_zmq.errors import UsageError

Log = Callable[[int, Mapping[str, float]], None]
"""Is called with a step and its metrics, such as ``lambda step, metrics: wandb.log(metrics, step=step)``."""


def check_every(every: int) -> int:
    """Return a number of steps between two evaluations.

    Raises:
        UsageError: It is not above 0.
    """
    if every < 1:
        raise UsageError(f"every={every!r} must be an integer above 0, the number of steps between two evaluations")
    return every
