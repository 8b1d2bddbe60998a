"""The planner for attention models that take token trees: it computes distinct tokens once, in well-filled rows.

Sequences that share a prefix are laid out in depth-first order in one row, and unrelated sequences fill the rest of it.
Long shared prefixes are computed as states (`prefix_states`); rows then hold only the tokens after them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from birdie_zmq.engine.planning.chunks import optimal_chunks
from birdie_zmq.engine.planning.cost_model import positions_cost
from birdie_zmq.engine.planning.prefix_states import PrefixNode, prefix_nodes, with_prefills
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import MIN_LENGTH, Buckets, Shape
from birdie_zmq.engine.planning.step_order import overlap_steps
from birdie_zmq.engine.planning.steps import PAD, ScorePositions, Step, Tree


@dataclass
class _Row:
    """A row that is being filled: its length, and the ranges of the tree in it."""

    length: int
    ranges: list[tuple[int, int]] = field(default_factory=list)


def plan_trees(tree: PrefixTree, buckets: Buckets, cached: Mapping[bytes, int], shared: int = 0) -> list[Step]:
    """Plan requests as steps of trees.

    Args:
        tree: The requests.
        buckets: The shapes that steps may have.
        cached: The capacity in tokens of each cached prefix, by the bytes of its tokens.
        shared: As in `prefix_nodes`.
    """
    lengths, call_tokens = row_lengths(buckets), buckets.budget.call_tokens
    nodes = prefix_nodes(tree, lengths[-1], call_tokens, cached, shared)
    steps = [_steps(tree, node, _best_rows(tree, node, buckets), buckets) if node.ranges else [] for node in nodes]
    plan = with_prefills(tree, nodes, steps, lengths, call_tokens, cached)
    return overlap_steps(plan) if buckets.budget.overlaps_steps else plan


def possible_shapes(buckets: Buckets) -> frozenset[Shape]:
    """Return every ``(rows, length)`` that a step can have."""
    return buckets.state_shapes({length: buckets.rows_for(length) for length in row_lengths(buckets)})


def row_lengths(buckets: Buckets) -> tuple[int, ...]:
    """Return the lengths of rows of trees, and of the chunks of long sequences, ascending."""
    return buckets.chunk_lengths(MIN_LENGTH)


def _best_rows(tree: PrefixTree, node: PrefixNode, buckets: Buckets) -> list[_Row]:
    """Fill rows of each length, and return the rows that cost least."""
    return min(
        (_fill(tree, node, length, buckets) for length in row_lengths(buckets)),
        key=lambda rows: _cost(rows, buckets),
    )


def _fill(tree: PrefixTree, node: PrefixNode, length: int, buckets: Buckets) -> list[_Row]:
    """Pack the subtrees of a node into rows of `length` tokens: best fit, largest first.

    A subtree that does not fit is split into its children, each of which computes their shared prefix again. A single
    sequence that does not fit gets a longer row.
    """
    base = node.base
    units = []
    waiting = list(node.ranges)
    while waiting:
        first, last = waiting.pop()
        size = tree.size(first, last, base)
        if size <= length or last - first == 1:
            units.append((size, first, last))
        else:
            waiting += tree.children(first, last)
    # The prefix shared by all subtrees is computed once in each row.
    first, last = min(r[0] for r in node.ranges), max(r[1] for r in node.ranges)
    common = min(tree.depth(first, last) - base, min(size for size, _, _ in units) - 1)
    rows: list[_Row] = []
    free_lengths: list[tuple[int, int]] = []
    for size, first, last in sorted(units, reverse=True):
        needed = size - common
        at = bisect_left(free_lengths, (needed, 0))
        if at == len(free_lengths):
            row = len(rows)
            rows.append(_Row(max(length, buckets.geometric_length_for(size))))
            left = rows[row].length - size
        else:
            left, row = free_lengths.pop(at)
            left -= needed
        rows[row].ranges.append((first, last))
        insort(free_lengths, (left, row))
    return rows


def _groups(rows: list[_Row], buckets: Buckets) -> list[tuple[int, int, list[_Row]]]:
    """Group rows of equal length into steps: the row count of each step, its length, and the rows that fill it."""
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
    full = max(0, count // most - 1)
    return (most,) * full + optimal_chunks(count - full * most, sizes, -(-buckets.budget.call_tokens // length))


def _cost(rows: list[_Row], buckets: Buckets) -> float:
    """Return the cost of rows, in tokens."""
    return sum(
        positions_cost(count * length, length) + buckets.budget.call_tokens
        for count, length, _ in _groups(rows, buckets)
    )


def _steps(tree: PrefixTree, node: PrefixNode, rows: list[_Row], buckets: Buckets) -> list[Step]:
    prefix = tree.rows[node.first][: node.base].tobytes()
    steps = []
    for count, length, used in _groups(rows, buckets):
        tokens = np.full((count, length), PAD, np.int32)
        depths = np.zeros((count, length), np.int32)
        ends = np.tile(np.arange(1, length + 1, dtype=np.int32), (count, 1))  # padding attends only to itself
        scored = ScorePositions()
        total = 0
        for number, row in enumerate(used):
            total += _lay_out(tree, node.base, row, number, (tokens[number], depths[number], ends[number]), scored)
        steps.append(Step.of(tokens, total, Tree(depths, ends, prefix), scored))
    return steps


def _lay_out(
    tree: PrefixTree,
    base: int,
    row: _Row,
    number: int,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    scored: ScorePositions,
) -> int:
    """Write the sequences of one row in depth-first order, and return its number of tokens."""
    tokens, depths, ends = arrays
    numbers = sorted(i for first, last in row.ranges for i in range(first, last))
    # The position in the row of the token at each depth of the last sequence.
    where = np.zeros(max(len(tree.rows[i]) for i in numbers), np.int32)
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
                scored.add(number, where[low : item.positions.stop].copy(), item.targets[skipped:], owner)
    ends[where[base : len(tree.rows[previous])]] = at
    return at
