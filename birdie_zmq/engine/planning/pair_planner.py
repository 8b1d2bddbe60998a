"""The planner for models that score pairs of a context and a continuation by a function of their own.

Only equal requests share a computation. Prefixes cannot be shared, because a longer sequence may change the score at
every position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import PAD, Pairs, ScoredSequence, ScorePositions, Step


class PairGroup:
    """Requests whose distinct pairs are planned together.

    Args:
        items: The requests, with rows of 1 to `Buckets.max_length` tokens.
    """

    def __init__(self, items: Sequence[ScoredSequence]) -> None:
        self._items = items
        users: dict[tuple[bytes, int], list[int]] = defaultdict(list)
        for number, item in enumerate(items):
            users[item.tokens.tobytes(), item.count].append(number)
        self._users = list(users.values())

    @property
    def distinct_tokens(self) -> int:
        """The number of tokens of the distinct pairs."""
        return sum(len(self._items[numbers[0]].row) for numbers in self._users)

    def plan(self, buckets: Buckets, cached: Mapping[bytes, int]) -> list[Step]:
        """Plan the steps that score the distinct pairs, longest first; there are no cached states to start from."""
        del cached
        items = self._items
        waiting = sorted(self._users, key=lambda numbers: -len(items[numbers[0]].row))
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
                    scored.add(row, range(1), np.zeros(1, np.int32), number)
            used = sum(len(items[numbers[0]].row) for numbers in chosen)
            steps.append(Step.of(input_ids, used, Pairs(label_ids, loss_mask), scored))
        return steps
