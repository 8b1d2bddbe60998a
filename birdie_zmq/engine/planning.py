"""From rows of tokens to padded steps, each distinct row computed once.

Pure NumPy. A *row* is the input of a causal model: all tokens of a request but the last. The scores of a request are
read at some positions of its row, so two requests with equal rows need one computation, and a row that is the
beginning of another is read out of the longer one. What is left is sorted by length and cut into steps of the shapes
in `buckets`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.buckets import Buckets

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Step:
    """One call of the model.

    Attributes:
        tokens: int32[rows, length], rows padded on the right.
        used_rows: How many rows are not padding.
        used_tokens: How many positions are not padding.
        places: For each request that this step serves, its number and the row in which its own row stands.
    """

    tokens: Tokens
    used_rows: int
    used_tokens: int
    places: list[tuple[int, int]]


def carriers(rows: Sequence[Tokens]) -> list[int]:
    """For each row, the number of the row out of which it is read: itself, an equal one, or a longer one.

    In lexicographic order of their bytes a row that is the beginning of any other is the beginning of its successor, so one look at
    each neighbour finds all.
    """
    keys = [row.tobytes() for row in rows]  # any order will do in which beginnings come first
    order = sorted(range(len(rows)), key=keys.__getitem__)
    carried_by = list(range(len(rows)))
    for here, after in reversed(list(pairwise(order))):
        if keys[after].startswith(keys[here]):
            carried_by[here] = carried_by[after]
    return carried_by


def plan(rows: Sequence[Tokens], buckets: Buckets, pad: int) -> list[Step]:
    """Cut the rows of requests into steps, longest first.

    A step that its own bucket's rows do not fill takes shorter ones along: they cost nothing there.

    Args:
        rows: The row of each request, int32[t] with 1 <= t <= buckets.max_length.
        buckets: The shapes that steps may have.
        pad: The token to pad with; any that the model knows.
    """
    users: dict[int, list[int]] = defaultdict(list)
    for request, carrier in enumerate(carriers(rows)):
        users[carrier].append(request)
    waiting = sorted(users, key=lambda carrier: -len(rows[carrier]))
    steps = []
    while waiting:
        length = buckets.length_for(len(rows[waiting[0]]))
        count = buckets.rows_for(length)
        chosen, waiting = waiting[:count], waiting[count:]
        tokens = np.full((count, length), pad, dtype=np.int32)
        places = []
        for row, carrier in enumerate(chosen):
            tokens[row, : len(rows[carrier])] = rows[carrier]
            places += [(request, row) for request in users[carrier]]
        used_tokens = sum(len(rows[carrier]) for carrier in chosen)
        steps.append(Step(tokens, len(chosen), used_tokens, places))
    return steps
