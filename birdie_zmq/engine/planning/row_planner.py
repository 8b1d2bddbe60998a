"""The planner for models that score whole rows, or pairs of a context and a continuation.

Two sequences with equal rows need one computation, and a row that is a prefix of another is read out of the longer one.
What is left is sorted by length and cut into steps of the shapes in `shape_buckets`. `tree_planner` and `fork_planner`
plan for models that can do more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import PAD, Dense, Pairs, ScoredSequence, ScorePositions, Step, Tokens


def covering_rows(rows: Sequence[Tokens]) -> list[int]:
    """For each row, the number of the row out of which it is read: itself, an equal one, or a longer one.

    In lexicographic order of their bytes a row that is the beginning of any other is the beginning of its successor, so
    one look at each neighbour finds all.
    """
    keys = [row.tobytes() for row in rows]  # any order will do in which beginnings come first
    order = sorted(range(len(rows)), key=keys.__getitem__)
    carried_by = list(range(len(rows)))
    for here, after in reversed(list(pairwise(order))):
        if keys[after].startswith(keys[here]):
            carried_by[here] = carried_by[after]
    return carried_by


def plan_rows(items: Sequence[ScoredSequence], buckets: Buckets) -> list[Step]:
    """Cut requests into steps of whole rows, longest first.

    A step that its own bucket's rows do not fill takes shorter ones along: they cost nothing there.

    Args:
        items: The requests, with rows of 1 to buckets.max_length tokens.
        buckets: The shapes that steps may have.
    """
    users: dict[int, list[int]] = defaultdict(list)
    for number, carrier in enumerate(covering_rows([item.row for item in items])):
        users[carrier].append(number)
    waiting = sorted(users, key=lambda carrier: -len(items[carrier].row))
    steps = []
    while waiting:
        length = buckets.length_for(len(items[waiting[0]].row))
        count = buckets.rows_for(length)
        chosen, waiting = waiting[:count], waiting[count:]
        tokens = np.full((count, length), PAD, dtype=np.int32)
        places = ScorePositions()
        for row, carrier in enumerate(chosen):
            tokens[row, : len(items[carrier].row)] = items[carrier].row
            for number in users[carrier]:
                places.add(row, items[number].positions, items[number].targets, number)
        used = sum(len(items[carrier].row) for carrier in chosen)
        steps.append(Step.of(tokens, used, Dense(), places))
    return steps


def distinct_pairs(items: Sequence[ScoredSequence]) -> list[list[int]]:
    """The numbers of equal requests together: equal tokens, of which equally many are scored."""
    users: dict[tuple[bytes, int], list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        users[item.tokens.tobytes(), item.count].append(number)
    return list(users.values())


def plan_pairs(items: Sequence[ScoredSequence], buckets: Buckets) -> list[Step]:
    """Cut requests into steps of pairs, longest first.

    Only equal requests are computed once: where a longer text changes every position, no beginning can be shared.

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
        places = ScorePositions()
        for row, numbers in enumerate(chosen):
            item = items[numbers[0]]
            input_ids[row, : len(item.row)] = item.row
            label_ids[row, : len(item.row)] = item.tokens[1:]
            loss_mask[row, item.positions.start : item.positions.stop] = 1
            for number in numbers:
                places.add(row, [0], np.zeros(1, np.int32), number)
        used = sum(len(items[numbers[0]].row) for numbers in chosen)
        steps.append(Step.of(input_ids, used, Pairs(label_ids, loss_mask), places))
    return steps
