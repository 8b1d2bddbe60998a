"""Which checkpoint of a run is evaluated next, and when the watch ends: a state machine without files or a clock.

A checkpoint is evaluated once it is complete and its files have not changed for a while. A step that was evaluated is
never evaluated again, also not after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["evaluated", "failed", "deleted", "changed"]
"""How an evaluation ended. A step that was deleted or has changed meanwhile is evaluated when it is complete (again)."""

Order = Literal["oldest", "newest"]


@dataclass(frozen=True)
class Sighting:
    """A checkpoint as a scan found it.

    Attributes:
        step: The training step.
        path: Its path.
        missing: What it still lacks; None if it is complete.
        state: A hash of its files' names, sizes and times.
    """

    step: int
    path: str
    missing: str | None
    state: str


@dataclass(frozen=True)
class Outcome:
    """What became of a step: the status, and the state of the checkpoint's files at that time."""

    status: Status
    state: str = ""


@dataclass(frozen=True)
class WatchPolicy:
    """What the user asked for.

    Attributes:
        order: Which of several complete checkpoints comes first.
        until_step: The watch ends when this step, or the first one behind it, is done; None for no end.
        once: Whether the watch ends when no complete checkpoint is left.
        settle_s: Seconds for which the files of a checkpoint must not change.
        abandon_s: Seconds after which an incomplete checkpoint without changes is not waited for at the end.
    """

    order: Order = "oldest"
    until_step: int | None = None
    once: bool = False
    settle_s: float = 5.0
    abandon_s: float = 600.0


@dataclass(frozen=True)
class Scanned:
    """The directory was scanned; `stop` tells whether the stop file is there."""

    sightings: Sequence[Sighting]
    stop: bool = False


@dataclass(frozen=True)
class Finished:
    """The evaluation of a checkpoint has ended."""

    sighting: Sighting
    status: Status


Event = Scanned | Finished


@dataclass(frozen=True)
class Evaluate:
    """Evaluate this checkpoint, and report the end as `Finished`."""

    sighting: Sighting


@dataclass(frozen=True)
class Record:
    """Write down that a step has this status."""

    sighting: Sighting
    status: Status


@dataclass(frozen=True)
class Note:
    """Tell the user."""

    text: str


@dataclass(frozen=True)
class End:
    """End the watch."""

    reason: str


Action = Evaluate | Record | Note | End


@dataclass(frozen=True)
class _Seen:
    sighting: Sighting
    since: float
    """The time since which its files have not changed."""


class WatchCore:
    """The state machine of a watch.

    Args:
        policy: What the user asked for.
        outcomes: What earlier watches of this run have recorded, by step.
    """

    def __init__(self, policy: WatchPolicy, outcomes: Mapping[int, Outcome]) -> None:
        self._policy = policy
        self._outcomes = dict(outcomes)
        self._seen: dict[int, _Seen] = {}
        self._awaiting: dict[int, Sighting] = {}
        """Checkpoints that were complete once and have not been evaluated."""
        self._noted: set[tuple[int, str]] = set()
        self._actions: list[Action] = []

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle one event and return the actions to take, in order; none to wait for the next scan.

        Args:
            event: The event.
            now: The time in monotonic seconds.
        """
        match event:
            case Scanned(sightings, stop):
                self._observe({each.step: each for each in sightings}, now)
                self._choose(stop, now)
            case Finished(sighting, status):
                self._outcomes[sighting.step] = Outcome(status, sighting.state)
                if status == "changed":
                    self._seen.pop(sighting.step, None)  # its files must settle again
                else:
                    self._awaiting.pop(sighting.step, None)
        actions, self._actions = self._actions, []
        return actions

    def _observe(self, found: Mapping[int, Sighting], now: float) -> None:
        for step in [step for step in self._awaiting if step not in found]:
            sighting = self._awaiting.pop(step)
            self._outcomes[step] = Outcome("deleted", sighting.state)
            self._actions.append(Record(sighting, "deleted"))
        before, self._seen = self._seen, {}
        for step, sighting in found.items():
            last = before.get(step)
            is_same = last is not None and last.sighting.state == sighting.state
            self._seen[step] = _Seen(sighting, last.since if last is not None and is_same else now)
            if self._is_done(sighting):
                self._check_unchanged(sighting)
            elif sighting.missing is None:
                self._awaiting[step] = sighting
            else:
                self._note(step, sighting.missing, f"step {step} is not complete: it lacks {sighting.missing}")

    def _check_unchanged(self, sighting: Sighting) -> None:
        if self._outcomes[sighting.step].state != sighting.state:
            text = f"the files of step {sighting.step} have changed since it was evaluated; it is not evaluated again"
            self._note(sighting.step, "changed", text)

    def _note(self, step: int, kind: str, text: str) -> None:
        if (step, kind) not in self._noted:
            self._noted.add((step, kind))
            self._actions.append(Note(text))

    def _is_done(self, sighting: Sighting) -> bool:
        """Return whether a step needs no evaluation: it was evaluated, or failed with the same files."""
        outcome = self._outcomes.get(sighting.step)
        return outcome is not None and (
            outcome.status == "evaluated" or (outcome.status == "failed" and outcome.state == sighting.state)
        )

    def _is_wanted(self, step: int) -> bool:
        """Return whether a step is at most the last one of the watch, or the first one behind it."""
        until = self._policy.until_step
        if until is None or step <= until:
            return True
        known = {*self._seen, *self._outcomes}
        return step == min(each for each in known if each >= until)

    def _choose(self, stop: bool, now: float) -> None:
        if stop:
            self._actions.append(End("the stop file is there"))
            return
        remaining = [each for each in self._seen.values() if self._is_wanted(each.sighting.step)]
        remaining = [each for each in remaining if not self._is_done(each.sighting)]
        complete = [each for each in remaining if each.sighting.missing is None]
        ready = sorted(
            (each.sighting for each in complete if now - each.since >= self._policy.settle_s),
            key=lambda sighting: sighting.step,
        )
        if ready:
            self._actions.append(Evaluate(ready[0] if self._policy.order == "oldest" else ready[-1]))
        elif complete:
            return  # until its files have settled
        elif self._policy.once:
            self._actions.append(End("no complete checkpoint is left"))
        elif self._has_reached_end() and all(now - each.since >= self._policy.abandon_s for each in remaining):
            self._actions.append(End(f"step {self._policy.until_step} is done"))

    def _has_reached_end(self) -> bool:
        until = self._policy.until_step
        return until is not None and any(
            step >= until and outcome.status != "changed" for step, outcome in self._outcomes.items()
        )
