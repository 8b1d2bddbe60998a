"""The scores of each position of sequences, collected from the steps of a plan.

The targets of a sequence come in the order of its tokens: the steps that prefill a shared prefix run in order, and before
the steps that start from it. So a position needs no name in a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import TokenScores, TopTokens
from birdie_zmq.engine.events import Event, ItemFailed
from birdie_zmq.engine.output_checks import non_finite_logits
from birdie_zmq.engine.planning.steps import ScoredSequence, Step
from birdie_zmq.errors import InternalError


@dataclass(frozen=True)
class SequenceScores:
    """The scores of n tokens in order.

    Attributes:
        logprobs: float32[n], the log-probability of each token, in nats.
        top: The most likely tokens in place of each, [n, k].
    """

    logprobs: npt.NDArray[np.float32]
    top: TopTokens

    @classmethod
    def empty(cls, count: int, top: int) -> SequenceScores:
        """Return arrays for the scores of `count` tokens, with the ``top`` most likely tokens of each."""
        tokens = TopTokens(np.zeros((count, top), np.int32), np.zeros((count, top), np.float32))
        return cls(np.zeros(count, np.float32), tokens)

    def __len__(self) -> int:
        return len(self.logprobs)

    def put(self, at: int, other: SequenceScores) -> None:
        """Write the scores of other tokens, with at least as many most likely ones, from a position on."""
        where, k = slice(at, at + len(other)), self.top.ids.shape[1]
        self.logprobs[where] = other.logprobs
        self.top.ids[where] = other.top.ids[:, :k]
        self.top.logprobs[where] = other.top.logprobs[:, :k]

    @property
    def top_count(self) -> int:
        """The number of most likely tokens of each position."""
        return int(self.top.ids.shape[1])

    @property
    def size_bytes(self) -> int:
        """The memory of the arrays."""
        return self.logprobs.nbytes + self.top.ids.nbytes + self.top.logprobs.nbytes

    def copy(self) -> SequenceScores:
        """Return the same scores in arrays of their own."""
        return SequenceScores(self.logprobs.copy(), TopTokens(self.top.ids.copy(), self.top.logprobs.copy()))

    def followed_by(self, other: SequenceScores) -> SequenceScores:
        """Return these scores and those of further tokens, with the number of most likely tokens that both have."""
        both = SequenceScores.empty(len(self) + len(other), min(self.top_count, other.top_count))
        both.put(0, self)
        both.put(len(self), other)
        return both

    def cut(self, begin: int, end: int) -> SequenceScores:
        """Return the scores of the tokens from `begin` to `end` - 1."""
        top = TopTokens(self.top.ids[begin:end], self.top.logprobs[begin:end])
        return SequenceScores(self.logprobs[begin:end], top)


class PositionScores:
    """The scores of sequences, for `birdie_zmq.engine.scoring.run_scoring`.

    Args:
        sequences: The sequences; each has a scored token.
        indices: The index of the item of each sequence, for errors.
        top: The number of most likely tokens of each position, at least 1.
    """

    def __init__(self, sequences: Sequence[ScoredSequence], indices: Sequence[int], top: int) -> None:
        self.top = top
        self._sequences = sequences
        self._indices = indices
        self._found: list[SequenceScores | None] = [None] * len(sequences)
        self._filled = np.zeros(len(sequences), np.int64)
        self._owners: list[int] = []  # of each planned sequence, its number
        self._complete: list[tuple[int, SequenceScores]] = []

    def unfinished(self) -> list[ScoredSequence]:
        """Return the sequences that have a position without a score."""
        return [self._sequences[number] for number in self._unfinished()]

    def begin(self, steps: Sequence[Step]) -> None:
        """Begin a plan of the unfinished sequences; what an earlier plan has given for them is dropped."""
        del steps
        self._owners = self._unfinished()
        self._filled[self._owners] = 0

    def add(self, step: Step, scores: TokenScores) -> Iterator[Event]:
        """Add the scores of a step; `take_complete` returns the sequences that are complete then.

        Raises:
            ItemFailed: A score is not finite.
        """
        if not scores.finite.all():
            owner = self._owners[int(step.owners[np.argmin(scores.finite)])]
            raise ItemFailed(self._indices[owner], non_finite_logits())
        assert scores.top is not None
        found = SequenceScores(scores.logprobs, scores.top)
        begins = np.flatnonzero(np.diff(step.owners, prepend=-1))
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(step.owners)], strict=True):
            self._add_group(self._owners[int(step.owners[begin])], found.cut(begin, end))
        return iter(())

    def _add_group(self, number: int, scores: SequenceScores) -> None:
        """Add the next scores of a sequence."""
        count = self._sequences[number].count
        sequence = self._found[number]
        if sequence is None:
            sequence = self._found[number] = SequenceScores.empty(count, scores.top.ids.shape[1])
        at = int(self._filled[number])
        if at + len(scores) > count:
            raise InternalError(f"a plan scores more than the {count} positions of a sequence")
        sequence.put(at, scores)
        self._filled[number] += len(scores)
        if at + len(scores) == count:
            self._complete.append((number, sequence))

    def take_complete(self) -> list[tuple[int, SequenceScores]]:
        """Return each sequence that has become complete since the last call, by number, with its scores."""
        complete, self._complete = self._complete, []
        return complete

    def _unfinished(self) -> list[int]:
        return [number for number, sequence in enumerate(self._sequences) if self._filled[number] < sequence.count]
