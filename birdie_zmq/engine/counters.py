"""What an evaluator has computed so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from birdie_zmq.types import RunStatistics

Shape = tuple[int, int]
"""The rows and the length of a step."""


@dataclass
class Counters:
    """Counts; `birdie_zmq.protocol.messages.RunStatistics` says what each means."""

    requests: int = 0
    steps: int = 0
    tokens_requested: int = 0
    tokens_distinct: int = 0
    tokens_computed: int = 0
    tokens_padding: int = 0
    tokens_generated: int = 0
    tokens_thrown_away: int = 0
    planned: int = 0
    """The cost of all that was planned to be read, by `costs`."""
    done: int = 0
    """The cost of what was read and decoded."""
    remaining: int = 0
    """What is planned at this moment and not done."""
    active_lengths: list[int] = field(default_factory=list)
    """How many tokens each of the texts has that are being continued at this moment."""
    finished_lengths: list[int] = field(default_factory=list)
    """And those that have ended since somebody took note of it."""
    decode_rows: int = 1
    """Of these texts, so many get another token together."""
    decode_step_cost: int = 0
    decode_row_cost: int = 0
    """The part of it that each of them has."""
    pending_shapes: set[Shape] = field(default_factory=set)
    """Of the steps that are planned."""
    seconds: float = 0.0
    shapes: set[Shape] = field(default_factory=set)
    possible: set[Shape] = field(default_factory=set)

    @property
    def pending_compiles(self) -> int:
        """How many shapes are coming that the model was not called with yet."""
        return len(self.pending_shapes - self.shapes)

    def plan(self, cost: int, shapes: Iterable[Shape]) -> None:
        """So much is to be read, in steps of these shapes, and nothing else of what was planned before."""
        self.planned += cost
        self.remaining = cost
        self.pending_shapes = set(shapes)

    def read(self, cost: int) -> None:
        """So much of that is done."""
        self.done += cost
        self.remaining = max(0, self.remaining - cost)

    def came_on(self, cost: int, active_lengths: list[int], finished_lengths: list[int]) -> None:
        """Texts that are continued have more tokens at such a cost: those that go on so many each, as those that ended."""
        self.done += cost
        self.active_lengths = active_lengths
        self.finished_lengths += finished_lengths

    def over(self) -> None:
        """Nothing is being computed any more."""
        self.remaining = 0
        self.active_lengths = []
        self.pending_shapes = set()

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

    def report(self, *, compile_seconds: float, idle_seconds: float, states_evicted: int) -> RunStatistics:
        """All of it, as it travels."""
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
            shape_bound=len(self.possible),
            step_seconds=self.seconds,
            compile_seconds=compile_seconds,
            idle_seconds=idle_seconds,
            states_evicted=states_evicted,
        )
