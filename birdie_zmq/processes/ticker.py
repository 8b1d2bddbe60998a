"""The ticks of a loop that waits for messages, and the detection of stalls. Pure."""

from __future__ import annotations

_MIN_STALL_S = 3.0
"""A tick that is later than this means that the process, or its machine, was stopped."""


class Ticker:
    """The next tick of a loop.

    A loop that was stopped could not receive, so the time of the stall counts as no peer's silence.

    Args:
        interval_s: Seconds between two ticks.
        first_at: The monotonic time of the first tick.
    """

    def __init__(self, interval_s: float, first_at: float) -> None:
        self._interval_s = interval_s
        self._due_at = first_at

    def remaining_s(self, now: float) -> float:
        """Return the seconds until the next tick, 0 if it is due."""
        return max(0.0, self._due_at - now)

    def tick(self, now: float) -> float | None:
        """Schedule the next tick if this one is due, and return the stall in seconds; return None if it is not due.

        The stall is the delay of the tick if the process was stopped meanwhile, and 0 for the usual delay of a busy loop.
        """
        delay_s = now - self._due_at
        if delay_s < 0:
            return None
        self._due_at = now + self._interval_s
        return delay_s if delay_s > _MIN_STALL_S else 0.0
