"""The tree of requests, which of its beginnings get states, and how long texts are cut into pieces."""

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
    Context,
    PrefixTree,
    common,
    contexts,
    long_pieces,
    pieces,
    read_trunk,
    score_between,
)
from birdie_zmq.engine.planning.steps import Extend, ScoredSequence, ScorePositions
from tests.engine.replay import Text, requests, texts, tokens_of


def item(*tokens: int, count: int = 1) -> ScoredSequence:
    return ScoredSequence(tokens_of(tokens), count)


def prefixes(items: Sequence[ScoredSequence]) -> set[Text]:
    """Every distinct beginning of a row: one for each token that must be computed."""
    return {tuple(item.row[:end].tolist()) for item in items for end in range(1, len(item.row) + 1)}


# --- The tree --------------------------------------------------------------------------------------------------------


def test_rows_stand_in_order_with_what_they_share() -> None:
    tree = PrefixTree([item(1, 2, 4, 9), item(3, 9), item(1, 2, 3, 9), item(1, 2, 4, 8), item(256, 9), item(1, 9)])

    assert [row.tolist() for row in tree.rows] == [[1], [1, 2, 3], [1, 2, 4], [3], [256]]
    assert tree.shared == [0, 1, 2, 0, 0]
    assert tree.owners == [[5], [2], [0, 3], [1], [4]]


def test_a_tree_of_nothing_has_no_tokens() -> None:
    assert PrefixTree([]).distinct_tokens() == 0


@given(st.data())
def test_distinct_tokens_are_the_distinct_beginnings(data: st.DataObject) -> None:
    items = data.draw(requests(data.draw(texts())))

    assert PrefixTree(items).distinct_tokens() == len(prefixes(items))


@given(st.data())
def test_a_range_knows_what_it_shares_and_what_it_costs(data: st.DataObject) -> None:
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
def test_children_are_the_rows_that_go_on_alike(data: st.DataObject) -> None:
    tree = PrefixTree(data.draw(requests(data.draw(texts()))))
    last = len(tree.rows)
    depth = tree.depth(0, last)

    children = list(tree.children(0, last))

    assert [i for begin, end in children for i in range(begin, end)] == list(range(last))
    next_tokens = [{tuple(row[depth : depth + 1].tolist()) for row in tree.rows[begin:end]} for begin, end in children]
    assert [len(tokens) for tokens in next_tokens] == [1] * len(children)
    assert len(set.union(*next_tokens)) == len(children)


def test_nothing_is_scored_before_the_first_target_of_all() -> None:
    tree = PrefixTree([item(1, 2, 3, 4, 5, count=1), item(1, 2, 3, 4, 6, count=3)])

    assert tree.unscored(0, 1) == 1
    assert PrefixTree([item(1, 2, 3, 4, 5, count=1)]).unscored(0, 1) == 3


@pytest.mark.parametrize(
    ("one", "other", "length"), [((), (1,), 0), ((1, 2), (1, 2), 2), ((1, 2, 3), (1, 2), 2), ((1, 2), (1, 3, 2), 1)]
)
def test_what_two_texts_begin_with_alike(one: Text, other: Text, length: int) -> None:
    assert common(tokens_of(one), tokens_of(other)) == length
    assert common(tokens_of(other), tokens_of(one)) == length


# --- Which beginnings get states -------------------------------------------------------------------------------------


def with_prefix(prefix: Sequence[int], count: int, length: int) -> list[ScoredSequence]:
    """Requests that go on apart after a prefix, by so many tokens each."""
    return [item(*prefix, *[1000 + i] * length, count=length) for i in range(count)]


def test_what_fits_in_one_row_needs_no_state() -> None:
    tree = PrefixTree(with_prefix(range(1, 41), 4, 10))

    (only,) = contexts(tree, longest=128, overhead=8, known=())

    assert (only.base, only.trunk, only.ranges) == (0, 0, [(0, 4)])


