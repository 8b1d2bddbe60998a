"""The shapes of steps: few shapes, each within the budget, with little padding."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.planning.shape_buckets import MIN_LENGTH, Buckets, StepBudget, bucket_lengths
from birdie_zmq.types import StepLimits

max_lengths = st.integers(1, 100_000)


@st.composite
def buckets(draw: st.DrawFn) -> Buckets:
    """Draw buckets of any model on any device, with any `max_rows`."""
    budget = StepBudget(
        tokens=draw(st.integers(1, 2**16)),
        logits_bytes=draw(st.integers(1, 2**31)),
        rows=draw(st.integers(1, 512)),
    )
    limits = StepLimits(max_rows=draw(st.none() | st.integers(1, 512)))
    return Buckets(draw(max_lengths), vocab_size=draw(st.integers(1, 300_000)), budget=budget, limits=limits)


@pytest.mark.parametrize(
    ("max_length", "lengths"),
    [
        (1, (1,)),
        (16, (16,)),
        (17, (16, 17)),
        (24, (16, 24)),
        (64, (16, 24, 32, 48, 64)),
        (100, (16, 24, 32, 48, 64, 96, 100)),
    ],
)
def test_lengths_grow_by_a_half_and_a_third_up_to_max_length(max_length: int, lengths: tuple[int, ...]) -> None:
    assert bucket_lengths(max_length) == lengths


@given(max_lengths)
def test_lengths_ascend_and_end_with_max_length(max_length: int) -> None:
    lengths = bucket_lengths(max_length)

    assert all(shorter < longer for shorter, longer in pairwise(lengths))
    assert lengths[-1] == max_length


@given(max_lengths)
def test_lengths_are_few(max_length: int) -> None:
    assert len(bucket_lengths(max_length)) <= 1 + 2 * max(0.0, math.log2(max_length / MIN_LENGTH) + 1)


@given(st.data())
def test_length_for_is_the_shortest_bucket_that_holds_a_row(data: st.DataObject) -> None:
    some = data.draw(buckets())
    tokens = data.draw(st.integers(1, some.max_length))

    assert some.length_for(tokens) == min(length for length in some.lengths if length >= tokens)


@given(st.data())
def test_padding_is_less_than_a_third_of_a_row(data: st.DataObject) -> None:
    some = data.draw(buckets().filter(lambda some: some.max_length > MIN_LENGTH))
    tokens = data.draw(st.integers(MIN_LENGTH + 1, some.max_length))
    length = some.length_for(tokens)

    assert length - tokens < length / 3


@given(st.data())
def test_rows_for_is_the_largest_power_of_two_within_every_limit(data: st.DataObject) -> None:
    some = data.draw(buckets())
    length = data.draw(st.sampled_from(some.lengths))

    def is_within_bounds(rows: int) -> bool:
        return (
            rows * length <= some.budget.tokens
            and rows * length * some.vocab_size * 4 <= some.budget.logits_bytes
            and rows <= some.budget.rows
            and rows <= (some.limits.max_rows or rows)
        )

    rows = some.rows_for(length)
    assert rows.bit_count() == 1
    assert rows == 1 or is_within_bounds(rows)
    assert not is_within_bounds(2 * rows)


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_forced_row_count_ignores_the_budget(rows: int) -> None:
    limits = StepLimits(max_rows=2, rows=rows)
    some = Buckets(64, vocab_size=100, budget=StepBudget(tokens=128), limits=limits)

    assert {some.rows_for(length) for length in some.lengths} == {rows}


def test_there_is_one_shape_per_length() -> None:
    some = Buckets(64, vocab_size=100, budget=StepBudget(tokens=128))

    assert some.shapes == {(8, 16), (4, 24), (4, 32), (2, 48), (2, 64)}


@pytest.mark.parametrize("groups", [2, 3, 8])
@pytest.mark.parametrize("vocab_size", [0, 50_000])
def test_sharded_budget_gives_each_device_group_the_rows_of_one_device(groups: int, vocab_size: int) -> None:
    budget = StepBudget(tokens=1024)
    single, sharded = Buckets(256, vocab_size, budget), Buckets(256, vocab_size, budget.scaled(groups))
    for length in single.lengths:
        assert sharded.rows_for(length) == groups * single.rows_for(length)
        counts = sharded.row_counts(sharded.rows_for(length))
        assert counts == tuple(groups * count for count in single.row_counts(single.rows_for(length)))
    for count in range(1, 100):
        assert sharded.row_count_for(count) % groups == 0
        assert count <= sharded.row_count_for(count) < 2 * max(count, groups)


@pytest.mark.parametrize(("most", "rows"), [(1, 1), (3, 2), (7, 4), (8, 8), (20, 16)])
def test_max_rows_below_the_device_groups_is_respected(most: int, rows: int) -> None:
    buckets = Buckets(256, 0, StepBudget(tokens=1024).scaled(8), StepLimits(max_rows=most))
    assert buckets.rows_for(16) == rows
    assert max(buckets.row_counts(rows)) == rows
