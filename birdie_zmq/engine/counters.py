"""Counters of the work that an evaluator has done."""

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
    shapes: set[Shape] = field(default_factory=set)
    """The shapes that were sent to the model."""
    possible_shapes: set[Shape] = field(default_factory=set)
    """All shapes that a step may have."""
    compiled_before: frozenset[Shape] = frozenset()
    """The shapes that the backend has been called with before, for weights that have been swapped."""

    def new_shapes(self, shapes: Iterable[Shape]) -> tuple[Shape, ...]:
        """Return the distinct shapes among these that the model has not been called with."""
        known = self.shapes | self.compiled_before
        return tuple(shape for shape in dict.fromkeys(shapes) if shape not in known)

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

    def statistics(
        self,
        *,
        step_seconds: float,
        compile_seconds: float,
        idle_seconds: float,
        tokenizer_seconds: float,
        states_evicted: int,
    ) -> RunStatistics:
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
            step_seconds=step_seconds,
            compile_seconds=compile_seconds,
            idle_seconds=idle_seconds,
            tokenizer_seconds=tokenizer_seconds,
            states_evicted=states_evicted,
        )
