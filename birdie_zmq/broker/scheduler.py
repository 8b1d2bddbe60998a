"""Batches, their parts, the queues that these wait in, and which of them a worker gets next.

One queue a model, in which the clients take turns: each one's batches in their order, and one of each before the next
of any, so that a client that submits much makes another wait for one batch at a time.

A worker stays with the model it has loaded, because changing it means a new process; it changes when its own queue is
empty, or when another model's batch has waited longer than the patience *and* its own model has been served for that
long. So two runs that never let their queues drain take turns, and at most one change a patience is spent on it.

Batches whose texts have a long beginning in common go to the worker that has computed it, and one that has to begin with
another takes what nobody is at; but only among the batches of the client whose turn it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from birdie_zmq.types import ModelSpec, StepLimits, Work


@dataclass(eq=False)
class Batch:
    """What one client submitted once, in a message of ``size_bytes``, and how far it has come.

    ``submitted_at`` is in monotonic seconds. ``settled`` holds the indices that need no further work, because they have
    an answer or will have none.
    """

    client: bytes
    number: int
    model: ModelSpec
    work: Work
    limits: StepLimits
    submitted_at: float
    identity: str | None = None
    prefix: str | None = None
    settled: set[int] = field(default_factory=set)
    size_bytes: int = 0


@dataclass(eq=False)
class SubBatch:
    """Items of one batch that go to a worker together: all of them, until the batch is suspected of killing processes.

    ``items`` are indices of the batch. ``attempts`` counts how often they were handed out, ``losses`` how often whoever
    worked on them was lost meanwhile, ``losses_alone`` how often of those there was one item only. ``turn`` is the round
    of its queue in which it is its client's. Of one that ``is_shared`` some items are also in another part. ``answered``
    are those that this attempt has answered.
    """

    batch: Batch
    items: list[int]
    attempts: int = 0
    losses: int = 0
    losses_alone: int = 0
    turn: int = 0
    is_shared: bool = False
    answered: set[int] = field(default_factory=set)

    @classmethod
    def whole(cls, batch: Batch) -> SubBatch:
        """All items of a batch."""
        return cls(batch, list(range(len(batch.work))))

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what killed a process. It is then handed out alone, so that no other is suspected with it."""
        return self.losses > 0

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be done."""
        return self.batch.settled.issuperset(self.items)

    def next_attempt(self) -> Work:
        """Begin another attempt, with the items that are not settled: their work."""
        self.attempts += 1
        self.answered.clear()
        self.items = [item for item in self.items if item not in self.batch.settled]
        return self.batch.work if len(self.items) == len(self.batch.work) else self.batch.work.select(self.items)


class _Turns:
    """The rounds in which clients take turns. ``at`` is the one that is served."""

    def __init__(self) -> None:
        self.at = 0
        self._last: dict[bytes, int] = {}

    def next_for(self, client: bytes) -> int:
        """The first round that is not over and in which a client has no part yet."""
        turn = max(self.at, self._last.get(client, -1) + 1)
        self._last[client] = turn
        return turn

    def serve(self, turn: int) -> None:
        """Go on to a round; what was before it is forgotten."""
        if turn > self.at:
            self.at = turn
            self._last = {client: last for client, last in self._last.items() if last >= turn}


@dataclass(frozen=True)
class PrefixAffinity:
    """What texts begin with, by names: those that a worker was given last, and those that any was, itself included."""

    own: str | None = None
    all: Collection[str] = ()


def _best_place(queue: Sequence[SubBatch], prefixes: PrefixAffinity) -> int:
    """Where the part stands that a worker should have, of those of the client whose turn it is."""
    first = queue[0]
    free = None
    for place, part in enumerate(queue):
        prefix = part.batch.prefix
        if part.batch.client != first.batch.client or part.is_suspect != first.is_suspect:
            continue
        if prefix is not None and prefix == prefixes.own:
            return place
        if free is None and (prefix is None or prefix not in prefixes.all):
            free = place
            if prefixes.own is None:
                break
    return free or 0


class Scheduler:
    """Waiting parts, by model. Each item is in at most one place: in a part here, or leased to one worker."""

    def __init__(self) -> None:
        self._waiting: dict[ModelSpec, deque[SubBatch]] = {}
        self._turns: dict[ModelSpec, _Turns] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[SubBatch]:
        for queue in self._waiting.values():
            yield from queue

    @property
    def wants_idle(self) -> bool:
        """Whether only a worker that holds nothing may be given what comes next: a suspect, of each model."""
        return all(queue[0].is_suspect for queue in self._waiting.values())

    def append(self, part: SubBatch) -> None:
        """Queue a part behind all that its client has for the same model, and in turn with those of others."""
        model = part.batch.model
        queue = self._waiting.setdefault(model, deque())
        part.turn = self._turns.setdefault(model, _Turns()).next_for(part.batch.client)
        place = len(queue)
        while place and queue[place - 1].turn > part.turn:
            place -= 1
        queue.insert(place, part)

    def put_back(self, part: SubBatch) -> None:
        """Queue a part whose lease was lost before all others for the same model."""
        self._waiting.setdefault(part.batch.model, deque()).appendleft(part)

    def drop(self, batch: Batch) -> None:
        """Take out every part of a batch."""
        queue = self._waiting.get(batch.model, deque())
        self._replace(batch.model, deque(part for part in queue if part.batch is not batch))

    def clear(self) -> None:
        """Take out everything."""
        self._waiting.clear()
        self._turns.clear()

    def take(self, model: ModelSpec, *, alone: bool, prefixes: PrefixAffinity = PrefixAffinity()) -> SubBatch | None:
        """The next part for a model, None where none waits.

        Args:
            model: The model.
            alone: Whether the worker holds nothing else; to one that does, a suspect is not given.
            prefixes: Who is at which.
        """
        queue = self._waiting.get(model)
        if not queue or (queue[0].is_suspect and not alone):
            return None
        place = _best_place(queue, prefixes)
        if place:  # Another of the same client has its turn.
            first, better = queue[0], queue[place]
            first.turn, better.turn = better.turn, first.turn
            queue[0], queue[place] = better, first
        part = queue.popleft()
        if (turns := self._turns.get(model)) is not None:
            turns.serve(part.turn)
        self._replace(model, queue)
        return part

    def oldest(self, *, other_than: ModelSpec | None) -> SubBatch | None:
        """The part for another model that has waited longest; it stays queued."""
        others = (part for model, queue in self._waiting.items() if model != other_than for part in queue)
        return min(others, key=lambda part: part.batch.submitted_at, default=None)

    def choose(
        self,
        loaded: ModelSpec | None,
        loaded_at: float,
        now: float,
        switch_delay_s: float,
        *,
        alone: bool,
        may_change: bool,
        prefixes: PrefixAffinity = PrefixAffinity(),
    ) -> SubBatch | None:
        """Take the part that a worker is to work on next, by the rule at the top of this module.

        Args:
            loaded: The model that the worker has, or is loading.
            loaded_at: Since when.
            now: The current time.
            switch_delay_s: How long a batch of another model waits before it is worth a change.
            alone: Whether the worker holds nothing that it would have to finish first.
            may_change: Whether it may be given another model, if it holds nothing.
            prefixes: Who is at which.
        """
        other = self.oldest(other_than=loaded)
        waits = loaded is not None and loaded in self._waiting
        if other is None:
            change = False
        elif waits:
            change = now - max(other.batch.submitted_at, loaded_at) > switch_delay_s
        else:
            change = True
        if change and other is not None:
            # A worker that still holds leases of its model is let run dry first.
            return self.take(other.batch.model, alone=True, prefixes=prefixes) if alone and may_change else None
        return self.take(loaded, alone=alone, prefixes=prefixes) if loaded is not None else None

    def _replace(self, model: ModelSpec, queue: deque[SubBatch]) -> None:
        if queue:
            self._waiting[model] = queue
        else:
            self._waiting.pop(model, None)
            self._turns.pop(model, None)
