"""The actions that the client's core returns."""

from __future__ import annotations

from dataclasses import dataclass

from birdie_zmq.errors import BirdieError
from birdie_zmq.protocol import messages as m
from birdie_zmq.types import Answer, ComputeCounters, Level


@dataclass(frozen=True)
class Send:
    """Send a message to the broker."""

    message: m.ClientMessage


@dataclass(frozen=True)
class Deliver:
    """Deliver the first answers to some items to the caller."""

    items: list[int]
    answers: list[Answer]


@dataclass(frozen=True)
class DeliverParts:
    """Deliver what some items have of their answers so far."""

    items: list[int]
    parts: list[Answer]


@dataclass(frozen=True)
class ReportProgress:
    """Report what a worker has computed for this call since its last report."""

    computed: ComputeCounters


@dataclass(frozen=True)
class Log:
    """Log a line for the user; with ``once``, only the first time in a run."""

    level: Level
    text: str
    once: bool = False


@dataclass(frozen=True)
class FailCall:
    """Fail the whole call with an error."""

    error: BirdieError


@dataclass(frozen=True)
class FailItem:
    """Fail one item, by the caller's number; the other items are still answered."""

    item: int
    error: BirdieError


Action = Send | Deliver | DeliverParts | ReportProgress | Log | FailCall | FailItem
