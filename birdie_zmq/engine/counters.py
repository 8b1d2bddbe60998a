"""Counters of the work that an evaluator has done, and of the work that is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from birdie_zmq.engine.planning.shape_buckets import Shape
from birdie_zmq.types import RunStatistics


@dataclass
class Counters:
    """The counters of one evaluator; `birdie_zmq.types.RunStatistics` documents those without a description here."""

    requests: int = 0
    steps: int = 0
    tokens_requested: int = 0
    tokens_distinct: int = 0
    tokens_computed: int = 0
    tokens_padding: int = 0
    tokens_generated: int = 0
    tokens_thrown_away: int = 0
    planned: int = 0
    """The cost of all steps planned for scoring or prefill so far, by `birdie_zmq.engine.planning.cost_model`."""
    done: int = 0
    """The cost of all scoring, prefill and decode steps so far."""
    remaining: int = 0
    """The cost of the current plan's steps that are not done yet."""
    active_lengths: list[int] = field(default_factory=list)
    """The number of generated tokens of each sequence that is being decoded now."""
    finished_lengths: list[int] = field(default_factory=list)
    """The number of generated tokens of each sequence that ended since the last progress report."""
    decode_rows: int = 1
    """Number of sequences decoded per step."""
    decode_step_cost: int = 0
    """The cost of a decode step."""
    decode_row_cost: int = 0
    """The share of a decode step's cost that is due to each row."""
    pending_shapes: set[Shape] = field(default_factory=set)
    """The shapes of the steps that are planned now."""
    seconds: float = 0.0
    """Seconds of work, without compilation."""
    shapes: set[Shape] = field(default_factory=set)
    """The shapes that were sent to the model."""
    possible_shapes: set[Shape] = field(default_factory=set)
    """All shapes that a step may have."""

    @property
    def pending_compiles(self) -> int:
        """Number of planned shapes that the model has not been called with yet."""
        return len(self.pending_shapes - self.shapes)

    def plan(self, cost: int, shapes: Iterable[Shape]) -> None:
        """Record a new plan with this cost and these shapes, in place of the previous plan."""
        self.planned += cost
        self.remaining = cost
        self.pending_shapes = set(shapes)

    def complete(self, cost: int) -> None:
        """Record that a part of the plan is done."""
        self.done += cost
        self.remaining = max(0, self.remaining - cost)

    def decode_progress(self, cost: int, active_lengths: list[int], finished_lengths: list[int]) -> None:
        """Record that decoding has added tokens to sequences.

        Args:
            cost: The cost of these tokens.
            active_lengths: The number of generated tokens of each sequence that continues.
            finished_lengths: The number of generated tokens of each sequence that has just ended.
        """
        self.done += cost
        self.active_lengths = active_lengths
        self.finished_lengths += finished_lengths

    def clear_pending(self) -> None:
        """Record that nothing is being computed any more."""
        self.remaining = 0
        self.active_lengths = []
        self.pending_shapes = set()

    def add_step(self, shape: Shape, used: int) -> None:
        """Count one call of the model, with this number of positions that are not padding."""
        rows, length = shape
        self.shapes.add(shape)
        self.steps += 1
        self.tokens_computed += rows * length
        self.tokens_padding += rows * length - used

    def add_decode_step(self, rows: int, tokens: int, active: int, used: int) -> None:
        """Count one call of the model that decodes tokens for each row.

        Args:
            rows: The number of rows.
            tokens: The number of tokens that the call decodes for each row.
            active: The number of rows that hold a sequence.
            used: The number of tokens of the active rows that became part of an answer.
        """
        self.shapes.add((rows, 1))
        self.steps += 1
        self.tokens_computed += rows * tokens
        self.tokens_padding += rows * tokens - used
        self.tokens_generated += used
        self.tokens_thrown_away += active * tokens - used

    def allow_shapes(self, shapes: Iterable[Shape]) -> None:
        """Add shapes that a step may have."""
        self.possible_shapes.update(shapes)

    def statistics(self, *, compile_seconds: float, idle_seconds: float, states_evicted: int) -> RunStatistics:
        """Return all counts as the record that is sent to the client."""
        return RunStatistics(
            requests=self.requests,
            steps=self.steps,
            tokens_requested=self.tokens_requested,
            tokens_distinct=self.tokens_distinct,
            tokens_computed=self.tokens_computed,
            tokens_padding=self.tokens_padding,
            tokens_generated=self.tokens_generated,
            tokens_thrown_away=self.tokens_thrown_away,
            shapes=sorted(self.shapes),
            shape_bound=len(self.possible_shapes),
            step_seconds=self.seconds,
            compile_seconds=compile_seconds,
            idle_seconds=idle_seconds,
            states_evicted=states_evicted,
        )
