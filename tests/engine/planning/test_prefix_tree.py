"""The prefix tree of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.planning.prefix_tree import PrefixTree, common_prefix_length
from birdie_zmq.engine.planning.steps import ScoredSequence
from tests.engine.replay import Text, requests, texts, tokens_of


def item(*tokens: int, count: int = 1) -> ScoredSequence:
    return ScoredSequence(tokens_of(tokens), count)


def prefixes(items: Sequence[ScoredSequence]) -> set[Text]:
    """Return the distinct prefixes of all rows: one for each token that must be computed."""
    return {tuple(item.row[:end].tolist()) for item in items for end in range(1, len(item.row) + 1)}


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
