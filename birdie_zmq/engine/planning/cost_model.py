"""The estimated cost of model calls, in token positions: used to compare plans and to estimate the time left."""

from __future__ import annotations

from collections.abc import Iterable

from birdie_zmq.engine.planning.prefill_planner import PrefillChunk
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tree

_ATTENTION_TOKENS = 4096
"""The row length at which attention costs as much as everything else (SmolLM2-135M, measured at 128 to 1,024)."""

LM_HEAD_COST = 0.2
"""The LM head's cost per position, if the backbone's is 1: its share of the weights, 0.1 to 8 billion parameters."""


def positions_cost(count: int, context: int) -> float:
    """Return the cost of `count` positions in rows of `context` tokens."""
    return count * (1 + context / _ATTENTION_TOKENS)


def step_cost(step: Step, budget: StepBudget) -> int:
    """Return the cost of a scoring step."""
    rows, length = step.shape
    match step.kind:
        case Extend(capacity=capacity) | Fork(capacity=capacity):
            context = capacity
        case Tree(prefix=prefix):
            context = length + len(prefix) // step.tokens.itemsize
        case _:
            context = length
    return int(positions_cost(rows * length, context) + LM_HEAD_COST * len(step.owners)) + budget.call_tokens


def prefill_cost(chunks: Iterable[PrefillChunk], budget: StepBudget) -> int:
    """Return the cost of prefilling a prompt in chunks."""
    return sum(int(positions_cost(chunk.size, chunk.end)) + budget.call_tokens for chunk in chunks)


def decode_row_cost(capacity: int, budget: StepBudget) -> int:
    """Return the cost of one more token for one row of a decode batch whose rows have `capacity` tokens each."""
    return int(budget.row_tokens * positions_cost(1, capacity))


def decode_step_cost(rows: int, capacity: int, budget: StepBudget) -> int:
    """Return the cost of one more token for each of `rows` rows."""
    return rows * decode_row_cost(capacity, budget) + budget.call_tokens
