"""What an evaluator has computed so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from birdie_zmq.wire.messages import StepReport

Shape = tuple[int, int]
"""The rows and the length of a step."""


@dataclass
class Tally:
    """Counts; `birdie_zmq.wire.messages.StepReport` says what each means."""

    requests: int = 0
    steps: int = 0
    tokens_requested: int = 0
    tokens_distinct: int = 0
    tokens_computed: int = 0
    tokens_padding: int = 0
    tokens_generated: int = 0
    tokens_thrown_away: int = 0
    continued: int = 0
    """Texts that are being continued side by side at this moment."""
    seconds: float = 0.0
    shapes: set[Shape] = field(default_factory=set)
    possible: set[Shape] = field(default_factory=set)

    def step(self, shape: Shape, used: int) -> None:
        """One call of the model, with so many positions that are not padding."""
        rows, length = shape
        self.shapes.add(shape)
        self.steps += 1
        self.tokens_computed += rows * length
        self.tokens_padding += rows * length - used

    def decode(self, rows: int, tokens: int, active: int, used: int) -> None:
        """One call that decodes so many tokens for each of so many rows; answers use some of those of active rows."""
        self.shapes.add((rows, 1))
        self.steps += 1
        self.tokens_computed += rows * tokens
        self.tokens_padding += rows * tokens - used
        self.tokens_generated += used
        self.tokens_thrown_away += active * tokens - used

    def allow(self, shapes: Iterable[Shape]) -> None:
        """Steps may have these shapes."""
        self.possible.update(shapes)

    def report(self, *, compile_seconds: float, idle_seconds: float, states_evicted: int) -> StepReport:
        """All of it, as it travels."""
        return StepReport(
            requests=self.requests,
            steps=self.steps,
            tokens_requested=self.tokens_requested,
            tokens_distinct=self.tokens_distinct,
            tokens_computed=self.tokens_computed,
            tokens_padding=self.tokens_padding,
            tokens_generated=self.tokens_generated,
            tokens_thrown_away=self.tokens_thrown_away,
            shapes=sorted(self.shapes),
            shape_bound=len(self.possible),
            step_seconds=self.seconds,
            compile_seconds=compile_seconds,
            idle_seconds=idle_seconds,
            states_evicted=states_evicted,
        )
