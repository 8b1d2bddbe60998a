"""The outbox of the agent core: the actions that follow from one event, in order."""

from __future__ import annotations

from birdie_zmq.protocol import messages as m
from birdie_zmq.types import ErrorReport, Level
from birdie_zmq.worker.events import Action, Log, SendToBroker, SendToModel
from birdie_zmq.worker.held_leases import HeldLease, HeldLeases


class Outbox:
    """The actions of one event. A lease that ends is removed from those held, and the broker or the process is told.

    Args:
        leases: The leases that the agent holds.
    """

    def __init__(self, leases: HeldLeases) -> None:
        self._leases = leases
        self._actions: list[Action] = []

    def take(self) -> list[Action]:
        """Remove and return the actions."""
        actions, self._actions = self._actions, []
        return actions

    def add(self, action: Action) -> None:
        """Add an action behind the others."""
        self._actions.append(action)

    def log(self, level: Level, text: str) -> None:
        """Log a line."""
        self.add(Log(level, text))

    def notify(self, held: HeldLease, level: Level, text: str) -> None:
        """Log a line, and show it to the run that waits for a lease."""
        self.log(level, text)
        self.add(SendToBroker(m.LeaseNotice(lease=held.number, level=level, text=text)))

    def drop_lease(self, held: HeldLease) -> None:
        """Forget a lease and cancel it at the model process, whose further messages about it are ignored."""
        self._leases.remove(held)
        if held.is_sent:
            self.add(SendToModel(m.CancelLease(lease=held.number)))

    def return_lease(self, held: HeldLease) -> None:
        """Drop a lease and give it back to the broker, which leases its work again."""
        self.drop_lease(held)
        self.add(SendToBroker(m.LeaseReturned(lease=held.number)))

    def finish_lease(self, held: HeldLease) -> None:
        """Report that every item of a lease is answered."""
        self._leases.remove(held)
        self.add(SendToBroker(m.LeaseDone(lease=held.number)))

    def fail_lease(self, held: HeldLease, error: ErrorReport, index: int | None = None) -> None:
        """Report an error of a lease, or of one of its items."""
        self._leases.remove(held)
        # The error's message goes to the run only, not to the log: it may quote a text of the requests.
        self.log("info", f"a batch for {held.lease.model} failed: {error.code}")
        self.add(SendToBroker(m.LeaseFailed(lease=held.number, error=error, index=index)))

    def report_crash(self, held: HeldLease, error: ErrorReport) -> None:
        """Report the lease that the model process computed when it died."""
        self._leases.remove(held)
        self.add(SendToBroker(m.LeaseCrashed(lease=held.number, error=error)))
