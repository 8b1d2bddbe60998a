"""The stored arrays of a trainer's checkpoint, by their paths in the tree of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

TreePath = tuple[str, ...]
"""The keys from the root of a tree to an array, such as ``("decoder", "layers", "mlp", "wi_0", "kernel")``."""

Selection = tuple[int | slice, ...]
"""One index or slice with a step of 1 for each axis of a stored array."""

_SAFETENSORS_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class StoredArray(Protocol):
    """An array on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype."""
        ...

    @property
    def chunk(self) -> tuple[int, ...]:
        """The shape of the blocks that can be read alone; ones where any slice can."""
        ...

    def read(self, selection: Selection) -> NDArray[Any]:
        """Read a part; axes selected by an index are dropped."""
        ...


ArrayTree = Mapping[TreePath, StoredArray]


class StackReader:
    """Reads the layers of one array, in which they may be stacked.

    Where a block of the file holds several layers, reading each layer by itself would decode all of them again. The
    block is then kept until `clear`, for each slice of the other axes that is read: a device's shard of all layers.
    """

    def __init__(self, array: StoredArray) -> None:
        self._array = array
        self._blocks: dict[tuple[tuple[int, int], ...], NDArray[Any]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the array."""
        return self._array.dtype

    @property
    def chunk(self) -> tuple[int, ...]:
        """The shape of the blocks that can be read alone."""
        return self._array.chunk

    def read(self, selection: Selection) -> NDArray[Any]:
        """Read a part; axes selected by an index are dropped."""
        picked = [axis for axis, each in enumerate(selection) if isinstance(each, int)]
        if all(self.chunk[axis] == 1 for axis in picked):
            return self._array.read(selection)
        whole = tuple(
            slice(0, size) if isinstance(each, int) else each for each, size in zip(selection, self.shape, strict=True)
        )
        key = tuple((each.start, each.stop) for each in whole)
        if key not in self._blocks:
            self._blocks[key] = self._array.read(whole)
        part: NDArray[Any] = self._blocks[key][
            tuple(each if isinstance(each, int) else slice(None) for each in selection)
        ]
        return part

    def clear(self) -> None:
        """Release the blocks."""
        self._blocks.clear()


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype in safetensors files, or its own name if it is not a floating dtype."""
    return _SAFETENSORS_NAMES.get(dtype.name, dtype.name)


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is one of the floating dtypes that are loaded."""
    return dtype.name in _SAFETENSORS_NAMES


def describe_top(paths: list[TreePath], limit: int = 12) -> str:
    """Return the upper two levels of a tree, for an error message."""
    tops = list(dict.fromkeys("/".join(path[:2]) for path in sorted(paths)))
    rest = len(tops) - limit
    return ", ".join(tops[:limit]) + (f" and {rest} more" if rest > 0 else "")
