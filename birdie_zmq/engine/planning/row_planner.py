"""The planner for models that score whole rows, or pairs of a context and a continuation.

Equal rows are computed once, and a row that is a prefix of another one is scored from the longer row. The remaining
rows are sorted by length and split into steps of the shapes in `shape_buckets`. `tree_planner` and `fork_planner` plan
for models with a state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import PAD, Dense, Pairs, ScoredSequence, ScorePositions, Step, Tokens


def covering_rows(rows: Sequence[Tokens]) -> list[int]:
    """Return for each row the index of the row that it is scored from: itself, an equal row, or a longer row.

    In the lexicographic order of their bytes, a row that is a prefix of any other row is a prefix of its successor, so
    comparing neighbours finds all of them.
    """
    keys = [row.tobytes() for row in rows]  # any order works if a prefix comes before the rows that begin with it
    order = sorted(range(len(rows)), key=keys.__getitem__)
    covered_by = list(range(len(rows)))
    for here, after in reversed(list(pairwise(order))):
        if keys[after].startswith(keys[here]):
            covered_by[here] = covered_by[after]
    return covered_by


def plan_rows(items: Sequence[ScoredSequence], buckets: Buckets) -> list[Step]:
    """Plan requests as steps of whole rows, longest first.

    If the rows of its own bucket do not fill a step, shorter rows fill it up at no extra cost.

    Args:
        items: The requests, with rows of 1 to buckets.max_length tokens.
        buckets: The shapes that steps may have.
    """
    users: dict[int, list[int]] = defaultdict(list)
    for number, covering in enumerate(covering_rows([item.row for item in items])):
        users[covering].append(number)
    waiting = sorted(users, key=lambda covering: -len(items[covering].row))
    steps = []
    while waiting:
        length = buckets.length_for(len(items[waiting[0]].row))
        count = buckets.rows_for(length)
        chosen, waiting = waiting[:count], waiting[count:]
        tokens = np.full((count, length), PAD, dtype=np.int32)
        scored = ScorePositions()
        for row, covering in enumerate(chosen):
            tokens[row, : len(items[covering].row)] = items[covering].row
            for number in users[covering]:
                scored.add(row, items[number].positions, items[number].targets, number)
        used = sum(len(items[covering].row) for covering in chosen)
        steps.append(Step.of(tokens, used, Dense(), scored))
    return steps


def distinct_pairs(items: Sequence[ScoredSequence]) -> list[list[int]]:
    """Group the indices of equal requests: the same tokens, and the same number of scored tokens."""
    users: dict[tuple[bytes, int], list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        users[item.tokens.tobytes(), item.count].append(number)
    return list(users.values())


def plan_pairs(items: Sequence[ScoredSequence], buckets: Buckets) -> list[Step]:
    """Plan requests as steps of pairs, longest first.

    Only equal requests share a computation. Prefixes cannot be shared, because a longer sequence may change the score
    at every position.

    Args:
        items: The requests, with rows of 1 to buckets.max_length tokens.
        buckets: The shapes that steps may have.
    """
    waiting = sorted(distinct_pairs(items), key=lambda numbers: -len(items[numbers[0]].row))
    steps = []
    while waiting:
        length = buckets.length_for(len(items[waiting[0][0]].row))
        count = buckets.rows_for(length)
        chosen, waiting = waiting[:count], waiting[count:]
        input_ids, label_ids = (np.full((count, length), PAD, dtype=np.int32) for _ in range(2))
        loss_mask = np.zeros((count, length), dtype=np.int32)
        scored = ScorePositions()
        for row, numbers in enumerate(chosen):
            item = items[numbers[0]]
            input_ids[row, : len(item.row)] = item.row
            label_ids[row, : len(item.row)] = item.tokens[1:]
            loss_mask[row, item.positions.start : item.positions.stop] = 1
            for number in numbers:
                scored.add(row, [0], np.zeros(1, np.int32), number)
        used = sum(len(items[numbers[0]].row) for numbers in chosen)
        steps.append(Step.of(input_ids, used, Pairs(label_ids, loss_mask), scored))
    return steps
