"""The shared prefixes that get a state, and the steps that prefill it.

A state is worth computing if several steps would otherwise recompute the prefix, at a higher cost than the calls that
compute the state. `fork_planner` and `tree_planner` plan the steps that start from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from birdie_zmq.engine.planning.chunks import chunk_sizes
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.steps import PAD, Extend, Fork, ScoredSequence, ScorePositions, Step, Tokens


@dataclass
class PrefixNode:
    """A node of the prefix tree that gets a state, and the rows computed from that state.

    Attributes:
        base: The length of the prefix. The rows start from its state.
        parent: The node that the state starts from unless it is cached; None for the empty prefix.
        is_cached: Whether the state is cached.
        first: The first row that has the prefix.
        last: The end of the range of rows that have it.
        ranges: The subtrees of rows that are computed from this state.
        needed: The capacity in tokens that the nodes below need if they start from this state.
    """

    base: int
    parent: PrefixNode | None
    is_cached: bool
    first: int
    last: int
    ranges: list[tuple[int, int]] = field(default_factory=list)
    needed: int = 0


def with_prefills(
    tree: PrefixTree,
    nodes: Sequence[PrefixNode],
    steps_after: Sequence[list[Step]],
    lengths: tuple[int, ...],
    call_tokens: int,
    cached: Mapping[bytes, int],
) -> list[Step]:
    """Return the steps that prefill the state of each node, followed by the steps that start from it.

    A cached state without capacity for the tokens that the plan appends to it is not used: its prefix is prefilled
    again from its parent's state.

    Args:
        tree: The rows.
        nodes: The nodes, as `prefix_nodes` returns them.
        steps_after: The steps that start from the state of each node.
        lengths: The lengths of prefill steps, ascending.
        call_tokens: Fixed cost of a model call, in tokens.
        cached: The capacity in tokens of each cached prefix, by the bytes of its tokens.
    """
    plans = []
    for node, after in zip(reversed(nodes), reversed(steps_after), strict=True):  # those below a node come first
        needed = max(node.needed, _capacity(after))
        if node.is_cached and cached[tree.rows[node.first][: node.base].tobytes()] < needed:
            node.is_cached = False
        prefill = prefill_steps(tree, node, lengths, call_tokens)
        if prefill and node.parent is not None:
            node.parent.needed = max(node.parent.needed, needed, _capacity(prefill))
        plans.append(prefill + after)
    return [step for steps in reversed(plans) for step in steps]


def _capacity(steps: Sequence[Step]) -> int:
    """Return the capacity in tokens that the states of these steps need."""
    return max((step.kind.capacity for step in steps if isinstance(step.kind, Extend | Fork)), default=0)


def prefix_nodes(
    tree: PrefixTree, longest: int, call_tokens: int, cached: Collection[bytes], shared: int = 0
) -> list[PrefixNode]:
    """Return the nodes whose states are worth computing, each after the node that it starts from.

    Args:
        tree: The rows.
        longest: The maximum number of tokens that one row computes after a state.
        call_tokens: Fixed cost of a model call, in tokens.
        cached: Cached prefixes, as the bytes of their tokens.
        shared: The length of the prefix of all rows that gets a state whatever it costs. All rows have more
            tokens, and nothing is scored before the last of these.
    """
    result: list[PrefixNode] = []
    if not tree.rows:
        return result

    def visit(first: int, last: int, here: PrefixNode) -> None:
        base = here.base
        depth, size = tree.depth(first, last), tree.size(first, last, base)
        if cached:
            # A cached prefix is not computed again, so nothing can be scored in it.
            most = shared if base < shared else min(depth, tree.unscored(first, last))
            longest_cached = _longest_cached(tree.rows[first][:most], cached)
            if longest_cached > base:
                start(PrefixNode(longest_cached, here, True, first, last))
                return
        if base < shared:
            start(PrefixNode(shared, here, False, first, last))
            return
        if is_few_shot(first, last, depth, base):
            start(PrefixNode(depth - 1, here, False, first, last))
            return
        if size <= longest or (last - first == 1 and depth - base <= longest):
            if last - first == 1 or shared or not has_cached(first, last, depth):
                here.ranges.append((first, last))
            else:
                for begin, end in tree.children(first, last):
                    visit(begin, end, here)
            return
        again = size // max(1, longest - (depth - base))  # how often the prefix is recomputed without a state
        if depth - base > longest or again * (depth - base) > 2 * call_tokens:
            # If a shared prefix itself is scored, its last token is computed with what follows. So a later batch can start
            # from the state: the only position before it that predicts another token than here would be the last one.
            is_scored = depth - base > 1 and last - first > 1 and tree.unscored(first, last) == 0
            start(PrefixNode(depth - 1 if is_scored else depth, here, False, first, last))
        else:
            for begin, end in tree.children(first, last):
                visit(begin, end, here)

    def is_few_shot(first: int, last: int, depth: int, base: int) -> bool:
        """Return whether a scored prefix is followed by several long texts, so that later batches will have it too."""
        if shared or last - first == 1 or depth - 1 - base <= 2 * call_tokens or tree.unscored(first, last):
            return False
        long = sum(tree.size(begin, end, depth) >= call_tokens for begin, end in tree.children(first, last))
        return long > 1

    def has_cached(first: int, last: int, depth: int) -> bool:
        """Return whether a subtree of these rows has a cached prefix that is worth a call of its own."""
        return any(
            _longest_cached(tree.rows[begin][: min(tree.depth(begin, end), tree.unscored(begin, end))], cached) - depth
            > 2 * call_tokens
            for begin, end in (tree.children(first, last) if cached else ())
        )

    def start(node: PrefixNode) -> None:
        result.append(node)
        subtree = node.first, node.last
        for begin, end in tree.children(*subtree) if tree.depth(*subtree) == node.base else [subtree]:
            if any(len(tree.rows[i]) > node.base for i in range(begin, end)):
                visit(begin, end, node)

    root = PrefixNode(0, None, False, 0, len(tree.rows))
    result.append(root)
    visit(0, len(tree.rows), root)
    return result


def _longest_cached(prefix: Tokens, cached: Collection[bytes]) -> int:
    """Return the length of the longest cached prefix of these tokens."""
    tokens = prefix.tobytes()
    return max((len(key) // 4 for key in cached if tokens.startswith(key)), default=0)


def prefill_steps(tree: PrefixTree, node: PrefixNode, lengths: tuple[int, ...], call_tokens: int) -> list[Step]:
    """Return the one-row steps that prefill a node's prefix and score the targets in it; none if it is cached."""
    if node.parent is None or node.is_cached:
        return []
    row = tree.rows[node.first][: node.base]
    steps = []
    begin = at = node.parent.base
    for size in chunk_sizes(node.base - begin, lengths, call_tokens):
        end = min(at + size, node.base)
        tokens = np.full((1, size), PAD, np.int32)
        tokens[0, : end - at] = row[at:end]
        scored = ScorePositions()
        for i in range(node.first, node.last):
            for owner in tree.owners[i]:
                add_targets_between(scored, 0, tree.items[owner], owner, at, end)
        # Only the first and the last state are named: a named state is cached, and copied before it is extended.
        before = row[:at].tobytes() if at == begin else None
        after = row[:end].tobytes() if end == node.base else None
        kind = Extend(np.array([end - at], np.int32), before, after, at + size)
        steps.append(Step.of(tokens, end - at, kind, scored))
        at = end
    return steps


def add_targets_between(
    scored: ScorePositions, row: int, item: ScoredSequence, owner: int, begin: int, end: int
) -> None:
    """Add a request's targets at positions ``[begin, end)`` of its own row; `begin` is position 0 of the step's row."""
    positions = item.positions
    low, high = max(begin, positions.start), min(end, positions.stop)
    if low < high:
        at = range(low - begin, high - begin)
        scored.add(row, at, item.targets[low - positions.start : high - positions.start], owner)
