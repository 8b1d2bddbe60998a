"""The planner for models that score whole rows.

Equal rows are computed once, and a row that is a prefix of another one is scored from the longer row. The remaining
rows are sorted by length and split into steps of the shapes in `shape_buckets`. `tree_planner` and `fork_planner` plan
for models with a state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import PAD, Dense, ScorePositions, Step, Tokens


def covering_rows(tree: PrefixTree) -> list[tuple[Tokens, list[int]]]:
    """Return the rows that are not a prefix of another one, each with the indices of all requests scored from it.

    In lexicographic order, a row that is a prefix of any other row is a prefix of its successor.
    """
    found = []
    owners: list[int] = []
    for row, same, shared in zip(tree.rows, tree.owners, [*tree.shared[1:], 0], strict=False):
        owners += same
        if shared < len(row):
            found.append((row, sorted(owners)))
            owners = []
    return found


def plan_rows(tree: PrefixTree, buckets: Buckets, cached: Mapping[bytes, int]) -> list[Step]:
    """Plan requests as steps of whole rows, longest first.

    If the rows of its own bucket do not fill a step, shorter rows fill it up at no extra cost.

    Args:
        tree: The requests, with rows of 1 to buckets.max_length tokens.
        buckets: The shapes that steps may have.
        cached: Cached prefixes, which whole rows cannot start from.
    """
    del cached
    waiting = sorted(covering_rows(tree), key=lambda covering: (-len(covering[0]), covering[1][0]))
    steps = []
    while waiting:
        length = buckets.length_for(len(waiting[0][0]))
        count = buckets.rows_for(length)
        chosen, waiting = waiting[:count], waiting[count:]
        tokens = np.full((count, length), PAD, dtype=np.int32)
        scored = ScorePositions()
        for number, (row, owners) in enumerate(chosen):
            tokens[number, : len(row)] = row
            for owner in owners:
                scored.add(number, tree.items[owner].positions, tree.items[owner].targets, owner)
        steps.append(Step.of(tokens, sum(len(row) for row, _ in chosen), Dense(), scored))
    return steps
