"""The prefix tree, the nodes that get states, and the chunks of long texts."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.planning.prefix_tree import (
    PrefixNode,
    PrefixTree,
    add_targets_between,
    chunk_sizes,
    common_prefix_length,
    optimal_chunks,
    prefill_steps,
    prefix_nodes,
)
from birdie_zmq.engine.planning.steps import Extend, ScoredSequence, ScorePositions
from tests.engine.replay import Text, requests, texts, tokens_of


def item(*tokens: int, count: int = 1) -> ScoredSequence:
    return ScoredSequence(tokens_of(tokens), count)


def prefixes(items: Sequence[ScoredSequence]) -> set[Text]:
    """Return the distinct prefixes of all rows: one for each token that must be computed."""
    return {tuple(item.row[:end].tolist()) for item in items for end in range(1, len(item.row) + 1)}


# --- The tree ---------------------------------------------------------------------------------------------------------


def test_rows_are_sorted_with_their_shared_prefix_lengths() -> None:
    tree = PrefixTree([item(1, 2, 4, 9), item(3, 9), item(1, 2, 3, 9), item(1, 2, 4, 8), item(256, 9), item(1, 9)])

    assert [row.tolist() for row in tree.rows] == [[1], [1, 2, 3], [1, 2, 4], [3], [256]]
    assert tree.shared == [0, 1, 2, 0, 0]
    assert tree.owners == [[5], [2], [0, 3], [1], [4]]


def test_empty_tree_has_no_tokens() -> None:
    assert PrefixTree([]).distinct_tokens() == 0


@given(st.data())
def test_distinct_tokens_are_the_distinct_prefixes(data: st.DataObject) -> None:
    items = data.draw(requests(data.draw(texts())))

    assert PrefixTree(items).distinct_tokens() == len(prefixes(items))


@given(st.data())
def test_depth_and_size_of_a_range(data: st.DataObject) -> None:
    tree = PrefixTree(data.draw(requests(data.draw(texts()))))
    first = data.draw(st.integers(0, len(tree.rows) - 1))
    last = data.draw(st.integers(first + 1, len(tree.rows)))
    rows = [tuple(row.tolist()) for row in tree.rows[first:last]]
    depth = tree.depth(first, last)
    base = data.draw(st.integers(0, depth))

    shared = {row[:depth] for row in rows}
    longer = {row[: depth + 1] for row in rows}
    assert len(shared) == 1
    assert len(longer) > 1 or len(rows) == 1
    behind = {row[:end] for row in rows for end in range(base + 1, len(row) + 1)}
    assert tree.size(first, last, base) == len(behind)


@given(st.data())
def test_children_split_rows_by_their_next_token(data: st.DataObject) -> None:
    tree = PrefixTree(data.draw(requests(data.draw(texts()))))
    last = len(tree.rows)
    depth = tree.depth(0, last)

    children = list(tree.children(0, last))

    assert [i for begin, end in children for i in range(begin, end)] == list(range(last))
    next_tokens = [{tuple(row[depth : depth + 1].tolist()) for row in tree.rows[begin:end]} for begin, end in children]
    assert [len(tokens) for tokens in next_tokens] == [1] * len(children)
    assert len(set.union(*next_tokens)) == len(children)


def test_unscored_ends_at_the_earliest_target() -> None:
    tree = PrefixTree([item(1, 2, 3, 4, 5, count=1), item(1, 2, 3, 4, 6, count=3)])

    assert tree.unscored(0, 1) == 1
    assert PrefixTree([item(1, 2, 3, 4, 5, count=1)]).unscored(0, 1) == 3


@pytest.mark.parametrize(
    ("one", "other", "length"), [((), (1,), 0), ((1, 2), (1, 2), 2), ((1, 2, 3), (1, 2), 2), ((1, 2), (1, 3, 2), 1)]
)
def test_common_prefix_length(one: Text, other: Text, length: int) -> None:
    assert common_prefix_length(tokens_of(one), tokens_of(other)) == length
    assert common_prefix_length(tokens_of(other), tokens_of(one)) == length


# --- Nodes that get states --------------------------------------------------------------------------------------------


def with_prefix(prefix: Sequence[int], count: int, length: int) -> list[ScoredSequence]:
    """Return requests that share a prefix and then differ, by `length` tokens each."""
    return [item(*prefix, *[1000 + i] * length, count=length) for i in range(count)]


def test_requests_that_fit_in_one_row_need_no_state() -> None:
    tree = PrefixTree(with_prefix(range(1, 41), 4, 10))

    (only,) = prefix_nodes(tree, longest=128, call_tokens=8, cached=())

    assert (only.base, only.parent, only.ranges) == (0, None, [(0, 4)])


def test_prefix_that_several_rows_would_recompute_gets_a_state() -> None:
    tree = PrefixTree(with_prefix(range(1, 41), 40, 10))

    root, shared = prefix_nodes(tree, longest=128, call_tokens=8, cached=())

    assert root.ranges == []
    assert (shared.base, shared.is_cached, shared.first, shared.last) == (40, False, 0, 40)
    assert shared.parent is root
    assert sorted(shared.ranges) == [(i, i + 1) for i in range(40)]


def test_prefix_cheaper_than_its_calls_gets_no_state() -> None:
    tree = PrefixTree(with_prefix(range(1, 41), 40, 10))

    (only,) = prefix_nodes(tree, longest=128, call_tokens=10_000, cached=())

    assert sorted(only.ranges) == [(i, i + 1) for i in range(40)]


def test_prefix_longer_than_a_row_always_gets_a_state() -> None:
    tree = PrefixTree([item(*range(1, 202))])

    root, node = prefix_nodes(tree, longest=128, call_tokens=10_000, cached=())

    assert root.ranges == []
    assert (node.base, node.is_cached, node.ranges) == (200, False, [])


def test_work_starts_from_the_longest_cached_prefix() -> None:
    tree = PrefixTree(with_prefix(range(1, 41), 3, 10))
    cached = [tokens_of(range(1, end)).tobytes() for end in (11, 31, 21)]

    _, there = prefix_nodes(tree, longest=128, call_tokens=8, cached=cached)

    assert (there.base, there.is_cached, there.ranges) == (30, True, [(0, 3)])


def test_cached_prefix_with_targets_in_it_is_not_used() -> None:
    tree = PrefixTree([item(*range(1, 42), count=1), item(*range(1, 31), 50, count=20)])
    cached = [tokens_of(range(1, end)).tobytes() for end in (11, 31)]

    _, there = prefix_nodes(tree, longest=128, call_tokens=8, cached=cached)

    assert (there.base, there.is_cached) == (10, True)


@given(st.data(), st.integers(16, 64), st.sampled_from([0, 8, 100]))
def test_every_distinct_token_is_in_a_range_or_a_prefilled_prefix(
    data: st.DataObject, longest: int, call_tokens: int
) -> None:
    items = data.draw(requests(data.draw(texts())))
    tree = PrefixTree(items)
    covered: set[Text] = set()
    states = {0: {()}}
    for node in prefix_nodes(tree, longest, call_tokens, ()):
        row = tuple(tree.rows[node.first].tolist())
        prefill_from = node.parent.base if node.parent else 0
        assert row[:prefill_from] in states.get(prefill_from, set()), "a node comes after the node that it starts from"
        states.setdefault(node.base, set()).add(row[: node.base])
        covered |= {row[:end] for end in range(prefill_from + 1, node.base + 1)}
        for first, last in node.ranges:
            assert tree.size(first, last, node.base) <= longest
            texts_here = [tuple(row.tolist()) for row in tree.rows[first:last]]
            assert {text[: node.base] for text in texts_here} == {row[: node.base]}
            covered |= {text[:end] for text in texts_here for end in range(node.base + 1, len(text) + 1)}

    assert covered == prefixes(items)


# --- Prefilling a prefix in chunks ------------------------------------------------------------------------------------


def test_prefix_is_prefilled_in_chunks_that_name_only_the_first_and_last_state() -> None:
    tree = PrefixTree([item(*range(1, 62), count=2), item(*range(1, 61), 99, count=20)])

    steps = prefill_steps(tree, PrefixNode(60, PrefixNode(10, None, False, 0, 2), False, 0, 1), (16, 32), 4)

    kinds = [step.kind for step in steps if isinstance(step.kind, Extend)]
    assert [step.shape for step in steps] == [(1, 32), (1, 32)]
    assert [kind.before for kind in kinds] == [tokens_of(range(1, 11)).tobytes(), None]
    assert [kind.after for kind in kinds] == [None, tokens_of(range(1, 61)).tobytes()]
    assert [kind.capacity for kind in kinds] == [42, 74]
    assert [kind.lengths.tolist() for kind in kinds] == [[32], [18]]
    # The second request is scored from the 41st token on, where 2 tokens of the first chunk are left; the first
    # request at its last two tokens only.
    assert [step.owners.tolist() for step in steps] == [[1] * 2, [0] * 2 + [1] * 18]
    assert [step.positions.tolist() for step in steps] == [[30, 31], [16, 17, *range(18)]]
    assert [step.targets.tolist() for step in steps] == [[42, 43], [60, 61, *range(44, 61), 99]]


@pytest.mark.parametrize(
    ("begin", "end", "positions", "targets"),
    [(0, 5, [3, 4], [5, 6]), (0, 3, [], []), (4, 9, [0, 1], [6, 7]), (5, 6, [0], [7]), (6, 9, [], [])],
)
def test_targets_between_two_positions(begin: int, end: int, positions: list[int], targets: list[int]) -> None:
    scored = ScorePositions()

    add_targets_between(scored, 2, item(1, 2, 3, 4, 5, 6, 7, count=3), 8, begin, end)

    assert [at for column in scored.positions for at in column.tolist()] == positions
    assert [target for column in scored.targets for target in column.tolist()] == targets
    assert {row for column in scored.rows for row in column.tolist()} == ({2} if positions else set())
    assert {owner for column in scored.owners for owner in column.tolist()} == ({8} if positions else set())


def cheapest(count: int, sizes: Sequence[int], call_tokens: int) -> int:
    """Return the least cost of any chunks, by trying all counts of all sizes but one, which covers the rest."""
    costs = []
    *others, last = sizes
    for numbers in itertools.product(*(range(-(-count // size) + 1) for size in others)):
        covered = sum(number * size for number, size in zip(numbers, others, strict=True))
        number_of_last = max(0, -(-(count - covered) // last))
        costs.append(covered + number_of_last * last + call_tokens * (sum(numbers) + number_of_last))
    return min(costs)


size_tuples = st.sampled_from([(16,), (16, 24), (16, 32), (16, 24, 32), (32, 64, 96), (16, 32, 64), (1, 2, 4, 8)])


@given(st.integers(1, 150), size_tuples, st.sampled_from([0, 1, 4, 32, 200]))
def test_chunks_cover_a_count_at_the_least_cost(count: int, sizes: tuple[int, ...], call_tokens: int) -> None:
    found = optimal_chunks(count, sizes, call_tokens)

    assert set(found) <= set(sizes)
    assert list(found) == sorted(found, reverse=True)
    assert sum(found) >= count
    assert sum(found[:-1]) < count, "no chunk is padding alone"
    if count <= 2 * sizes[-1]:
        assert sum(found) + call_tokens * len(found) == cheapest(count, sizes, call_tokens)


def test_tiny_chunks_need_no_deep_recursion() -> None:
    """A model with a state uses chunks of 4 tokens and up; in the model process the stack is partly used already."""
    sizes = (4, 1024)

    assert within_frames(300, lambda: chunk_sizes(65_536, sizes, 32)) == [1024] * 64
    assert within_frames(300, lambda: chunk_sizes(2_047, (4, 6, 1024), 32)) == [1024, 1024]


def within_frames(most: int, function: Callable[[], list[int]]) -> list[int]:
    """Call a function with `most` stack frames left, and return its result."""
    depth = len(inspect.stack())
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + most)
    try:
        return function()
    finally:
        sys.setrecursionlimit(before)


@given(st.integers(1, 5000), size_tuples, st.sampled_from([0, 4, 32, 200]))
def test_long_count_is_covered_by_largest_chunks_and_an_optimal_rest(
    count: int, sizes: tuple[int, ...], call_tokens: int
) -> None:
    found = chunk_sizes(count, sizes, call_tokens)

    assert sum(found) >= count
    assert sum(found[:-1]) < count
    rest = [size for size in found if size != sizes[-1]]
    assert sum(rest) <= 2 * sizes[-1]
    if count <= 2 * sizes[-1]:
        assert tuple(found) == optimal_chunks(count, sizes, call_tokens)


def test_chunk_sizes_of_very_long_texts() -> None:
    assert chunk_sizes(16 * 100_000, (16,), 4) == [16] * 100_000
    assert np.sum(chunk_sizes(10**6 + 1, (16, 1024), 4)) >= 10**6 + 1
