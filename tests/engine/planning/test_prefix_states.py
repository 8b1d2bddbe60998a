"""The shared prefixes that get a state, and the steps that prefill it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.planning.execution_mode import FORKS, TREES, ExecutionMode
from birdie_zmq.engine.planning.prefix_states import PrefixNode, add_targets_between, prefill_steps, prefix_nodes
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import Extend, Fork, ScoredSequence, ScorePositions, Step
from tests.engine.planning.test_prefix_tree import item, prefixes
from tests.engine.replay import Text, replay, requests, texts, tokens_of

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
    assert set(scored.rows) == ({2} if positions else set())
    assert set(scored.owners) == ({8} if positions else set())


# --- Capacities of cached states --------------------------------------------------------------------------------------

CPU = Buckets(2048, vocab_size=0, budget=StepBudget(tokens=1024))


def needed_capacity(steps: Sequence[Step]) -> int:
    return max(step.kind.capacity for step in steps if isinstance(step.kind, Extend | Fork))


def prefilled(steps: Sequence[Step]) -> list[tuple[bytes | None, bytes | None]]:
    """Return the prefix that each step of one row starts from, and the prefix that it completes."""
    return [(step.kind.before, step.kind.after) for step in steps if isinstance(step.kind, Extend) and step.kind.after]


def after_two_prefixes(mode: ExecutionMode) -> tuple[list[ScoredSequence], bytes, bytes]:
    """Return requests whose tokens are appended to the longer of two nested prefixes, and both prefixes."""
    first = tokens_of(range(1, 31))
    # Attention reads the state of a prefix without appending to it, unless another state is computed from it.
    second = tokens_of([*first, *range(40, 70)])
    count, length = (2, 50) if mode is FORKS else (1, 1300)
    items = [
        ScoredSequence(tokens_of([*second, *([100 + i] * length)]), 1 if mode is TREES else 5) for i in range(count)
    ]
    return items, first.tobytes(), second.tobytes()


@pytest.mark.parametrize("mode", [FORKS, TREES])
def test_a_cached_state_of_just_enough_capacity_is_extended(mode: ExecutionMode) -> None:
    items, first, second = after_two_prefixes(mode)
    group = mode.group(items)
    needed = needed_capacity(group.plan(CPU, {second: 1 << 20}))
    states = {first: 64, second: needed}

    steps = group.plan(CPU, states)

    assert second not in [after for _, after in prefilled(steps)]
    assert replay(items, steps, mode, CPU, states).used == group.distinct_tokens - 60


@pytest.mark.parametrize("mode", [FORKS, TREES])
def test_a_cached_state_too_small_by_one_token_is_prefilled_anew(mode: ExecutionMode) -> None:
    items, first, second = after_two_prefixes(mode)
    group = mode.group(items)
    needed = needed_capacity(group.plan(CPU, {second: 1 << 20}))
    states = {first: 1 << 20, second: needed - 1}

    steps = group.plan(CPU, states)

    assert prefilled(steps)[0] == (b"", second), "the shorter cached prefix is not part of the plan"
    assert replay(items, steps, mode, CPU, states).used == group.distinct_tokens


def test_a_state_from_which_a_smaller_one_is_prefilled_anew_needs_the_same_capacity() -> None:
    first, second = tokens_of(range(1, 31)), tokens_of([*range(1, 31), *range(40, 70)])
    short = [ScoredSequence(tokens_of([*first, *([200 + i] * 5)]), 1) for i in range(2)]
    long = [ScoredSequence(tokens_of([*second, *([100 + i] * 50)]), 5) for i in range(2)]
    items = [ScoredSequence(tokens_of([*first, 90, *([7] * 5)]), 1), *short, *long]
    for capacities, expected in (
        ((1 << 20, 64), [(first.tobytes(), second.tobytes())]),
        ((64, 64), [(b"", first.tobytes()), (first.tobytes(), second.tobytes())]),
    ):
        states = dict(zip((first.tobytes(), second.tobytes()), capacities, strict=True))

        steps = FORKS.group(items).plan(CPU, states)

        assert prefilled(steps) == expected
        replay(items, steps, FORKS, CPU, states)


def test_a_state_that_trees_only_read_needs_no_further_capacity() -> None:
    items, _, second = after_two_prefixes(FORKS)
    states = {second: 60}

    steps = TREES.group(items).plan(CPU, states)

    assert prefilled(steps) == []
    assert replay(items, steps, TREES, CPU, states).used == 2 * 49
