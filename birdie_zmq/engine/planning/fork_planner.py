"""The plan for models with a state that is continued, attention or not: shared beginnings are read once, and forked.

Subtrees become *clusters*: a stem that rows of a state read side by side, and leaves that continue copies of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from birdie_zmq.engine.planning.prefix_tree import Context, PrefixTree, contexts, long_pieces, read_trunk, score_between
from birdie_zmq.engine.planning.shape_buckets import Buckets
from birdie_zmq.engine.planning.steps import PAD, Extend, Fork, ScoredSequence, ScorePositions, Step

FORK_TOKENS = 1
"""What copying a row of the state costs, in tokens."""


@dataclass(frozen=True)
class _Cluster:
    """Rows ``[first, last)`` of the tree, which begin alike up to `stem`."""

    first: int
    last: int
    stem: int


def plan_forks(items: Sequence[ScoredSequence], buckets: Buckets, known: Collection[bytes] = ()) -> list[Step]:
    """Cut requests into steps of stems and leaves.

    Args:
        items: The requests.
        buckets: The shapes that steps may have.
        known: Beginnings whose states are there, by the bytes of their tokens.
    """
    tree = PrefixTree(items)
    lengths = piece_lengths(buckets)
    overhead = buckets.budget.call_tokens
    steps = []
    for context in contexts(tree, lengths[-1], overhead, known):
        steps += read_trunk(tree, context, lengths, overhead)
        found = [cluster for first, last in context.ranges for cluster in _clusters(tree, first, last, context.base)[1]]
        found.sort(key=lambda cluster: -cluster.stem)
        while found:
            count = _rows(len(found), buckets.grown_length_for(found[0].stem - context.base), buckets)
            group, found = found[:count], found[count:]
            steps += _stems(tree, context, group, count, lengths, overhead)
            steps += _leaves(tree, group, buckets)
    return steps


def piece_lengths(buckets: Buckets) -> tuple[int, ...]:
    """The lengths of steps, ascending."""
    return buckets.piece_lengths(1)


def _rows(waiting: int, length: int, buckets: Buckets) -> int:
    """How many rows the next step has: a power of two, no more than are filled but for the last."""
    most = buckets.rows_for(length)
    return most if buckets.limits.rows is not None else min(most, buckets.rows_to_hold(waiting))


def _clusters(tree: PrefixTree, first: int, last: int, base: int) -> tuple[int, list[_Cluster]]:
    """The clusters of a subtree that cost least behind `base`, and their cost in tokens."""
    depth = tree.depth(first, last)
    if last - first == 1:
        return depth - base, [_Cluster(first, last, depth)]
    parts = [_clusters(tree, begin, end, base) for begin, end in tree.children(first, last)]
    apart = sum(cost for cost, _ in parts)
    leaves = [len(tree.rows[i]) - depth for i in range(first, last)]
    together = depth - base + sum(leaf + FORK_TOKENS for leaf in leaves if leaf)
    if together < apart and depth > base:
        return together, [_Cluster(first, last, depth)]
    return apart, [cluster for _, clusters in parts for cluster in clusters]


def _stems(
    tree: PrefixTree, context: Context, group: list[_Cluster], count: int, lengths: tuple[int, ...], overhead: int
) -> list[Step]:
    """Read the stems of a group side by side, in as many steps as the longest needs."""
    steps = []
    at = context.base
    before: bytes | None = tree.rows[context.first][: context.base].tobytes()
    room = max(len(tree.rows[i]) for cluster in group for i in range(cluster.first, cluster.last))
    for size in long_pieces(group[0].stem - at, lengths, overhead):
        tokens = np.full((count, size), PAD, np.int32)
        read = np.zeros(count, np.int32)
        places = ScorePositions()
        for row, cluster in enumerate(group):
            end = min(at + size, cluster.stem)
            if end <= at:
                continue
            read[row] = end - at
            tokens[row, : end - at] = tree.rows[cluster.first][at:end]
            for i in range(cluster.first, cluster.last):
                for owner in tree.owners[i]:
                    score_between(places, row, tree.items[owner], owner, at, end)
        steps.append(Step.of(tokens, int(read.sum()), Extend(read, before, None, max(room, at + size) + size), places))
        at, before = at + size, None
    return steps


def _leaves(tree: PrefixTree, group: list[_Cluster], buckets: Buckets) -> list[Step]:
    """Continue copies of the stems."""
    found = [
        (row, cluster.stem, i)
        for row, cluster in enumerate(group)
        for i in range(cluster.first, cluster.last)
        if len(tree.rows[i]) > cluster.stem
    ]
    found.sort(key=lambda leaf: leaf[1] - len(tree.rows[leaf[2]]))
    steps = []
    while found:
        length = buckets.grown_length_for(len(tree.rows[found[0][2]]) - found[0][1])
        count = _rows(len(found), length, buckets)
        chosen, found = found[:count], found[count:]
        tokens = np.full((count, length), PAD, np.int32)
        parents, read = np.zeros(count, np.int32), np.zeros(count, np.int32)
        places = ScorePositions()
        for row, (parent, stem, i) in enumerate(chosen):
            text = tree.rows[i]
            tokens[row, : len(text) - stem] = text[stem:]
            parents[row], read[row] = parent, len(text) - stem
            for owner in tree.owners[i]:
                score_between(places, row, tree.items[owner], owner, stem, len(text))
        room = max(stem for _, stem, _ in chosen) + length
        steps.append(Step.of(tokens, int(read.sum()), Fork(parents, read, room), places))
    return steps
