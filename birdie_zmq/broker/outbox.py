"""The outbox of the broker core: the actions that follow from one event, in order."""

from __future__ import annotations

from birdie_zmq.broker.events import Action, Log, Send, Stop
from birdie_zmq.broker.rate_limits import LogLimiter
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import BrokerSettings
from birdie_zmq.types import Level


class Outbox:
    """The actions of the event that is handled at monotonic time ``now``. Log lines have a limited rate.

    Args:
        settings: Limits on the log.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self.now = 0.0
        self._actions: list[Action] = []
        self._log_limiter = LogLimiter(settings.max_log_burst, settings.max_log_lines_per_s)
        self._refusal_log_limiter = LogLimiter(1, 1.0)

    def take(self) -> list[Action]:
        """Remove and return the actions."""
        actions, self._actions = self._actions, []
        return actions

    def send(self, peer: bytes, message: m.BrokerToClient | m.BrokerToWorker | m.Refusal) -> None:
        """Send a message to a peer."""
        self._actions.append(Send(peer, message))

    def stop(self) -> None:
        """Stop the broker."""
        self._actions.append(Stop())

    def log(self, level: Level, text: str) -> None:
        """Log a line, unless there are too many."""
        self._append_log(level, self._log_limiter.admit(text, self.now))

    def log_refusal(self, level: Level, text: str) -> None:
        """Log the refusal of a message, unless there are too many of these."""
        self._append_log(level, self._refusal_log_limiter.admit(text, self.now))

    def log_suppressed(self) -> None:
        """Log how many lines were suppressed."""
        for limiter in (self._refusal_log_limiter, self._log_limiter):
            self._append_log("info", limiter.suppressed(self.now))

    def _append_log(self, level: Level, line: str | None) -> None:
        if line is not None:
            self._actions.append(Log(level, line))
