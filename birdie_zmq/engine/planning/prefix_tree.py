"""The tree of a batch's rows: distinct rows in lexicographic order, and how much each shares with the one before it.

A range of neighbours in that order is a subtree, and the least that two neighbours of it share is what all of it shares.
Here also is decided which shared beginnings are worth a state: those that would be computed again in several steps, if
that costs more than the calls that make the state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from birdie_zmq.engine.planning.steps import PAD, Extend, ScoredSequence, ScorePositions, Step, Tokens


class PrefixTree:
    """Rows in the order in which subtrees are ranges.

    Attributes:
        rows: The distinct rows int32[t], sorted.
        shared: ``shared[i]`` is how many tokens rows i - 1 and i begin with alike; 0 for the first.
        owners: For each row the requests that read it.
    """

    def __init__(self, items: Sequence[ScoredSequence]) -> None:
        self.items = items
        found: dict[bytes, list[int]] = {}
        for number, item in enumerate(items):
            # Big-endian, so that bytes are ordered as tokens are.
            found.setdefault(item.row.astype(">i4").tobytes(), []).append(number)
        keys = sorted(found)
        self.rows = [items[found[key][0]].row for key in keys]
        self.owners = [found[key] for key in keys]
        self.shared = [0] * bool(keys) + [common(a, b) for a, b in pairwise(self.rows)]

    def depth(self, first: int, last: int) -> int:
        """How many tokens all rows of ``[first, last)`` begin with alike."""
        return min(self.shared[first + 1 : last], default=len(self.rows[first]))

    def size(self, first: int, last: int, base: int) -> int:
        """The distinct tokens of ``[first, last)`` behind the first `base` of each row."""
        new = sum(len(self.rows[i]) - max(self.shared[i], base) for i in range(first + 1, last))
        return new + len(self.rows[first]) - base

    def children(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The subtrees behind what all of ``[first, last)`` share."""
        depth = self.depth(first, last)
        begin = first
        for i in range(first + 1, last):
            if self.shared[i] == depth:
                yield begin, i
                begin = i
        yield begin, last

    def unscored(self, first: int, last: int) -> int:
        """How many of their first tokens no request of ``[first, last)`` is scored at."""
        owners = (owner for i in range(first, last) for owner in self.owners[i])
        return min(self.items[owner].positions.start for owner in owners)

    def distinct_tokens(self) -> int:
        """The least that a causal model must compute."""
        return sum(len(row) - shared for row, shared in zip(self.rows, self.shared, strict=True))


def common(one: Tokens, other: Tokens) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length


@dataclass
class Context:
    """What is computed behind one beginning.

    Attributes:
        base: The tokens of the beginning, whose state is there.
        trunk: From how many of them on they have to be read first; base where the state is known already.
        first: A row that has the beginning.
        last: The end of the range of rows that have it.
        ranges: Subtrees that are computed from here.
    """

    base: int
    trunk: int
    first: int
    last: int
    ranges: list[tuple[int, int]] = field(default_factory=list)


def contexts(tree: PrefixTree, longest: int, overhead: int, known: Collection[bytes]) -> list[Context]:
    """The beginnings whose states are worth having, each after those that it starts from.

    Args:
        tree: The rows.
        longest: The most tokens that are read behind a state in one row.
        overhead: What a call of the model costs beyond its tokens, in tokens.
        known: Beginnings whose states are there, by the bytes of their tokens.
    """
    result: list[Context] = []
    if not tree.rows:
        return result

    def visit(first: int, last: int, here: Context) -> None:
        base = here.base
        depth, size = tree.depth(first, last), tree.size(first, last, base)
        if known:
            # What is known is not read again, so nothing can be scored in it.
            there = _longest_known(tree.rows[first][: min(depth, tree.unscored(first, last))], known)
            if there > base:
                start(first, last, there, there)
                return
        if size <= longest or (last - first == 1 and depth - base <= longest):
            here.ranges.append((first, last))
            return
        again = size // max(1, longest - (depth - base))  # how often it would be read once more, without a state
        if depth - base > longest or again * (depth - base) > 2 * overhead:
            start(first, last, depth, base)
        else:
            for begin, end in tree.children(first, last):
                visit(begin, end, here)

    def start(first: int, last: int, base: int, trunk: int) -> None:
        context = Context(base, trunk, first, last)
        result.append(context)
        for begin, end in tree.children(first, last) if tree.depth(first, last) == base else [(first, last)]:
            if any(len(tree.rows[i]) > base for i in range(begin, end)):
                visit(begin, end, context)

    everything = Context(0, 0, 0, len(tree.rows))
    result.append(everything)
    visit(0, len(tree.rows), everything)
    return result


