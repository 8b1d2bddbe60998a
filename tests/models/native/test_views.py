"""Views of stored arrays: patterns, slices that read no more than they need, and layers that are decoded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.models.native.arrays import Selection, StackReader
from birdie_zmq.models.native.views import ArrayView, Pattern


class InMemoryArray:
    """An array in memory that counts the values that are read."""

    def __init__(self, values: NDArray[Any], chunk: tuple[int, ...] = ()) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.chunk = chunk or (1,) * values.ndim
        self.read_sizes: list[int] = []

    def read(self, selection: Selection) -> NDArray[Any]:
        part: NDArray[Any] = self.values[selection]
        self.read_sizes.append(part.size)
        return part


def view(array: InMemoryArray, pattern: str, offset: float = 0.0) -> ArrayView:
    return ArrayView(array, Pattern.parse(pattern), "the/array", offset)


VALUES = np.arange(2 * 4 * 3 * 6, dtype=np.float32).reshape(2, 4, 3, 6)


def test_a_pattern_orders_merges_and_picks_axes() -> None:
    found = view(InMemoryArray(VALUES), "1 d h k -> (h k) d")
    assert found.shape == (18, 4)
    np.testing.assert_array_equal(found.read(), VALUES[1].reshape(4, 18).T)


def test_pairs_become_halves() -> None:
    kernel = VALUES[0]
    found = view(InMemoryArray(kernel), "d h (p i) -> (h i p) d").read()
    halves = np.concatenate([kernel[..., ::2], kernel[..., 1::2]], axis=-1)
    np.testing.assert_array_equal(found, halves.reshape(4, 18).T)


@pytest.mark.parametrize("pattern", ["d h k -> (h k) d", "d h (p i) -> (h i p) d", "d h k -> d (h k)"])
@pytest.mark.parametrize("rows", [slice(None), slice(1, 3), slice(2, 4), slice(0, 1)])
@pytest.mark.parametrize("columns", [slice(None), slice(0, 2), slice(1, 4)])
def test_a_slice_is_that_of_the_whole_tensor(pattern: str, rows: slice, columns: slice) -> None:
    found = view(InMemoryArray(VALUES[0]), pattern)
    np.testing.assert_array_equal(found.read((rows, columns)), found.read()[rows, columns])


def test_a_slice_of_whole_heads_reads_these_heads() -> None:
    stored = InMemoryArray(VALUES[0])
    view(stored, "d h k -> (h k) d").read((slice(6, 12), slice(0, 2)))
    assert stored.read_sizes == [2 * 1 * 6]


def test_an_offset_is_added_in_float32() -> None:
    stored = InMemoryArray(np.array([1, 2], np.float16))
    found = view(stored, "d -> d", offset=-1.0)
    assert found.dtype == found.read().dtype == np.float32
    np.testing.assert_array_equal(found.read(), [0, 1])


def test_layers_of_one_block_are_decoded_once() -> None:
    stored = InMemoryArray(VALUES, chunk=VALUES.shape)
    stack = StackReader(stored)
    for layer in range(2):
        pattern = Pattern.parse("h k d -> (h k) d").at_layer(0, layer)
        part = ArrayView(stack, pattern, "the/array").read((slice(0, 6), slice(0, 6)))
        np.testing.assert_array_equal(part, VALUES[layer, :2].reshape(6, 6))
    assert stored.read_sizes == [2 * 2 * 3 * 6]
    stack.clear()
    ArrayView(stack, Pattern.parse("h k d -> (h k) d").at_layer(0, 1), "the/array").read()
    assert stored.read_sizes[1:] == [VALUES.size]


def test_layers_of_blocks_of_their_own_are_read_alone() -> None:
    stored = InMemoryArray(VALUES, chunk=(1, 4, 3, 6))
    ArrayView(StackReader(stored), Pattern.parse("h k d -> (h k) d").at_layer(0, 1), "the/array").read()
    assert stored.read_sizes == [VALUES[1].size]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("d k -> d k", r"the array the/array has the shape \(4, 3, 6\), and 2 axes are expected"),
        ("5 h k -> h k", "without the index 5"),
        ("h (p i) k -> h i p k", "odd number of pairs"),
    ],
)
def test_an_array_of_another_shape_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        view(InMemoryArray(VALUES[0]), pattern)
