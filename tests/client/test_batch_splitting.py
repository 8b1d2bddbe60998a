"""Batches are split into parts of about the same cost, and items with the same context stay together."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.client.batch_splitting import split_batch
from birdie_zmq.types import LogLikelihoodWork, RollingWork


def test_parts_are_balanced_by_characters() -> None:
    work = RollingWork(texts=["x" * length for length in range(400, 144, -1)])

    first, second = split_batch(work, 2)

    sizes = [sum(len(work.texts[i]) for i in part) for part in (first, second)]
    assert len(first) < len(second)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_pairs_with_the_same_context_stay_together() -> None:
    work = LogLikelihoodWork(pairs=[(f"question {i // 4}", f"answer {i}") for i in range(252)])

    for before, after in pairwise(split_batch(work, 5)):
        assert work.pairs[before[-1]][0] != work.pairs[after[0]][0]


def test_few_long_texts_are_split_and_few_short_ones_are_not() -> None:
    assert split_batch(RollingWork(texts=["x" * 50_000] * 4), 2) == [[0, 1], [2, 3]]
    assert split_batch(RollingWork(texts=["x" * 500] * 4), 2) == [[0, 1, 2, 3]]


def test_a_very_long_text_is_a_part_by_itself() -> None:
    assert [len(part) for part in split_batch(RollingWork(texts=["x" * 100_000, *["x"] * 63]), 2)] == [1, 63]


@given(st.lists(st.integers(0, 2_000), min_size=1, max_size=300), st.integers(1, 12))
def test_every_item_is_in_one_part_in_order(lengths: list[int], count: int) -> None:
    parts = split_batch(RollingWork(texts=["x" * length for length in lengths]), count)

    assert [i for part in parts for i in part] == list(range(len(lengths)))
    assert 1 <= len(parts) <= count
    assert all(parts)
