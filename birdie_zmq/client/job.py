"""A job: work of one call that is sent in one message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from birdie_zmq.client.batch_splitting import MIN_ITEMS, split_batch
from birdie_zmq.types import Work

BATCHES_PER_WORKER = 2
"""Each worker should have one batch in computation and one that waits, which an idle worker can steal."""


@dataclass(frozen=True)
class Job:
    """Work to be sent in one message.

    ``items`` holds the caller's numbers of its items, ``characters`` is the total size of its texts, and ``prefix`` is the
    field of `birdie_zmq.protocol.messages.Submit`.
    """

    work: Work
    items: list[int]
    prefix: str | None = None
    characters: int = 0

    def select(self, indices: Sequence[int]) -> Job:
        """Return the same job for some of its items; its characters are in proportion."""
        return replace(
            self,
            work=self.work.select(indices),
            items=[self.items[i] for i in indices],
            characters=self.characters * len(indices) // len(self.items),
        )

    def split(self, count: int) -> list[Job]:
        """Split the job into at most `count` jobs."""
        parts = split_batch(self.work, count)
        return [self] if len(parts) < 2 else [self.select(part) for part in parts]


def split_short_call(jobs: Iterable[Job], workers: int) -> Iterator[Job]:
    """Split the jobs of a call if there are no more jobs than workers, so that each worker has a job.

    At most ``workers`` + 1 jobs are taken before the first is returned.
    """
    remaining = iter(jobs)
    if workers < 2:
        return remaining
    first = list(islice(remaining, workers + 1))
    if len(first) > workers:
        return chain(first, remaining)
    total = sum(len(job.items) for job in first)
    target = workers * (BATCHES_PER_WORKER if total >= BATCHES_PER_WORKER * workers * MIN_ITEMS else 1)
    return (part for job in first for part in job.split(round(len(job.items) * target / total)))
