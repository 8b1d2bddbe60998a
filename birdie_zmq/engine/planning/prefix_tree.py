"""The prefix tree of a batch: its distinct rows in lexicographic order, and the prefix each shares with the row before.

Each subtree is a range of neighbouring rows. The shortest prefix shared by two neighbours in the range is the prefix
shared by all its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from birdie_zmq.engine.planning.steps import ScoredSequence, Tokens


class PrefixTree:
    """Distinct rows in lexicographic order, so that each subtree is a range of rows.

    Attributes:
        rows: The distinct rows int32[t], sorted.
        shared: ``shared[i]`` is the length of the common prefix of rows i - 1 and i; 0 for the first row.
        owners: For each row, the indices of the requests that have it.
    """

    def __init__(self, items: Sequence[ScoredSequence]) -> None:
        self.items = items
        found: dict[bytes, list[int]] = {}
        for number, item in enumerate(items):
            # Big-endian, so that the bytes sort in the order of the tokens.
            found.setdefault(item.row.astype(">i4").tobytes(), []).append(number)
        keys = sorted(found)
        self.rows = [items[found[key][0]].row for key in keys]
        self.owners = [found[key] for key in keys]
        self.shared = [0] * bool(keys) + [common_prefix_length(a, b) for a, b in pairwise(self.rows)]

    def depth(self, first: int, last: int) -> int:
        """Return the length of the prefix shared by all rows of ``[first, last)``."""
        return min(self.shared[first + 1 : last], default=len(self.rows[first]))

    def size(self, first: int, last: int, base: int) -> int:
        """Return the number of distinct tokens of ``[first, last)`` after the first `base` tokens of each row."""
        new = sum(len(self.rows[i]) - max(self.shared[i], base) for i in range(first + 1, last))
        return new + len(self.rows[first]) - base

    def children(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the subtrees below the prefix shared by all rows of ``[first, last)``."""
        depth = self.depth(first, last)
        begin = first
        for i in range(first + 1, last):
            if self.shared[i] == depth:
                yield begin, i
                begin = i
        yield begin, last

    def unscored(self, first: int, last: int) -> int:
        """Return the number of leading positions at which no request of ``[first, last)`` is scored."""
        owners = (owner for i in range(first, last) for owner in self.owners[i])
        return min(self.items[owner].positions.start for owner in owners)

    def distinct_tokens(self) -> int:
        """Return the number of distinct tokens: the least that a causal model must compute."""
        return sum(len(row) - shared for row, shared in zip(self.rows, self.shared, strict=True))


def common_prefix_length(one: Tokens, other: Tokens) -> int:
    """Return the length of the common prefix of two sequences."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length