def test_what_several_rows_would_read_again_gets_a_state() -> None:
    tree = PrefixTree(with_prefix(range(1, 41), 40, 10))

    everything, shared = contexts(tree, longest=128, overhead=8, known=())

    assert everything.ranges == []
    assert (shared.base, shared.trunk, shared.first, shared.last) == (40, 0, 0, 40)
    assert sorted(shared.ranges) == [(i, i + 1) for i in range(40)]


def test_what_costs_less_than_the_calls_to_keep_it_gets_none() -> None:
    tree = PrefixTree(with_prefix(range(1, 41), 40, 10))

    (only,) = contexts(tree, longest=128, overhead=10_000, known=())

    assert sorted(only.ranges) == [(i, i + 1) for i in range(40)]


def test_what_is_longer_than_a_row_is_read_as_a_state_whatever_it_costs() -> None:
    tree = PrefixTree([item(*range(1, 202))])

    everything, whole = contexts(tree, longest=128, overhead=10_000, known=())

    assert everything.ranges == []
    assert (whole.base, whole.trunk, whole.ranges) == (200, 0, [])


def test_the_longest_known_beginning_is_where_work_begins() -> None:
    tree = PrefixTree(with_prefix(range(1, 41), 3, 10))
    known = [tokens_of(range(1, end)).tobytes() for end in (11, 31, 21)]

    _, there = contexts(tree, longest=128, overhead=8, known=known)

    assert (there.base, there.trunk, there.ranges) == (30, 30, [(0, 3)])


def test_a_beginning_in_which_something_is_scored_is_not_taken_as_known() -> None:
    tree = PrefixTree([item(*range(1, 42), count=1), item(*range(1, 31), 50, count=20)])
    known = [tokens_of(range(1, end)).tobytes() for end in (11, 31)]

    _, there = contexts(tree, longest=128, overhead=8, known=known)

    assert (there.base, there.trunk) == (10, 10)


@given(st.data(), st.integers(16, 64), st.sampled_from([0, 8, 100]))
def test_every_distinct_token_is_in_a_range_or_a_trunk(data: st.DataObject, longest: int, overhead: int) -> None:
    items = data.draw(requests(data.draw(texts())))
    tree = PrefixTree(items)
    covered: set[Text] = set()
    states = {0: {()}}
    for context in contexts(tree, longest, overhead, ()):
        row = tuple(tree.rows[context.first].tolist())
        assert row[: context.trunk] in states.get(context.trunk, set()), "what a trunk starts from comes before it"
        states.setdefault(context.base, set()).add(row[: context.base])
        covered |= {row[:end] for end in range(context.trunk + 1, context.base + 1)}
        for first, last in context.ranges:
            assert tree.size(first, last, context.base) <= longest
            texts_here = [tuple(row.tolist()) for row in tree.rows[first:last]]
            assert {text[: context.base] for text in texts_here} == {row[: context.base]}
            covered |= {text[:end] for text in texts_here for end in range(context.base + 1, len(text) + 1)}

    assert covered == prefixes(items)


# --- Reading a beginning in pieces -----------------------------------------------------------------------------------


def test_a_trunk_is_read_in_pieces_and_names_only_where_it_starts_and_ends() -> None:
    tree = PrefixTree([item(*range(1, 62), count=2), item(*range(1, 61), 99, count=20)])

    steps = read_trunk(tree, Context(60, 10, 0, 1), (16, 32), 4)

    hows = [step.how for step in steps if isinstance(step.how, Extend)]
    assert [step.shape for step in steps] == [(1, 32), (1, 32)]
    assert [how.before for how in hows] == [tokens_of(range(1, 11)).tobytes(), None]
    assert [how.after for how in hows] == [None, tokens_of(range(1, 61)).tobytes()]
    assert [how.room for how in hows] == [42, 74]
    assert [how.lengths.tolist() for how in hows] == [[32], [18]]
    # The second request is scored from the 41st token on, where 2 tokens of the first piece are left; the first
    # request at its last two tokens only.
    assert [step.owners.tolist() for step in steps] == [[1] * 2, [0] * 2 + [1] * 18]
    assert [step.positions.tolist() for step in steps] == [[30, 31], [16, 17, *range(18)]]
    assert [step.targets.tolist() for step in steps] == [[42, 43], [60, 61, *range(44, 61), 99]]


