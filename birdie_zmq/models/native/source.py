"""The tensors of a trainer's checkpoint under Hugging Face's names, for the families' own weight code."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.native.arrays import ArrayTree, StackReader, TreePath, dtype_name, is_floating
from birdie_zmq.models.native.views import ArrayView
from birdie_zmq.models.tensor_source import Index, TensorHeader, TensorReader


def unchanged(architecture: Architecture) -> Architecture:
    """Return an architecture as it is."""
    return architecture


@dataclass(frozen=True)
class NativeModel:
    """A model as a trainer stores it.

    Attributes:
        config: The keys of the Hugging Face ``config.json`` of the same model.
        views: The tensors, by Hugging Face's names.
        adapt: Changes the architecture of the family where the trainer computes the same with other weights, such as
            norms whose weight is not stored minus one.
        outside: Paths in the tree of what is not part of the text decoder and has no view, such as a vision tower.
    """

    config: Mapping[str, Any]
    views: Mapping[str, ArrayView]
    adapt: Callable[[Architecture], Architecture] = unchanged
    outside: tuple[TreePath, ...] = ()


class NativeSource:
    """The tensors of a trainer's checkpoint, as a `birdie_zmq.models.tensor_source.TensorSource`.

    Args:
        location: The path that error messages name.
        tree: The stored parameters.
        views: The tensors, by Hugging Face's names.
        outside: Paths of arrays that no tensor needs.

    Raises:
        ValueError: An array belongs to no tensor.
    """

    def __init__(
        self,
        location: str,
        tree: ArrayTree,
        views: Mapping[str, ArrayView],
        outside: Collection[TreePath] = (),
    ) -> None:
        self.location = location
        self._views = views
        used = {view.path for view in views.values()}
        extra = {"/".join(path): array for path, array in tree.items() if "/".join(path) not in used}
        ignored = tuple("/".join(path) for path in outside)
        for name in extra:
            if not name.startswith(tuple(f"{each}/" for each in ignored)) and name not in ignored:
                raise ValueError(f"{location} has the array {name}, which this architecture does not use")
        self.headers = {
            name: TensorHeader(view.shape, dtype_name(view.dtype), is_floating(view.dtype))
            for name, view in views.items()
        } | {name: TensorHeader(array.shape, dtype_name(array.dtype), True) for name, array in extra.items()}

    def read(self) -> Iterator[tuple[str, TensorReader]]:
        """Yield each tensor, array by array: one stored array may hold the tensors of all layers."""
        by_array: dict[str, list[str]] = {}
        for name, view in self._views.items():
            by_array.setdefault(view.path, []).append(name)
        for names in by_array.values():
            stack = StackReader(self._views[names[0]].array)
            for name in names:
                view = self._views[name]
                cached = ArrayView(stack, view.pattern, view.path, view.offset)

                def read_tensor(index: Index | None = None, cached: ArrayView = cached) -> NDArray[Any]:
                    return cached.read(index)

                yield name, read_tensor
            stack.clear()

    def equal(self, first: str, second: str) -> bool:
        """Return whether two tensors have the same shape and values."""
        return np.array_equal(self._views[first].read(), self._views[second].read())
