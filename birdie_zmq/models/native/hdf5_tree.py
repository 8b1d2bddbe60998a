"""The arrays of Keras's weights, read by h5py from HDF5 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from birdie_zmq.errors import IncompleteCheckpoint, UsageError
from birdie_zmq.models.native.arrays import ArrayTree, Selection, TreePath
from birdie_zmq.models.native.hdf5_header import missing_part_of_hdf5
from birdie_zmq.models.native.keras_files import KERAS_INDEX, keras_files

_DAMAGE = (OSError, KeyError, RuntimeError)
"""What h5py raises for a file that is gone or damaged."""


class H5Array:
    """A data set of an HDF5 file, which is opened for each read, so no file stays open.

    Args:
        path: The file.
        name: The name of the data set.
        shape: Its shape.
        dtype: The dtype of its values.

    Raises:
        IncompleteCheckpoint: From `read`: the file is gone, or is not the one that it was.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype, self.chunk = shape, dtype, (1,) * len(shape)
        self._path, self._name = path, name

    def read(self, selection: Selection) -> NDArray[Any]:
        """Read a part; axes selected by an index are dropped."""
        import h5py

        try:
            with h5py.File(self._path, "r") as file:
                values = np.asarray(file[self._name][selection])
        except _DAMAGE as error:
            raise IncompleteCheckpoint(f"the array {self._name} cannot be read from {self._path}: {error}") from error
        # HDF5 has no bfloat16: Keras stores its bytes, without a type.
        return values.view(self.dtype) if values.dtype.kind == "V" else values


def read_hdf5_tree(root: Path) -> ArrayTree:
    """Return the data sets of Keras's weights, by their paths.

    Args:
        root: A ``.weights.h5`` file, or a directory.

    Raises:
        UsageError: h5py is not installed.
        IncompleteCheckpoint: A file is damaged, or not complete.
        ValueError: A data set lies in another file.
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError(
            f"{root} has weights of Keras, and the package h5py is not installed; run: pip install 'birdie-zmq[keras]'"
        ) from error
    tree: dict[TreePath, H5Array] = {}
    for path in keras_files(root):
        if path.name.endswith(KERAS_INDEX):
            continue
        missing = missing_part_of_hdf5(path)
        if missing is not None:
            raise IncompleteCheckpoint(f"{path} is an incomplete HDF5 file: it lacks {missing}")
        try:
            with h5py.File(path, "r") as file:

                def add(name: str, node: Any, path: Path = path) -> None:
                    if isinstance(node, h5py.Dataset):
                        tree[tuple(name.split("/"))] = _array(path, name, node)

                file.visititems(add)
        except _DAMAGE as error:
            raise IncompleteCheckpoint(f"{path} is an incomplete or damaged HDF5 file: {error}") from error
    return tree


def _array(path: Path, name: str, node: Any) -> H5Array:
    """Return a data set that is stored in its file.

    Raises:
        IncompleteCheckpoint: Its values are not there; HDF5 would give zeros for them.
        ValueError: It takes its values from other files, whose content is no part of the checkpoint.
    """
    if node.is_virtual or node.external:
        raise ValueError(f"{path}: the values of the array {name} are in another file, which is not read")
    if node.compression is None and node.id.get_storage_size() < node.nbytes:
        raise IncompleteCheckpoint(f"{path} is an incomplete HDF5 file: the array {name} has no values")
    is_bfloat16 = node.attrs.get("dtype") == "bfloat16" and node.dtype.itemsize == 2
    return H5Array(path, name, tuple(node.shape), np.dtype(ml_dtypes.bfloat16 if is_bfloat16 else node.dtype))
