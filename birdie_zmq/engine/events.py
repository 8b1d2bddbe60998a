"""The events that an evaluator yields while it computes, and the failure of a single item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from birdie_zmq.errors import BirdieError
from birdie_zmq.types import Answer, Level


@dataclass(frozen=True)
class StepStarting:
    """The model is called as soon as the next event is requested.

    Attributes:
        new_shapes: The ``(rows, length)`` of the calls for which executables are compiled first, which may take long.
    """

    new_shapes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class CompilationFinished:
    """The executables of the last `StepStarting` are compiled; their results are not awaited yet."""


@dataclass(frozen=True)
class Notice:
    """A message that the user should see once per run."""

    level: Level
    text: str


@dataclass(frozen=True)
class Answered:
    """The answers of some items of the work, by index: all that are complete after a step."""

    indices: Sequence[int]
    answers: Sequence[Answer]


@dataclass(frozen=True)
class PartlyAnswered:
    """What some items of the work have of their answers so far, by index; `Answered` follows for each of them."""

    indices: Sequence[int]
    parts: Sequence[Answer]


Event = StepStarting | CompilationFinished | Notice | Answered | PartlyAnswered


class ItemFailed(Exception):
    """One item of the work cannot be answered; ``error`` says why."""

    def __init__(self, index: int, error: BirdieError) -> None:
        super().__init__(f"item {index}: {error}")
        self.index = index
        self.error = error
