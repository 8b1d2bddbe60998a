"""Covers of a count by chunks."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.planning.chunks import chunk_sizes, optimal_chunks


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