@pytest.mark.parametrize(
    ("begin", "end", "positions", "targets"),
    [(0, 5, [3, 4], [5, 6]), (0, 3, [], []), (4, 9, [0, 1], [6, 7]), (5, 6, [0], [7]), (6, 9, [], [])],
)
def test_what_is_scored_between_two_positions(begin: int, end: int, positions: list[int], targets: list[int]) -> None:
    places = ScorePositions()

    score_between(places, 2, item(1, 2, 3, 4, 5, 6, 7, count=3), 8, begin, end)

    assert [at for column in places.positions for at in column.tolist()] == positions
    assert [target for column in places.targets for target in column.tolist()] == targets
    assert {row for column in places.rows for row in column.tolist()} == ({2} if positions else set())
    assert {owner for column in places.owners for owner in column.tolist()} == ({8} if positions else set())


def cheapest(count: int, sizes: Sequence[int], overhead: int) -> int:
    """The least that any pieces cost, by trying all numbers of all sizes but one, which covers the rest."""
    costs = []
    *others, last = sizes
    for numbers in itertools.product(*(range(-(-count // size) + 1) for size in others)):
        covered = sum(number * size for number, size in zip(numbers, others, strict=True))
        number_of_last = max(0, -(-(count - covered) // last))
        costs.append(covered + number_of_last * last + overhead * (sum(numbers) + number_of_last))
    return min(costs)


sizes_of_pieces = st.sampled_from([(16,), (16, 24), (16, 32), (16, 24, 32), (32, 64, 96), (16, 32, 64), (1, 2, 4, 8)])


@given(st.integers(1, 150), sizes_of_pieces, st.sampled_from([0, 1, 4, 32, 200]))
def test_pieces_cover_a_count_at_the_least_cost(count: int, sizes: tuple[int, ...], overhead: int) -> None:
    found = pieces(count, sizes, overhead)

    assert set(found) <= set(sizes)
    assert list(found) == sorted(found, reverse=True)
    assert sum(found) >= count
    assert sum(found[:-1]) < count, "no piece is padding alone"
    if count <= 2 * sizes[-1]:
        assert sum(found) + overhead * len(found) == cheapest(count, sizes, overhead)


def test_pieces_may_be_tiny_beside_the_count() -> None:
    """A model with a state reads in pieces of 4 and up; in the model process the stack is in use already."""
    sizes = (4, 1024)

    assert within_frames(300, lambda: long_pieces(65_536, sizes, 32)) == [1024] * 64
    assert within_frames(300, lambda: long_pieces(2_047, (4, 6, 1024), 32)) == [1024, 1024]


def within_frames(most: int, function: Callable[[], list[int]]) -> list[int]:
    """What a function returns that has so many frames left."""
    depth = len(inspect.stack())
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + most)
    try:
        return function()
    finally:
        sys.setrecursionlimit(before)


@given(st.integers(1, 5000), sizes_of_pieces, st.sampled_from([0, 4, 32, 200]))
def test_a_long_count_is_covered_by_whole_pieces_and_the_best_rest(
    count: int, sizes: tuple[int, ...], overhead: int
) -> None:
    found = long_pieces(count, sizes, overhead)

    assert sum(found) >= count
    assert sum(found[:-1]) < count
    rest = [size for size in found if size != sizes[-1]]
    assert sum(rest) <= 2 * sizes[-1]
    if count <= 2 * sizes[-1]:
        assert tuple(found) == pieces(count, sizes, overhead)


def test_a_text_of_any_length_is_cut_without_deep_recursion() -> None:
    assert long_pieces(16 * 100_000, (16,), 4) == [16] * 100_000
    assert np.sum(long_pieces(10**6 + 1, (16, 1024), 4)) >= 10**6 + 1
