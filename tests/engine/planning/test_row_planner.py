"""Plans of whole rows: every request is scored once, from as few rows as are distinct."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.planning.execution_mode import ROWS
from birdie_zmq.engine.planning.prefix_tree import PrefixTree
from birdie_zmq.engine.planning.row_planner import covering_rows
from birdie_zmq.engine.planning.shape_buckets import Buckets, StepBudget
from birdie_zmq.engine.planning.steps import PAD, Dense, ScoredSequence, Step, Tokens
from birdie_zmq.types import StepLimits
from tests.engine.replay import any_buckets, replay, requests, texts

MAX_LENGTH = 40

Row = tuple[int, ...]


def as_tokens(rows: Sequence[Row]) -> list[Tokens]:
    return [np.array(row, dtype=np.int32) for row in rows]


def requests_for(rows: Sequence[Row]) -> list[ScoredSequence]:
    """Return requests that have these rows and score the token after each row."""
    return [ScoredSequence(np.append(row, np.int32(9)), 1) for row in as_tokens(rows)]


def plan(rows: Sequence[Row], shapes: Buckets) -> list[Step]:
    """Plan requests that have these rows and score the token after each row."""
    return ROWS.group(requests_for(rows)).plan(shapes, {})


def used_rows(step: Step) -> list[Row]:
    """Return the rows of a step without padding, and without rows of padding only."""
    rows = [tuple(token for token in tokens if token != PAD) for tokens in step.tokens.tolist()]
    return [row for row in rows if row]


def buckets(tokens: int = 64, rows: int | None = None) -> Buckets:
    return Buckets(MAX_LENGTH, vocab_size=2**17, budget=StepBudget(tokens=tokens), limits=StepLimits(rows=rows))


def is_prefix(row: Row, other: Row) -> bool:
    return other[: len(row)] == row


def maximal(rows: Sequence[Row]) -> set[Row]:
    """Return the distinct rows that are not a prefix of another row."""
    distinct = set(rows)
    return {row for row in distinct if not any(row != other and is_prefix(row, other) for other in distinct)}


# Few tokens, so that prefixes are shared, and some whose bytes are a permutation of others. None is PAD, so
# that padding can be counted.
row = st.lists(st.sampled_from([1, 255, 256, 65_536]), min_size=1, max_size=MAX_LENGTH).map(tuple)


@st.composite
def related_rows(draw: st.DrawFn) -> list[Row]:
    """Draw rows of which many are equal to, or a prefix of, another."""
    originals = draw(st.lists(row, min_size=1, max_size=6))
    copies = st.sampled_from(originals).flatmap(lambda whole: st.integers(1, len(whole)).map(lambda n: whole[:n]))
    return draw(st.permutations([*originals, *draw(st.lists(copies, max_size=12))]))


plans = st.builds(buckets, st.integers(1, 400), st.none() | st.integers(1, 5))


@given(st.data(), any_buckets)
def test_every_target_is_scored_once_from_its_whole_prefix(data: st.DataObject, shapes: Buckets) -> None:
    items = data.draw(requests(data.draw(texts())))
    steps = ROWS.group(items).plan(shapes, {})

    replayed = replay(items, steps, ROWS, shapes, {})

    assert all(isinstance(step.kind, Dense) for step in steps)
    assert replayed.states == {}


@given(related_rows(), plans)
def test_every_request_is_scored_once(rows: list[Row], shapes: Buckets) -> None:
    placed = [request for step in plan(rows, shapes) for request in step.owners.tolist()]

    assert sorted(placed) == list(range(len(rows)))


@given(related_rows(), plans)
def test_row_at_a_score_position_starts_with_the_requests_row(rows: list[Row], shapes: Buckets) -> None:
    for step in plan(rows, shapes):
        for request, row, position in zip(step.owners, step.rows, step.positions, strict=True):
            assert is_prefix(rows[request], tuple(step.tokens[row].tolist()))
            assert position == len(rows[request]) - 1


@given(related_rows(), plans)
def test_steps_have_only_bucket_shapes(rows: list[Row], shapes: Buckets) -> None:
    for step in plan(rows, shapes):
        assert step.shape in shapes.shapes
        assert step.tokens.dtype == np.int32


@given(related_rows(), plans)
def test_equal_rows_and_prefixes_of_other_rows_are_not_computed_again(rows: list[Row], shapes: Buckets) -> None:
    computed = [row for step in plan(rows, shapes) for row in used_rows(step)]

    assert len(computed) == len(maximal(rows))
    assert set(computed) == maximal(rows)


@given(related_rows(), plans)
def test_used_tokens_exclude_exactly_the_padding(rows: list[Row], shapes: Buckets) -> None:
    for step in plan(rows, shapes):
        used = used_rows(step)

        assert np.count_nonzero(step.tokens != PAD) == step.used_tokens
        assert [step.tokens[i, : len(row)].tolist() for i, row in enumerate(used)] == [list(row) for row in used]
        assert (step.tokens[len(used) :] == PAD).all()


@given(related_rows(), plans)
def test_longest_rows_come_first(rows: list[Row], shapes: Buckets) -> None:
    lengths = [len(row) for step in plan(rows, shapes) for row in used_rows(step)]

    assert lengths == sorted(lengths, reverse=True)


def test_partly_filled_step_takes_shorter_rows() -> None:
    rows = [(1,) * 40, (2,) * 3, (3,) * 20]

    (step,) = plan(rows, buckets(rows=4))

    assert step.shape == (4, 40)
    assert list(zip(step.owners, step.rows, step.positions, strict=True)) == [(0, 0, 39), (2, 1, 19), (1, 2, 2)]
    assert (len(used_rows(step)), step.used_tokens) == (3, 63)


def test_all_targets_of_a_request_are_scored() -> None:
    (step,) = ROWS.group([ScoredSequence(np.array([5, 6, 7, 8], dtype=np.int32), count=2)]).plan(buckets(), {})

    assert list(zip(step.rows, step.positions, step.targets, strict=True)) == [(0, 1, 7), (0, 2, 8)]


def test_no_requests_give_no_steps() -> None:
    assert plan([], buckets()) == []


def test_covering_row_is_the_longest_row_with_this_prefix() -> None:
    rows = [(1, 2), (1, 2, 3), (1, 2, 3), (1,), (2,), (1, 2, 3, 4)]

    found = covering_rows(PrefixTree(requests_for(rows)))

    assert [(row.tolist(), owners) for row, owners in found] == [([1, 2, 3, 4], [0, 1, 2, 3, 5]), ([2], [4])]


@given(related_rows())
def test_each_row_is_covered_once_by_a_row_that_begins_with_it(rows: list[Row]) -> None:
    found = covering_rows(PrefixTree(requests_for(rows)))

    assert sorted(owner for _, owners in found for owner in owners) == list(range(len(rows)))
    assert all(is_prefix(rows[owner], tuple(row.tolist())) for row, owners in found for owner in owners)
