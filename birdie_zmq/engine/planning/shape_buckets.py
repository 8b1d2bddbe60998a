"""Shape buckets: the few (rows, length) shapes that steps are padded to, one row count for each length.

Each shape is compiled once, so every step is padded up to one of these shapes. Lengths grow by a third or a half at a
time (16, 24, 32, 48, 64, 96, …). This keeps padding under a third of each row longer than the shortest bucket. The
number of buckets, which bounds the number of compilations, is about twice the logarithm of the longest length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace

from birdie_zmq.types import StepLimits

Shape = tuple[int, int]
"""The number of rows and the length of a step."""

MIN_LENGTH = 16
AUTOMATIC = StepLimits()

MAX_CHUNK_TOKENS = 1024
"""On a CPU, longer sequences are prefilled in several steps. In longer rows of trees, attention costs more than padding saves."""


LEAST_DECODING_ROWS = 16
"""The rows of a decode batch that `StepBudget.decoding_bytes` does not reduce: each step reads all weights."""


def bucket_lengths(max_length: int) -> tuple[int, ...]:
    """Return the step lengths for a model of ``max_length`` tokens, ascending; the last is ``max_length`` itself."""
    return (*(length for length in _GEOMETRIC_LENGTHS if MIN_LENGTH <= length < max_length), max_length)


_GEOMETRIC_LENGTHS = tuple(length for power in range(2, 24) for length in (1 << power, 3 << (power - 1)))


@dataclass(frozen=True)
class StepBudget:
    """The limits of a step's size, unless the user sets the number of rows.

    Attributes:
        tokens: Number of positions beyond which a larger step is no faster on the device.
        call_tokens: Fixed cost of a call, in tokens.
        row_tokens: Cost of a row in a call that decodes one token for each row, in tokens.
        logits_bytes: Maximum memory for the float32 logits of a step.
        rows: Maximum number of rows of a step of any length.
        head_bytes: Maximum memory for logits that are computed at once. Larger logits are computed in blocks of the
            vocabulary of a quarter of this size each, if the model has `unembed_part`. On a CPU, this size stays
            in its cache.
        tokens_per_call: Number of tokens that one call decodes for each row.
        decoding_rows: Maximum number of rows of a decode batch.
        decoding_bytes: Maximum memory for the states of more than `LEAST_DECODING_ROWS` rows of a decode batch, on each
            device; None to use all memory that is free.
        enlarges_states: Whether the state of a decode batch is enlarged when its rows need more capacity, so that short
            answers do not take the memory of long ones.
        chunk_tokens: Longer sequences are prefilled in several steps, and rows of trees are not longer.
        prefix_cache_bytes: The size of the prefix cache on each device, beyond the states that the current batch needs.
        row_unit: The number of data-parallel device groups over which rows are sharded. Steps of several rows have a
            multiple of it.
        steps_ahead: Number of steps that are submitted before the scores of a step are fetched.
    """

    tokens: int
    call_tokens: int = 32
    row_tokens: int = 6
    logits_bytes: int = 2**29
    head_bytes: int = 2**24
    rows: int = 64
    tokens_per_call: int = 1
    decoding_rows: int = 16
    decoding_bytes: int | None = None
    enlarges_states: bool = False
    chunk_tokens: int = MAX_CHUNK_TOKENS
    prefix_cache_bytes: int = 2**30
    row_unit: int = 1
    steps_ahead: int = 1

    @property
    def overlaps_steps(self) -> bool:
        """Whether the device computes two consecutive steps at the same time, if neither waits for the other."""
        return self.steps_ahead > 1

    def scaled(self, groups: int) -> StepBudget:
        """Return the budget of `groups` data-parallel device groups, each computing its share of the rows."""
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
        max_length: The maximum length of a row, in tokens.
        vocab_size: The size of the last axis of the logits; 0 if a step does not hold the logits of all its positions.
        budget: The limits of a step's size.
        limits: The user's limits on rows.
    """

    max_length: int
    vocab_size: int
    budget: StepBudget
    limits: StepLimits = AUTOMATIC

    @property
    def lengths(self) -> tuple[int, ...]:
        """All bucket lengths, ascending."""
        return bucket_lengths(self.max_length)

    @property
    def geometric_lengths(self) -> tuple[int, ...]:
        """Step lengths for models that prefill in chunks or pack sequences into a row; independent of `max_length`."""
        return _GEOMETRIC_LENGTHS

    def chunk_lengths(self, shortest: int) -> tuple[int, ...]:
        """Return the `geometric_lengths` of at least `shortest` tokens that fit the budget, ascending."""
        most = min(self.budget.chunk_tokens, max(self.budget.tokens, shortest, self.lengths[0]))
        return tuple(length for length in _GEOMETRIC_LENGTHS if shortest <= length <= most)

    def geometric_length_for(self, tokens: int) -> int:
        """Return the shortest of `geometric_lengths` that holds this many tokens."""
        return _GEOMETRIC_LENGTHS[bisect_left(_GEOMETRIC_LENGTHS, tokens)]

    def length_for(self, tokens: int) -> int:
        """Return the shortest bucket that holds this many tokens, which must be 1 to ``max_length``."""
        lengths = self.lengths
        return lengths[bisect_left(lengths, tokens)]

    @property
    def row_unit(self) -> int:
        """The number that row counts above 1 are a multiple of: the budget's, unless the user's `max_rows` is lower."""
        return 1 if self.limits.max_rows and self.limits.max_rows < self.budget.row_unit else self.budget.row_unit

    def rows_for(self, length: int) -> int:
        """Return the row count for this length: a power of two times `row_unit`, unless the user sets a number."""
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
        """Return the row counts up to `most` that steps may have unless the user sets one, ascending."""
        return tuple(self.row_unit << power for power in range((most // self.row_unit).bit_length()))

    def row_count_for(self, count: int) -> int:
        """Return the smallest row count that holds `count` rows, without an upper limit."""
        return self.row_unit << (-(-count // self.row_unit) - 1).bit_length()

    @property
    def shapes(self) -> frozenset[Shape]:
        """Every ``(rows, length)`` that a step of whole rows can have."""
        return frozenset((self.rows_for(length), length) for length in self.lengths)

    def state_shapes(self, max_rows: Mapping[int, int]) -> frozenset[Shape]:
        """Return every ``(rows, length)`` that a step with a state can have.

        Args:
            max_rows: The maximum number of rows of steps of each length.
        """
        shapes = {(1, length) for length in max_rows}
        for length, rows in max_rows.items():
            shapes |= {(count, length) for count in ((rows,) if self.limits.rows else self.row_counts(rows))}
        return frozenset(shapes)
