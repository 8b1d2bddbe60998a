"""The scheduler: queues of sub-batches by model, and the choice of the next sub-batch of a worker.

Each model has a queue, in which clients take turns round-robin. The batches of one client keep their order, and each
client gets one batch before any client gets the next. So a client that submits many batches delays another client by
one batch at a time. Models that differ only in request arguments have queues of their own with common rounds: a worker
that ignores these arguments serves the queues as if they were one.

A worker keeps the model that it has loaded, because a switch means a new process. It switches if the queue of its model
is empty, or if a batch of another model has waited longer than the switch delay *and* the worker's own model has been
loaded for that long. So two runs that keep their queues filled take turns, with at most one model switch per switch delay.

Prefix affinity: batches whose texts share a long prefix go to the worker that has computed that prefix. A worker that
finds no batch with its own prefix takes one without a prefix, or with a prefix that no worker has. Both rules choose
only among the batches of the client whose turn it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from birdie_zmq.protocol.items import PackedWork
from birdie_zmq.types import REQUEST_ARGUMENTS, ModelSpec, StepLimits


@dataclass(eq=False)
class Batch:
    """The work of one Submit message, of ``size_bytes``, and its progress.

    ``number`` is the client's own number of the batch. ``submitted_at`` is in monotonic seconds. ``settled`` holds the
    indices of the items that need no further work, because they are answered or have failed.
    """

    client: bytes
    number: int
    model: ModelSpec
    work: PackedWork
    limits: StepLimits
    submitted_at: float
    identity: str | None = None
    prefix: str | None = None
    settled: set[int] = field(default_factory=set)
    size_bytes: int = 0


@dataclass(eq=False)
class SubBatch:
    """Items of one batch that are leased together: all, unless crashes or work stealing have split the batch.

    ``items`` are indices of the batch. ``attempts`` counts the leases of these items, ``crashes`` the leases during
    which the worker or model process died, and ``crashes_alone`` the crashes with one unsettled item. ``turn`` is the
    round of the round-robin in which the client of the batch gets it. If ``is_duplicated``, some of the items are also
    in another leased sub-batch. ``answered`` holds the indices that the current attempt has answered.
    """

    batch: Batch
    items: list[int]
    attempts: int = 0
    crashes: int = 0
    crashes_alone: int = 0
    turn: int = 0
    is_duplicated: bool = False
    answered: set[int] = field(default_factory=set)

    @classmethod
    def whole(cls, batch: Batch) -> SubBatch:
        """Return a sub-batch of all items of a batch."""
        return cls(batch, list(range(len(batch.work))))

    @property
    def is_suspect(self) -> bool:
        """Whether it may have killed a process. A suspect is leased alone, so that no other sub-batch becomes suspect."""
        return self.crashes > 0

    @property
    def unsettled(self) -> list[int]:
        """The items that are not settled."""
        return [item for item in self.items if item not in self.batch.settled]

    @property
    def unsettled_count(self) -> int:
        """Number of items that are not settled, found without a scan of the items where possible."""
        settled = self.batch.settled
        if not settled:
            return len(self.items)
        if len(self.items) == len(self.batch.work):
            return len(self.items) - len(settled)
        return sum(item not in settled for item in self.items)

    @property
    def is_settled(self) -> bool:
        """Whether all its items are settled."""
        return self.batch.settled.issuperset(self.items)

    def next_attempt(self) -> PackedWork:
        """Start another attempt with the unsettled items, and return their work."""
        self.attempts += 1
        self.answered.clear()
        self.items = self.unsettled
        return self.batch.work if len(self.items) == len(self.batch.work) else self.batch.work.select(self.items)


class _RoundRobin:
    """The rounds in which the clients of one model take turns. ``current`` is the round that is being served."""

    def __init__(self) -> None:
        self.current = 0
        self._last: dict[bytes, int] = {}

    def next_turn(self, client: bytes) -> int:
        """Reserve the next free turn of a client: the first round from ``current`` on in which it has none."""
        turn = max(self.current, self._last.get(client, -1) + 1)
        self._last[client] = turn
        return turn

    def advance(self, turn: int) -> None:
        """Advance to a round, and forget the turns of earlier rounds."""
        if turn > self.current:
            self.current = turn
            self._last = {client: last for client, last in self._last.items() if last >= turn}


@dataclass(frozen=True)
class PrefixAffinity:
    """Prefix names: ``own`` is the prefix of a worker's last batch, ``all`` the prefixes of all workers' last batches."""

    own: str | None = None
    all: Collection[str] = ()


class Candidate(NamedTuple):
    """A worker that may be granted a lease.

    It switched to ``model`` at ``model_since``, in monotonic seconds, and has loaded it or is loading it. It is idle if it
    holds no leases that it has to finish first. ``ignored`` names the request arguments that it ignores.
    """

    model: ModelSpec | None
    model_since: float
    is_idle: bool
    prefixes: PrefixAffinity = PrefixAffinity()
    ignored: Collection[str] = ()


def _preferred_index(queue: Sequence[SubBatch], prefixes: PrefixAffinity) -> int:
    """Return the index of the sub-batch that a worker prefers, among the sub-batches of the client whose turn it is."""
    first = queue[0]
    free = None
    for index, sub_batch in enumerate(queue):
        prefix = sub_batch.batch.prefix
        if sub_batch.batch.client != first.batch.client or sub_batch.is_suspect != first.is_suspect:
            continue
        if prefix is not None and prefix == prefixes.own:
            return index
        if free is None and (prefix is None or prefix not in prefixes.all):
            free = index
            if prefixes.own is None:
                break
    return free or 0


class Scheduler:
    """The waiting sub-batches, by model. An item is either in one sub-batch here or leased."""

    def __init__(self) -> None:
        self._waiting: dict[ModelSpec, deque[SubBatch]] = {}
        self._turns: dict[ModelSpec, _RoundRobin] = {}
        """The rounds of each model without its request arguments."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[SubBatch]:
        for queue in self._waiting.values():
            yield from queue

    @property
    def needs_idle_worker(self) -> bool:
        """Whether the next sub-batch of each model is a suspect, which only a worker without leases may get."""
        return all(queue[0].is_suspect for queue in self._waiting.values())

    def append(self, sub_batch: SubBatch) -> None:
        """Queue a sub-batch for its model: behind its client's other sub-batches, in turn with other clients."""
        model = sub_batch.batch.model
        queue = self._waiting.setdefault(model, deque())
        turns = self._turns.setdefault(model.without(REQUEST_ARGUMENTS), _RoundRobin())
        sub_batch.turn = turns.next_turn(sub_batch.batch.client)
        index = len(queue)
        while index and queue[index - 1].turn > sub_batch.turn:
            index -= 1
        queue.insert(index, sub_batch)

    def requeue(self, sub_batch: SubBatch) -> None:
        """Queue a sub-batch whose lease has ended ahead of all others for the same model."""
        self._waiting.setdefault(sub_batch.batch.model, deque()).appendleft(sub_batch)

    def drop(self, batch: Batch) -> None:
        """Remove all sub-batches of a batch."""
        queue = self._waiting.get(batch.model, deque())
        self._replace(batch.model, deque(sub_batch for sub_batch in queue if sub_batch.batch is not batch))

    def clear(self) -> None:
        """Remove all sub-batches."""
        self._waiting.clear()
        self._turns.clear()

    def take(self, model: ModelSpec, *, is_idle: bool, prefixes: PrefixAffinity = PrefixAffinity()) -> SubBatch | None:
        """Remove and return the next sub-batch for a model, or None if none may be taken.

        Args:
            model: The model.
            is_idle: Whether the worker holds no leases. A worker with leases does not get a suspect.
            prefixes: The prefixes of this worker and of all workers.
        """
        queue = self._waiting.get(model)
        if not queue or (queue[0].is_suspect and not is_idle):
            return None
        index = _preferred_index(queue, prefixes)
        if index:  # It swaps turns with the first sub-batch of the same client.
            first, better = queue[0], queue[index]
            first.turn, better.turn = better.turn, first.turn
            queue[0], queue[index] = better, first
        sub_batch = queue.popleft()
        if (turns := self._turns.get(model.without(REQUEST_ARGUMENTS))) is not None:
            turns.advance(sub_batch.turn)
        self._replace(model, queue)
        return sub_batch

    def oldest(self, *, other_than: ModelSpec | None, ignored: Collection[str] = ()) -> SubBatch | None:
        """Return the sub-batch of another model that has waited longest; it stays queued.

        Args:
            other_than: The model.
            ignored: The names of request arguments in which another model does not count as another.
        """
        served = set(self._served(other_than, ignored))
        others = (sub_batch for model, queue in self._waiting.items() if model not in served for sub_batch in queue)
        return min(others, key=lambda sub_batch: sub_batch.batch.submitted_at, default=None)

    def _served(self, loaded: ModelSpec | None, ignored: Collection[str]) -> list[ModelSpec]:
        """Return the models with a queue that a worker serves which has loaded a model, and ignores some arguments."""
        if loaded is None:
            return []
        if not ignored:
            return [loaded] if loaded in self._waiting else []
        loaded = loaded.without(ignored)
        return [model for model in self._waiting if model.without(ignored) == loaded]

    def choose(self, candidate: Candidate, now: float, switch_delay_s: float, *, may_switch: bool) -> SubBatch | None:
        """Remove and return the next sub-batch for a worker by the rules of this module, or None.

        Args:
            candidate: The worker.
            now: The current time, in monotonic seconds.
            switch_delay_s: Seconds that a batch of another model waits before a worker with queued work switches to it.
            may_switch: Whether the worker may switch models if it is idle.
        """
        served = self._served(candidate.model, candidate.ignored)
        model = min(served, key=lambda each: self._waiting[each][0].turn, default=None)
        other = self.oldest(other_than=candidate.model, ignored=candidate.ignored)
        if other is not None and (
            model is None or now - max(other.batch.submitted_at, candidate.model_since) > switch_delay_s
        ):
            if not (candidate.is_idle and may_switch):
                return None  # A worker that still holds leases of its model finishes these first.
            model = other.batch.model
        return None if model is None else self.take(model, is_idle=candidate.is_idle, prefixes=candidate.prefixes)

    def _replace(self, model: ModelSpec, queue: deque[SubBatch]) -> None:
        if queue:
            self._waiting[model] = queue
        else:
            self._waiting.pop(model, None)
            common = model.without(REQUEST_ARGUMENTS)
            if not any(other.without(REQUEST_ARGUMENTS) == common for other in self._waiting):
                self._turns.pop(common, None)
