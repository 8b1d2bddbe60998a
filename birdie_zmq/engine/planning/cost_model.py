"""What a call of the model costs, in positions that are read: by it plans are weighed, and the time left is guessed."""

from __future__ import annotations

from collections.abc import Iterable

from birdie_zmq.engine.planning.prefill_planner import PrefillChunk
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tree

_ATTENTION_TOKENS = 4096
"""The length of a row at which attention within it costs as much as all else (SmolLM2-135M, measured at 128 to 1,024)."""

HEAD = 0.2
"""What the head costs at a position, where reading it costs 1: the share of its weights, in models of 0.1 to 8 billion."""


def positions_cost(count: int, context: int) -> float:
    """Of positions in rows of such a length."""
    return count * (1 + context / _ATTENTION_TOKENS)


def step_cost(step: Step, budget: StepBudget) -> int:
    """Of a step of scoring."""
    rows, length = step.shape
    match step.how:
        case Extend(room=room) | Fork(room=room):
            context = room
        case Tree(state=state):
            context = length + len(state) // step.tokens.itemsize
        case _:
            context = length
    return int(positions_cost(rows * length, context) + HEAD * len(step.owners)) + budget.call_tokens


def prefill_cost(pieces: Iterable[PrefillChunk], budget: StepBudget) -> int:
    """Of a prompt that is read in pieces."""
    return sum(int(positions_cost(piece.size, piece.end)) + budget.call_tokens for piece in pieces)


def decode_row_cost(room: int, budget: StepBudget) -> int:
    """Of another token for one of the rows that are continued side by side, with room for so many tokens each."""
    return int(budget.row_tokens * positions_cost(1, room))


def decode_step_cost(rows: int, room: int, budget: StepBudget) -> int:
    """Of another token for each of so many."""
    return rows * decode_row_cost(room, budget) + budget.call_tokens