def _longest_known(prefix: Tokens, known: Collection[bytes]) -> int:
    """The most tokens of a beginning for which there is a state."""
    if not known:
        return 0
    whole = prefix.tobytes()
    return max((len(key) // 4 for key in known if whole.startswith(key)), default=0)


def pieces(count: int, sizes: tuple[int, ...], overhead: int) -> tuple[int, ...]:
    """Cover a count by sizes, largest first, with the least padding and calls.

    Args:
        count: Above 0.
        sizes: Ascending.
        overhead: What each piece costs beyond its size.
    """
    most = sizes[-1]
    found = [most] * max(0, -(-count // most) - 2)
    firsts = _firsts(sizes, overhead)
    rest = count - sum(found)
    while rest > 0:
        found.append(firsts[rest])
        rest -= firsts[rest]
    return tuple(sorted(found, reverse=True))


@lru_cache(maxsize=64)
def _firsts(sizes: tuple[int, ...], overhead: int) -> list[int]:
    """For each count up to twice the largest size, one piece of its best cover; the rest is covered like any count.

    From small counts to large ones, without calls within each other: 2,048 tokens may be 512 pieces deep.
    """
    firsts, costs = [0], [(0, 0)]
    for count in range(1, 2 * sizes[-1] + 1):
        options = []
        for size in sizes:
            cost, number = costs[max(0, count - size)]
            options.append((cost + size + overhead, number + 1))
            if size >= count:
                break
        best = min(options)
        costs.append(best)
        firsts.append(sizes[options.index(best)])
    return firsts


def read_trunk(tree: PrefixTree, context: Context, lengths: tuple[int, ...], overhead: int) -> list[Step]:
    """The steps of one row that read a context's beginning, and score what stands in it."""
    row = tree.rows[context.first][: context.base]
    steps = []
    at = context.trunk
    sizes = long_pieces(context.base - at, lengths, overhead) if context.base > at else []
    for size in sizes:
        end = min(at + size, context.base)
        tokens = np.full((1, size), PAD, np.int32)
        tokens[0, : end - at] = row[at:end]
        places = ScorePositions()
        for i in range(context.first, context.last):
            for owner in tree.owners[i]:
                score_between(places, 0, tree.items[owner], owner, at, end)
        # Only what the context starts from and comes to is named: a named state is kept, and copied to be continued.
        before = row[:at].tobytes() if at == context.trunk else None
        after = row[:end].tobytes() if end == context.base else None
        how = Extend(np.array([end - at], np.int32), before, after, at + size)
        steps.append(Step.of(tokens, end - at, how, places))
        at = end
    return steps


def long_pieces(count: int, sizes: tuple[int, ...], overhead: int) -> list[int]:
    """As `pieces`, for counts of any size."""
    whole = max(0, count // sizes[-1] - 1)
    return [sizes[-1]] * whole + list(pieces(count - whole * sizes[-1], sizes, overhead))


def score_between(places: ScorePositions, row: int, item: ScoredSequence, owner: int, begin: int, end: int) -> None:
    """Score what a request predicts at the positions ``[begin, end)`` of its row, which stand at 0 in a step's row."""
    positions = item.positions
    low, high = max(begin, positions.start), min(end, positions.stop)
    if low < high:
        at = np.arange(low - begin, high - begin, dtype=np.int32)
        places.add(row, at, item.targets[low - positions.start : high - positions.start], owner)
