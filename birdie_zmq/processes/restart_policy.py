"""When a process that has failed is started again: after growing pauses, and not more often than a limit. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class RestartPolicy:
    """The consecutive failures of one process, and when it may be started again.

    Attributes:
        max_failures: Number of consecutive failures after which the process is not started again; None for no limit.
        first_pause_s: The first pause in seconds. Each further failure doubles the pause.
        max_pause_s: The longest pause in seconds.
        immediate_restarts: Number of consecutive failures that no pause follows.
        failures: Number of consecutive failures so far.
    """

    max_failures: int | None = None
    first_pause_s: float = 0.0
    max_pause_s: float = math.inf
    immediate_restarts: int = 0
    failures: int = field(init=False, default=0)
    _pause_s: float = field(init=False, default=0.0)
    _start_at: float = field(init=False, default=-math.inf)

    @property
    def is_exhausted(self) -> bool:
        """Whether the process has failed too often to be started again."""
        return self.max_failures is not None and self.failures >= self.max_failures

    def failed(self, now: float) -> float:
        """Count a failure at the monotonic time `now`, and return the seconds until the next start."""
        self.failures += 1
        if self.failures > self.immediate_restarts:
            self._pause_s = min(self.max_pause_s, 2 * self._pause_s or self.first_pause_s)
        self._start_at = now + self._pause_s
        return self._pause_s

    def succeeded(self) -> None:
        """Forget all failures: the process has done what it is for."""
        self.failures, self._pause_s, self._start_at = 0, 0.0, -math.inf

    def may_start(self, now: float) -> bool:
        """Return whether the process may be started at the monotonic time `now`."""
        return not self.is_exhausted and now >= self._start_at
