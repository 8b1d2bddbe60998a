"""The batches of one call: those that are not prepared yet, those that wait to be sent, and those in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from birdie_zmq.client.job import BATCHES_PER_WORKER, Job
from birdie_zmq.settings import ClientSettings


@dataclass(eq=False)
class _InFlight:
    job: Job
    settled: set[int] = field(default_factory=set)
    """The indices of the items that have an answer or an error."""

    def unsettled(self) -> Job:
        """Return the other items, as a job of their own."""
        if not self.settled:
            return self.job
        return self.job.select([i for i in range(len(self.job.items)) if i not in self.settled])


class Batches:
    """The batches of one call.

    Args:
        jobs: The work; each job is sent as one batch. A job is taken when its batch may be sent, or by `prepare_all`.
        numbers: Gives each batch that is sent its number, which no other batch of the session has.
        settings: The limits of the window.
    """

    def __init__(self, jobs: Iterable[Job], numbers: Iterator[int], settings: ClientSettings) -> None:
        self._unprepared = iter(jobs)
        self._waiting = deque[Job]()
        self._in_flight: dict[int, _InFlight] = {}
        self._characters_in_flight = 0
        self._numbers = numbers
        self._settings = settings

    @property
    def are_settled(self) -> bool:
        """Whether every item has an answer or an error."""
        return not self._in_flight and not self._prepare_one()

    def _prepare_one(self) -> bool:
        """Prepare a job if none waits; return whether one waits."""
        if not self._waiting and (job := next(self._unprepared, None)) is not None:
            self._waiting.append(job)
        return bool(self._waiting)

    def prepare_all(self) -> list[Job]:
        """Prepare all jobs, and return the jobs in flight and those that wait."""
        self._waiting.extend(self._unprepared)
        return [*(each.job for each in self._in_flight.values()), *self._waiting]

    def in_flight(self, number: int) -> Job | None:
        """Return the batch in flight with a number, None if there is none."""
        found = self._in_flight.get(number)
        return None if found is None else found.job

    def fill_window(self, workers: int) -> list[tuple[int, Job]]:
        """Move waiting batches into the window, and return these batches with their numbers.

        Args:
            workers: The number of the broker's workers.
        """
        sent = []
        while self._prepare_one() and self._has_space(self._waiting[0], workers):
            job, number = self._waiting.popleft(), next(self._numbers)
            self._in_flight[number] = _InFlight(job)
            self._characters_in_flight += job.characters
            sent.append((number, job))
        return sent

    def _has_space(self, job: Job, workers: int) -> bool:
        """Return whether one more batch may be in flight.

        Each worker should have one batch in computation and one waiting. Beyond the minimum window, the characters in flight
        are limited, so that they stay within the broker's limits for one client.
        """
        count, settings = len(self._in_flight), self._settings
        if count < settings.window:
            return True
        if count >= min(BATCHES_PER_WORKER * workers + 1, settings.max_window):
            return False
        return self._characters_in_flight + job.characters <= settings.max_characters_in_flight

    def settle(self, number: int, indices: Sequence[int]) -> dict[int, int]:
        """Record answers or errors of some items of a batch in flight, which may have been settled before.

        Returns:
            The index of each item that is settled now, with its first position in `indices`.
        """
        in_flight = self._in_flight[number]
        new: dict[int, int] = {}
        for position, index in enumerate(indices):
            if index not in in_flight.settled:
                new.setdefault(index, position)
        in_flight.settled.update(new)
        if len(in_flight.settled) == len(in_flight.job.items):
            self.remove(number)
        return new

    def remove(self, number: int) -> None:
        """Remove a batch in flight."""
        self._characters_in_flight -= self._in_flight.pop(number).job.characters

    def send_again(self) -> None:
        """Let the unsettled items of all batches in flight wait again, before the others."""
        self._waiting.extendleft(reversed([each.unsettled() for each in self._in_flight.values()]))
        self._in_flight.clear()
        self._characters_in_flight = 0
