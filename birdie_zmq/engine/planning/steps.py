"""What is computed: steps, each one call of the model, and the plan for models that read whole rows.

Pure NumPy. A *row* is the input of a causal model: all tokens of a request but the last. The scores of a request are
read at some positions of its row, so two requests with equal rows need one computation, and a row that is the
beginning of another is read out of the longer one. What is left is sorted by length and cut into steps of the shapes
in `buckets`. Models that give more than rows are planned in `branching` and `forking`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.planning.shape_buckets import Buckets

Tokens = npt.NDArray[np.int32]

PAD = 0
"""The token to pad with: any that the model surely knows."""


@dataclass(frozen=True)
class Scored:
    """Tokens to be scored: the last ``count`` of ``tokens`` int32[n], each predicted from all before it.

    ``cut`` is how many tokens were dropped on the left to fit the model.
    """

    tokens: Tokens
    count: int
    cut: int = 0

    @property
    def row(self) -> Tokens:
        """What the model reads, int32[n-1]."""
        return self.tokens[:-1]

    @property
    def positions(self) -> range:
        """Where in the row the scored tokens are predicted."""
        return range(len(self.tokens) - 1 - self.count, len(self.tokens) - 1)

    @property
    def targets(self) -> Tokens:
        """The scored tokens, int32[count]."""
        return self.tokens[len(self.tokens) - self.count :]


@dataclass(frozen=True)
class Rows:
    """Each row of the step is a text by itself."""


@dataclass(frozen=True)
class Branch:
    """Rows hold trees of texts, all behind one state; `birdie_zmq.Model.branch` says what the arrays are.

    ``state`` is the beginning that all texts share, by the bytes of its tokens; empty for none.
    """

    depths: Tokens
    ends: Tokens
    state: bytes


@dataclass(frozen=True)
class Read:
    """Each row of a state reads on, ``lengths`` int32[rows] of its tokens.

    ``before`` is the beginning, by the bytes of its tokens, whose state all rows start from (empty: a new one); None
    goes on from where the last `Read` came to. ``after`` is the name of the state that is kept for later, or None.
    ``room`` is how many slots its rows need.
    """

    lengths: Tokens
    before: bytes | None
    after: bytes | None
    room: int


@dataclass(frozen=True)
class Fork:
    """Row i continues row ``parents[i]`` of where the last `Read` came to, by ``lengths[i]`` tokens, and is dropped."""

    parents: Tokens
    lengths: Tokens
    room: int


@dataclass(frozen=True)
class Pairs:
    """Each row is a context and its continuation; `birdie_zmq.Model.score` says what the arrays int32[rows, length] are.

    A step of these has one place for each request, whose row it names; positions and targets say nothing.
    """

    label_ids: Tokens
    loss_mask: Tokens


How = Rows | Branch | Read | Fork | Pairs


@dataclass
class Places:
    """What is scored in a step: at ``rows[i], positions[i]`` the token ``targets[i]``, for request ``owners[i]``."""

    rows: list[Tokens] = field(default_factory=list)
    positions: list[Tokens] = field(default_factory=list)
    targets: list[Tokens] = field(default_factory=list)
    owners: list[Tokens] = field(default_factory=list)

    def add(self, row: int, positions: npt.ArrayLike, targets: Tokens, owner: int) -> None:
        """Score some targets of one request in one row."""
        count = len(targets)
        self.rows.append(np.full(count, row, np.int32))
        self.positions.append(np.asarray(positions, np.int32))
        self.targets.append(targets)
        self.owners.append(np.full(count, owner, np.int32))


@dataclass(frozen=True)
class Step:
    """One call of the model.

    Attributes:
        tokens: int32[rows, length], rows padded on the right.
        used_tokens: How many positions are not padding.
        how: How the model reads them.
        rows, positions, targets, owners: int32[q] each; what is scored, as in `Places`.
    """

    tokens: Tokens
    used_tokens: int
    how: How
    rows: Tokens
    positions: Tokens
    targets: Tokens
    owners: Tokens

    @classmethod
    def of(cls, tokens: Tokens, used_tokens: int, how: How, places: Places) -> Step:
        """Put the places together."""
        columns = (places.rows, places.positions, places.targets, places.owners)
        joined = [np.concatenate(column) if column else np.zeros(0, np.int32) for column in columns]
        return cls(tokens, used_tokens, how, *joined)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and length."""
        rows, length = self.tokens.shape
        return rows, length


def carriers(rows: Sequence[Tokens]) -> list[int]:
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


def plan_rows(items: Sequence[Scored], buckets: Buckets) -> list[Step]:
    """Cut requests into steps of whole rows, longest first.

    A step that its own bucket's rows do not fill takes shorter ones along: they cost nothing there.

    Args:
        items: The requests, with rows of 1 to buckets.max_length tokens.
        buckets: The shapes that steps may have.
    """
    users: dict[int, list[int]] = defaultdict(list)
    for number, carrier in enumerate(carriers([item.row for item in items])):
        users[carrier].append(number)
    waiting = sorted(users, key=lambda carrier: -len(items[carrier].row))
    steps = []
    while waiting:
        length = buckets.length_for(len(items[waiting[0]].row))
        count = buckets.rows_for(length)
        chosen, waiting = waiting[:count], waiting[count:]
        tokens = np.full((count, length), PAD, dtype=np.int32)
        places = Places()
        for row, carrier in enumerate(chosen):
            tokens[row, : len(items[carrier].row)] = items[carrier].row
            for number in users[carrier]:
                places.add(row, items[number].positions, items[number].targets, number)
        used = sum(len(items[carrier].row) for carrier in chosen)
        steps.append(Step.of(tokens, used, Rows(), places))
    return steps


def distinct_pairs(items: Sequence[Scored]) -> list[list[int]]:
    """The numbers of equal requests together: equal tokens, of which equally many are scored."""
    users: dict[tuple[bytes, int], list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        users[item.tokens.tobytes(), item.count].append(number)
    return list(users.values())


def plan_pairs(items: Sequence[Scored], buckets: Buckets) -> list[Step]:
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
        places = Places()
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
