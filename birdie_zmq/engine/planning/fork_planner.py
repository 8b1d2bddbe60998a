"""The planner for models with `extend`: each shared prefix is prefilled once, and its state is forked.

The model need not have attention. Subtrees of the prefix tree become *clusters*. A cluster has a stem, the prefix that
its rows share, and leaves. Several stems are prefilled side by side, one in each row of a state; the leaves extend
copies of their stem's row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from birdie_zmq.engine.planning.chunks import chunk_sizes
from birdie_zmq.engine.planning.prefix_states import PrefixNode, add_targets_between, prefix_nodes, with_prefills
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets, Shape
from birdie_zmq.engine.planning.steps import PAD, Extend, Fork, ScorePositions, Step

FORK_TOKENS = 1
"""Cost of copying one row of the state, in tokens."""


@dataclass(frozen=True)
class _Cluster:
    """Rows ``[first, last)`` of the tree, which share their first `stem` tokens."""

    first: int
    last: int
    stem: int


def plan_forks(tree: PrefixTree, buckets: Buckets, cached: Mapping[bytes, int]) -> list[Step]:
    """Plan requests as steps that prefill stems and extend leaves.

    Args:
        tree: The requests.
        buckets: The shapes that steps may have.
        cached: The capacity in tokens of each cached prefix, by the bytes of its tokens.
    """
    lengths, call_tokens = chunk_lengths(buckets), buckets.budget.call_tokens
    nodes = prefix_nodes(tree, lengths[-1], call_tokens, cached)
    steps = [_cluster_steps(tree, node, buckets) for node in nodes]
    return with_prefills(tree, nodes, steps, lengths, call_tokens, cached)


def _cluster_steps(tree: PrefixTree, node: PrefixNode, buckets: Buckets) -> list[Step]:
    """Plan the rows that start from the state of a node."""
    clusters = [cluster for first, last in node.ranges for cluster in _clusters(tree, first, last, node.base)[1]]
    clusters.sort(key=lambda cluster: -cluster.stem)
    steps = []
    while clusters:
        count = _row_count(len(clusters), buckets.geometric_length_for(clusters[0].stem - node.base), buckets)
        group, clusters = clusters[:count], clusters[count:]
        steps += _stem_steps(tree, node, group, count, buckets)
        steps += _leaf_steps(tree, group, buckets)
    return steps


def possible_shapes(buckets: Buckets) -> frozenset[Shape]:
    """Return every ``(rows, length)`` that a step can have; a prefix of any length is computed in chunks."""
    max_rows = max(map(buckets.rows_for, buckets.geometric_lengths))
    return buckets.state_shapes(dict.fromkeys(chunk_lengths(buckets), max_rows))


def chunk_lengths(buckets: Buckets) -> tuple[int, ...]:
    """Return the lengths that steps may have, ascending."""
    return buckets.chunk_lengths(1)


def _row_count(waiting: int, length: int, buckets: Buckets) -> int:
    """Return the row count of the next step: a power of two, at most twice the waiting rows."""
    most = buckets.rows_for(length)
    return most if buckets.limits.rows is not None else min(most, buckets.row_count_for(waiting))


def _clusters(tree: PrefixTree, first: int, last: int, base: int) -> tuple[int, list[_Cluster]]:
    """Return the cheapest clusters of a subtree after the first `base` tokens, and their cost in tokens."""
    depth = tree.depth(first, last)
    if last - first == 1:
        return depth - base, [_Cluster(first, last, depth)]
    subtrees = [_clusters(tree, begin, end, base) for begin, end in tree.children(first, last)]
    separate_cost = sum(cost for cost, _ in subtrees)
    leaves = [len(tree.rows[i]) - depth for i in range(first, last)]
    shared_cost = depth - base + sum(leaf + FORK_TOKENS for leaf in leaves if leaf)
    if shared_cost < separate_cost and depth > base:
        return shared_cost, [_Cluster(first, last, depth)]
    return separate_cost, [cluster for _, clusters in subtrees for cluster in clusters]


def _stem_steps(tree: PrefixTree, node: PrefixNode, group: list[_Cluster], count: int, buckets: Buckets) -> list[Step]:
    """Prefill the stems of a group side by side, in as many steps as the longest stem needs."""
    steps = []
    at = node.base
    before: bytes | None = tree.rows[node.first][: node.base].tobytes()
    capacity = max(len(tree.rows[i]) for cluster in group for i in range(cluster.first, cluster.last))
    for size in chunk_sizes(group[0].stem - at, chunk_lengths(buckets), buckets.budget.call_tokens):
        tokens = np.full((count, size), PAD, np.int32)
        read = np.zeros(count, np.int32)
        scored = ScorePositions()
        for row, cluster in enumerate(group):
            end = min(at + size, cluster.stem)
            if end <= at:
                continue
            read[row] = end - at
            tokens[row, : end - at] = tree.rows[cluster.first][at:end]
            for i in range(cluster.first, cluster.last):
                for owner in tree.owners[i]:
                    add_targets_between(scored, row, tree.items[owner], owner, at, end)
        kind = Extend(read, before, None, max(capacity, at + size) + size)
        steps.append(Step.of(tokens, int(read.sum()), kind, scored))
        at, before = at + size, None
    return steps


def _leaf_steps(tree: PrefixTree, group: list[_Cluster], buckets: Buckets) -> list[Step]:
    """Extend copies of the stems by the leaves."""
    leaves = [
        (row, cluster.stem, i)
        for row, cluster in enumerate(group)
        for i in range(cluster.first, cluster.last)
        if len(tree.rows[i]) > cluster.stem
    ]
    leaves.sort(key=lambda leaf: leaf[1] - len(tree.rows[leaf[2]]))
    steps = []
    while leaves:
        length = buckets.geometric_length_for(len(tree.rows[leaves[0][2]]) - leaves[0][1])
        count = _row_count(len(leaves), length, buckets)
        chosen, leaves = leaves[:count], leaves[count:]
        tokens = np.full((count, length), PAD, np.int32)
        parents, read = np.zeros(count, np.int32), np.zeros(count, np.int32)
        scored = ScorePositions()
        for row, (parent, stem, i) in enumerate(chosen):
            text = tree.rows[i]
            tokens[row, : len(text) - stem] = text[stem:]
            parents[row], read[row] = parent, len(text) - stem
            for owner in tree.owners[i]:
                add_targets_between(scored, row, tree.items[owner], owner, stem, len(text))
        capacity = max(stem for _, stem, _ in chosen) + length
        steps.append(Step.of(tokens, int(read.sum()), Fork(parents, read, capacity), scored))
    return steps
