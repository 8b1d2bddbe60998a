"""The plan for models of attention that read trees: every distinct token once, in rows that are filled.

Texts that share a beginning are laid out in depth-first order in one row, with unrelated ones behind them where there
is room. Long shared beginnings are states (`prefixes`); rows then hold what follows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from birdie_zmq.engine.planning.cost_model import positions_cost
from birdie_zmq.engine.planning.prefix_tree import Context, PrefixTree, contexts, pieces, read_trunk
from birdie_zmq.engine.planning.shape_buckets import SHORTEST, Buckets
from birdie_zmq.engine.planning.steps import PAD, ScoredSequence, ScorePositions, Step, Tree


@dataclass
class _Row:
    """A row that is being filled: ranges of the tree, and its length."""

    length: int
    ranges: list[tuple[int, int]] = field(default_factory=list)


def plan_trees(items: Sequence[ScoredSequence], buckets: Buckets, known: Collection[bytes] = ()) -> list[Step]:
    """Cut requests into steps of trees.

    Args:
        items: The requests.
        buckets: The shapes that steps may have.
        known: Beginnings whose states are there, by the bytes of their tokens.
    """
    tree = PrefixTree(items)
    lengths = row_lengths(buckets)
    overhead = buckets.budget.call_tokens
    steps = []
    for context in contexts(tree, lengths[-1], overhead, known):
        steps += read_trunk(tree, context, lengths, overhead)
        if context.ranges:
            steps += _steps(tree, context, _best_rows(tree, context, buckets), buckets)
    return steps


def row_lengths(buckets: Buckets) -> tuple[int, ...]:
    """The lengths of rows of trees, and of the pieces of long texts; ascending."""
    return buckets.piece_lengths(SHORTEST)


def _best_rows(tree: PrefixTree, context: Context, buckets: Buckets) -> list[_Row]:
    """Fill rows of each length, and take what costs least."""
    return min(
        (_fill(tree, context, length, buckets) for length in row_lengths(buckets)),
        key=lambda rows: _cost(rows, buckets),
    )


def _fill(tree: PrefixTree, context: Context, length: int, buckets: Buckets) -> list[_Row]:
    """Put the context's subtrees into rows of a length, the largest first, each where it leaves the least room.

    A subtree that does not fit is cut, and what its parts share is computed in each; a single text that does not fit
    gets a longer row.
    """
    base = context.base
    units = []
    waiting = list(context.ranges)
    while waiting:
        first, last = waiting.pop()
        size = tree.size(first, last, base)
        if size <= length or last - first == 1:
            units.append((size, first, last))
        else:
            waiting += tree.children(first, last)
    # What everything here shares stands once in each row.
    first, last = min(r[0] for r in context.ranges), max(r[1] for r in context.ranges)
    common = min(tree.depth(first, last) - base, min(size for size, _, _ in units) - 1)
    rows: list[_Row] = []
    room: list[tuple[int, int]] = []
    for size, first, last in sorted(units, reverse=True):
        needed = size - common
        at = bisect_left(room, (needed, 0))
        if at == len(room):
            row = len(rows)
            rows.append(_Row(max(length, buckets.grown_length_for(size))))
            left = rows[row].length - size
        else:
            left, row = room.pop(at)
            left -= needed
        rows[row].ranges.append((first, last))
        insort(room, (left, row))
    return rows


def _groups(rows: list[_Row], buckets: Buckets) -> list[tuple[int, int, list[_Row]]]:
    """Rows of equal length in steps: how many rows each has, its length, and those that are used."""
    groups = []
    for length in sorted({row.length for row in rows}, reverse=True):
        equal = [row for row in rows if row.length == length]
        for count in _row_counts(len(equal), length, buckets):
            groups.append((count, length, equal[:count]))
            equal = equal[count:]
    return groups


def _row_counts(count: int, length: int, buckets: Buckets) -> tuple[int, ...]:
    most = buckets.rows_for(length)
    if buckets.limits.rows is not None:
        return (most,) * -(-count // most)
    sizes = buckets.row_counts(most)
    whole = max(0, count // most - 1)
    return (most,) * whole + pieces(count - whole * most, sizes, -(-buckets.budget.call_tokens // length))


def _cost(rows: list[_Row], buckets: Buckets) -> float:
    """In tokens."""
    return sum(
        positions_cost(count * length, length) + buckets.budget.call_tokens
        for count, length, _ in _groups(rows, buckets)
    )


def _steps(tree: PrefixTree, context: Context, rows: list[_Row], buckets: Buckets) -> list[Step]:
    state = tree.rows[context.first][: context.base].tobytes()
    steps = []
    for count, length, used in _groups(rows, buckets):
        tokens = np.full((count, length), PAD, np.int32)
        depths = np.zeros((count, length), np.int32)
        ends = np.tile(np.arange(1, length + 1, dtype=np.int32), (count, 1))  # padding sees itself only
        places = ScorePositions()
        total = 0
        for number, row in enumerate(used):
            total += _lay_out(tree, context.base, row, number, (tokens[number], depths[number], ends[number]), places)
        steps.append(Step.of(tokens, total, Tree(depths, ends, state), places))
    return steps


def _lay_out(
    tree: PrefixTree,
    base: int,
    row: _Row,
    number: int,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    places: ScorePositions,
) -> int:
    """Write the texts of one row in depth-first order; how many tokens it has."""
    tokens, depths, ends = arrays
    numbers = sorted(i for first, last in row.ranges for i in range(first, last))
    where = np.zeros(max(len(tree.rows[i]) for i in numbers), np.int32)  # of the token at each depth of the last text
    at, previous = 0, -1
    for i in numbers:
        text = tree.rows[i]
        shared = base if previous < 0 else max(base, tree.depth(previous, i + 1))
        if previous >= 0:
            ends[where[shared : len(tree.rows[previous])]] = at
        end = at + len(text) - shared
        tokens[at:end] = text[shared:]
        depths[at:end] = np.arange(shared - base, len(text) - base)
        where[shared : len(text)] = np.arange(at, end)
        at, previous = end, i
        for owner in tree.owners[i]:
            item = tree.items[owner]
            low = max(base, item.positions.start)
            if low < item.positions.stop:
                skipped = low - item.positions.start
                places.add(number, where[low : item.positions.stop].copy(), item.targets[skipped:], owner)
    ends[where[base : len(tree.rows[previous])]] = at
    return at
