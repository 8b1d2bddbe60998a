"""A Hugging Face tensor as a view of a stored array: part of it, with its axes in another order, merged or split.

A pattern says how, in the notation of einops: ``"d h k -> (h k) d"`` makes the query matrix [heads * width, d] of
transformers from a kernel [d, heads, width]. A number picks one index of an axis (``"1 k d h -> (k h) d"`` the values
of a fused kernel). ``(p i)`` splits an axis into pairs: ``"d h (p i) -> (h i p) d"`` orders the dimensions of heads
whose rotated pairs are neighbours as transformers does, with the first members of all pairs before the second ones.

A slice of the tensor is read without the rest as far as the blocks of the file allow.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from birdie_zmq.models.native.arrays import Selection, StoredArray
from birdie_zmq.models.tensor_source import Index

_GROUP = re.compile(r"\(([^)]*)\)|(\S+)")

Axis = int | tuple[str, ...]
"""An axis of a stored array: the index that is picked, its name, or the names of an axis of pairs."""


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern: the axes of the stored array, and the names that each axis of the tensor merges."""

    stored: tuple[Axis, ...]
    tensor: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Parse a pattern."""
        left, right = text.split("->")
        stored = tuple(int(each[0]) if each[0].isdigit() else each for each in _groups(left))
        return cls(stored, tuple(_groups(right)))

    def at_layer(self, axis: int, layer: int) -> Pattern:
        """Return the pattern of one layer of stacked arrays, whose layers are on an axis that this pattern lacks."""
        return Pattern((*self.stored[:axis], layer, *self.stored[axis:]), self.tensor)


def _groups(text: str) -> list[tuple[str, ...]]:
    return [tuple((found[1] or found[2]).split()) for found in _GROUP.finditer(text)]


@dataclass(frozen=True)
class ArrayView:
    """A tensor in a stored array.

    Attributes:
        array: The stored array.
        pattern: Where the tensor is in it.
        path: The path of the array in its tree, for error messages.
        offset: Added to all values.

    Raises:
        ValueError: The array has another number of axes than the pattern.
    """

    array: StoredArray
    pattern: Pattern
    path: str
    offset: float = 0.0

    def __post_init__(self) -> None:
        if len(self.array.shape) != len(self.pattern.stored):
            raise ValueError(
                f"the array {self.path} has the shape {self.array.shape}, and {len(self.pattern.stored)} axes are expected"
            )
        for axis, size in zip(self.pattern.stored, self.array.shape, strict=True):
            if isinstance(axis, int) and axis >= size:
                raise ValueError(f"the array {self.path} has the shape {self.array.shape}, without the index {axis}")
            if isinstance(axis, tuple) and len(axis) == 2 and size % 2:
                raise ValueError(f"the array {self.path} has the shape {self.array.shape}, with an odd number of pairs")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        sizes = self._sizes
        return tuple(math.prod(sizes[name] for name in group) for group in self.pattern.tensor)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values that are read."""
        return np.dtype(np.float32) if self.offset else self.array.dtype

    def read(self, index: Index | None = None) -> NDArray[Any]:
        """Read the tensor, or a slice of it with steps of 1."""
        sizes = self._sizes
        ranges = {name: (0, size) for name, size in sizes.items()}
        cuts = []
        for group, part, size in zip(
            self.pattern.tensor, index or (slice(None),) * len(self.shape), self.shape, strict=True
        ):
            start, stop, _ = part.indices(size)
            first, inner = group[0], math.prod(sizes[name] for name in group[1:])
            ranges[first] = (start // inner, -(-stop // inner))
            low = ranges[first][0] * inner
            cuts.append(slice(start - low, stop - low))
        values = self._ordered(ranges)[tuple(cuts)]
        return np.ascontiguousarray(values.astype(np.float32) + self.offset if self.offset else values)

    def _ordered(self, ranges: dict[str, tuple[int, int]]) -> NDArray[Any]:
        """Read the parts of the named axes that are in some ranges, in the order and with the axes of the tensor."""
        selection: list[int | slice] = []
        shape: list[int] = []
        names: list[str] = []
        within: list[slice] = []
        for axis in self.pattern.stored:
            if isinstance(axis, int):
                selection.append(axis)
                continue
            start, stop = ranges[axis[0]]
            factor = 2 if len(axis) == 2 else 1
            selection.append(slice(factor * start, factor * stop))
            names += axis
            shape += [stop - start, *(2 for _ in axis[1:])]
            within += [slice(None), *(slice(*ranges[name]) for name in axis[1:])]
        values = self.array.read(_selection(selection)).reshape(shape)[tuple(within)]
        order = [names.index(name) for group in self.pattern.tensor for name in group]
        values = values.transpose(order)
        widths = iter(values.shape)
        return values.reshape([math.prod(next(widths) for _ in group) for group in self.pattern.tensor])

    @property
    def _sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for axis, size in zip(self.pattern.stored, self.array.shape, strict=True):
            if isinstance(axis, tuple):
                sizes |= {axis[0]: size} if len(axis) == 1 else {axis[0]: size // 2, axis[1]: 2}
        return sizes


def _selection(parts: list[int | slice]) -> Selection:
    return tuple(parts)
