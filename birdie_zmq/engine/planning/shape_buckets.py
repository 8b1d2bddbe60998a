"""The few shapes that steps have: a row of lengths, and one number of rows for each.

What is compiled is decided by shape, so every step has one of these shapes and is padded up to it. Lengths grow by a
third or a half at a time (16, 24, 32, 48, 64, 96, …), which keeps the padding of a row under a third of it beyond the
shortest, and their number, which bounds the compiles, near twice the logarithm of the longest.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from birdie_zmq.types import StepLimits

SHORTEST = 16
AUTOMATIC = StepLimits()

MOST_PIECE_TOKENS = 1024
"""A longer text is read in several steps; a longer row of texts spends more on attention than it saves in padding."""

PROMPT_PIECES = (16, 32, 64, 128, 256, 512, 1024)
"""The lengths in which prompts are read before they are continued."""


def bucket_lengths(max_length: int) -> tuple[int, ...]:
    """The lengths of steps for a model of ``max_length`` tokens, ascending; the last is ``max_length`` itself."""
    return (*(length for length in _GROWN if SHORTEST <= length < max_length), max_length)


_GROWN = tuple(length for power in range(2, 24) for length in (1 << power, 3 << (power - 1)))


@dataclass(frozen=True)
class StepBudget:
    """What bounds a step when nobody said how many rows it has.

    ``tokens`` is the number of positions beyond which a larger step is no faster on the device; ``call_tokens`` is
    what a call costs beyond its tokens, in tokens, and ``row_tokens`` what a row costs in a call that decodes one
    token for each; ``logits_bytes`` is the most memory that the float32 logits of a step may take; ``rows`` bounds
    the rows whatever their length. ``head_bytes`` is what logits may take before they are computed in blocks of the
    vocabulary, a quarter of it each, where a model gives its head in parts; on a CPU, what stays in its cache.
    ``decoded`` is how many tokens one call decodes for each row of a generation, which has at most ``decoding_rows``.
    ``row_unit`` is the number of groups of devices to which the rows of a step are dealt out, so that steps of
    several rows have a multiple of it.
    """

    tokens: int
    call_tokens: int = 32
    row_tokens: int = 6
    logits_bytes: int = 2**29
    head_bytes: int = 2**24
    rows: int = 64
    decoded: int = 1
    decoding_rows: int = 16
    row_unit: int = 1

    def times(self, groups: int) -> StepBudget:
        """The budget of so many groups of devices, each of which computes its share of the rows."""
        return replace(
            self,
            tokens=self.tokens * groups,
            logits_bytes=self.logits_bytes * groups,
            head_bytes=self.head_bytes * groups,
            rows=self.rows * groups,
            decoding_rows=self.decoding_rows * groups,
            row_unit=self.row_unit * groups,
        )


@dataclass(frozen=True)
class Buckets:
    """The shapes of steps.

    Args:
        max_length: The most tokens of a row.
        vocab_size: The size of the last axis of the logits; 0 where a step holds no logits of all its positions.
        budget: What bounds a step.
        limits: What the user said of the rows.
    """

    max_length: int
    vocab_size: int
    budget: StepBudget
    limits: StepLimits = AUTOMATIC

    @property
    def lengths(self) -> tuple[int, ...]:
        """All lengths, ascending."""
        return bucket_lengths(self.max_length)

    @property
    def grown_lengths(self) -> tuple[int, ...]:
        """The lengths of steps of models that read in pieces, or several texts in a row: no model's own length."""
        return _GROWN

    def piece_lengths(self, shortest: int) -> tuple[int, ...]:
        """Those of `grown_lengths` from the shortest on that a step of the budget may have; ascending."""
        most = min(MOST_PIECE_TOKENS, max(self.budget.tokens, shortest, self.lengths[0]))
        return tuple(length for length in _GROWN if shortest <= length <= most)

    def grown_length_for(self, tokens: int) -> int:
        """The shortest of `grown_lengths` that holds this many tokens."""
        return _GROWN[bisect_left(_GROWN, tokens)]

    def length_for(self, tokens: int) -> int:
        """The shortest bucket that holds this many tokens, which must be 1 to ``max_length``."""
        lengths = self.lengths
        return lengths[bisect_left(lengths, tokens)]

    @property
    def row_unit(self) -> int:
        """What the rows of a step are a multiple of, where there are several: the budget's, unless the user wants fewer."""
        return 1 if self.limits.max_rows and self.limits.max_rows < self.budget.row_unit else self.budget.row_unit

    def rows_for(self, length: int) -> int:
        """How many rows a step of this length has: a power of two of units, unless the user forced a number."""
        if self.limits.rows is not None:
            return self.limits.rows
        most = min(
            self.budget.tokens // length,
            self.budget.logits_bytes // (4 * length * self.vocab_size) if self.vocab_size else self.budget.rows,
            self.budget.rows,
            self.limits.max_rows or self.budget.rows,
        )
        return self.row_unit << (max(1, most // self.row_unit).bit_length() - 1)

    def row_counts(self, most: int) -> tuple[int, ...]:
        """The numbers of rows that steps of at most so many have, where they are not forced; ascending."""
        return tuple(self.row_unit << power for power in range((most // self.row_unit).bit_length()))

    def rows_to_hold(self, count: int) -> int:
        """The least of such numbers that holds so many rows, however many that are."""
        return self.row_unit << (-(-count // self.row_unit) - 1).bit_length()

    @property
    def shapes(self) -> frozenset[tuple[int, int]]:
        """Every ``(rows, length)`` that a step can have."""
        return frozenset((self.rows_for(length), length) for length in self.lengths)
