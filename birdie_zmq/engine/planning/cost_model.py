"""The estimated cost of model calls, in token positions, by which plans are compared."""

from __future__ import annotations

from birdie_zmq.engine.planning.shape_buckets import StepBudget

_ATTENTION_TOKENS = 4096
"""The row length at which attention costs as much as everything else (SmolLM2-135M, measured at 128 to 1,024)."""


def positions_cost(count: int, context: int) -> float:
    """Return the cost of `count` positions in rows of `context` tokens."""
    return count * (1 + context / _ATTENTION_TOKENS)


def decode_step_cost(rows: int, capacity: int, budget: StepBudget) -> int:
    """Return the cost of one more token for each of `rows` rows of a decode batch with `capacity` tokens for each."""
    return rows * int(budget.row_tokens * positions_cost(1, capacity)) + budget.call_tokens
