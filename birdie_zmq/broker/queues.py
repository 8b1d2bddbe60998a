"""Batches, the queues that they wait in, and which of them a worker gets next.

One queue a model, first in, first out. A worker stays with the model it has loaded, because changing it means a new
process; it changes when its own queue is empty, or when another model's batch has waited longer than the patience
*and* its own model has been served for that long. So two runs that never let their queues drain take turns, and at
most one change a patience is spent on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from birdie_zmq.wire.messages import ModelSpec, StepLimits, Work


@dataclass(eq=False)
class Batch:
    """What one client submitted once, and how far it has come.

    ``submitted_at`` is in monotonic seconds. ``answered`` holds the indices that need no further work; ``leased`` maps
    the items of the current lease to the batch's own indices. ``abandoned`` says that nobody waits for it any more.
    """

    client: bytes
    number: int
    model: ModelSpec
    work: Work
    limits: StepLimits
    submitted_at: float
    answered: set[int] = field(default_factory=set)
    leased: list[int] = field(default_factory=list)
    attempts: int = 0
    abandoned: bool = False

    def next_attempt(self) -> Work:
        """Begin another attempt: the work that is still to be done."""
        self.attempts += 1
        self.leased = [i for i in range(len(self.work)) if i not in self.answered]
        return self.work if not self.answered else self.work.select(self.leased)

    @property
    def is_answered(self) -> bool:
        """Whether every item has its answer."""
        return len(self.answered) == len(self.work)


class Queues:
    """Waiting batches, by model. Each batch is in at most one place: here, or leased to one worker."""

    def __init__(self) -> None:
        self._waiting: dict[ModelSpec, deque[Batch]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Batch]:
        for queue in self._waiting.values():
            yield from queue

    def append(self, batch: Batch) -> None:
        """Queue a batch behind those for the same model."""
        self._waiting.setdefault(batch.model, deque()).append(batch)

    def put_back(self, batch: Batch) -> None:
        """Queue a batch before all others for the same model: its lease was lost."""
        self._waiting.setdefault(batch.model, deque()).appendleft(batch)

    def drop(self, unwanted: Callable[[Batch], bool]) -> list[Batch]:
        """Take out every batch that is unwanted."""
        dropped: list[Batch] = []
        for model, queue in list(self._waiting.items()):
            dropped += [batch for batch in queue if unwanted(batch)]
            self._replace(model, deque(batch for batch in queue if not unwanted(batch)))
        return dropped

    def take(self, model: ModelSpec) -> Batch | None:
        """The next batch for a model, None where none waits."""
        queue = self._waiting.get(model)
        if not queue:
            return None
        batch = queue.popleft()
        self._replace(model, queue)
        return batch

    def oldest(self, *, other_than: ModelSpec | None) -> Batch | None:
        """The batch that has waited longest among the heads of the queues of other models; it stays queued."""
        heads = [queue[0] for model, queue in self._waiting.items() if model != other_than]
        return min(heads, key=lambda batch: batch.submitted_at, default=None)

    def choose(
        self, loaded: ModelSpec | None, loaded_at: float, may_change: bool, now: float, patience_s: float
    ) -> Batch | None:
        """Take the batch that a worker is to work on next, by the rule at the top of this module.

        Args:
            loaded: The model that the worker has, or is loading.
            loaded_at: Since when.
            may_change: Whether the worker holds nothing that it would have to finish first.
            now: The current time.
            patience_s: How long a batch of another model waits before it is worth a change.
        """
        other = self.oldest(other_than=loaded)
        waits = loaded is not None and loaded in self._waiting
        if other is None:
            change = False
        elif waits:
            change = now - max(other.submitted_at, loaded_at) > patience_s
        else:
            change = True
        if change and other is not None:
            # A worker that still holds leases of its model is let run dry first.
            return self.take(other.model) if may_change else None
        return self.take(loaded) if loaded is not None else None

    def _replace(self, model: ModelSpec, queue: deque[Batch]) -> None:
        if queue:
            self._waiting[model] = queue
        else:
            self._waiting.pop(model, None)
