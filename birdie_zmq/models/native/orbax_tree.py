"""The arrays of a checkpoint of Orbax, Levanter or EasyDeL, read by tensorstore.

Orbax's ``_METADATA`` lists the paths of a tree, and each array lies in a store of its own. An array is opened when it is
first needed, so an optimiser's state is never read, and a part of an array is read without the rest. A block that is
missing is an error: tensorstore would give zeros for it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from birdie_zmq.errors import IncompleteCheckpoint, UsageError
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.native.arrays import ArrayTree, Selection, TreePath
from birdie_zmq.models.native.directory import EASYDEL_INDEX, OCDBT_MANIFEST, TREE_METADATA

_NNX_VALUE = "value"
"""The last key of each variable of an NNX ``State``."""

_ZARR3_METADATA = "/zarr.json"
_WITHOUT_VALUES = ("None", "Dict", "List", "Tuple", "NamedTuple", "string")
"""The values of ``value_type`` of nodes that hold no array."""


class TensorStoreArray:
    """An array that tensorstore reads, opened when it is first needed.

    Args:
        spec: The spec of tensorstore.
        name: Its name, for error messages.

    Raises:
        IncompleteCheckpoint: From each method and property: a file is missing or damaged.
    """

    def __init__(self, spec: Mapping[str, Any], name: str) -> None:
        self._spec, self._name = spec, name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self._store.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its dtype."""
        dtype: np.dtype[Any] = self._store.dtype.numpy_dtype
        return dtype

    @property
    def chunk(self) -> tuple[int, ...]:
        """The shape of the blocks of the file."""
        return tuple(self._store.chunk_layout.read_chunk.shape)

    def read(self, selection: Selection) -> NDArray[Any]:
        """Read a part; axes selected by an index are dropped."""
        try:
            values = self._store[selection].read().result() if selection else self._store.read().result()
        except ValueError as error:
            raise self._incomplete(error) from error
        return np.asarray(values)

    @functools.cached_property
    def _store(self) -> Any:
        import tensorstore

        try:
            return tensorstore.open(dict(self._spec), open=True, read=True).result()
        except ValueError as error:
            raise self._incomplete(error) from error

    def _incomplete(self, error: ValueError) -> IncompleteCheckpoint:
        return IncompleteCheckpoint(
            f"the array {self._name} cannot be read, so the checkpoint is incomplete or damaged: {error}"
        )


def read_orbax_tree(root: Path) -> ArrayTree:
    """Return the arrays of an Orbax item, by their paths; those of an NNX ``State`` without the last key ``value``.

    Raises:
        UsageError: tensorstore is not installed.
        ValueError: The list of paths is damaged, or a path leaves the directory.
    """
    check_tensorstore(root, "an Orbax checkpoint")
    stored = read_json_object(root / TREE_METADATA)
    tree: dict[TreePath, TensorStoreArray] = {}
    try:
        for leaf in stored["tree_metadata"].values():
            keys = [str(key["key"]) for key in leaf["key_metadata"]]
            if leaf["value_metadata"].get("value_type") in _WITHOUT_VALUES:
                continue
            name = ".".join(keys)
            _check_inside(root / TREE_METADATA, name)
            path = tuple(keys[:-1] if keys[-1] == _NNX_VALUE and len(keys) > 1 else keys)
            tree[path] = TensorStoreArray(_spec(root, name, stored), name)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{root / TREE_METADATA} does not list the arrays of an Orbax checkpoint: {error!r}"
        ) from error
    return tree


def read_levanter_tree(root: Path) -> ArrayTree:
    """Return the arrays of a checkpoint of Levanter: zarr arrays in one OCDBT store.

    Raises:
        UsageError: tensorstore is not installed.
        IncompleteCheckpoint: The store is damaged.
    """
    check_tensorstore(root, "a checkpoint of Levanter")
    import tensorstore

    store = {"driver": "ocdbt", "base": f"file://{root}/"}
    try:
        keys = [key.decode() for key in tensorstore.KvStore.open(store).result().list().result()]
    except ValueError as error:
        raise IncompleteCheckpoint(f"{root} cannot be read, so it is incomplete or damaged: {error}") from error
    names = [key.removesuffix(_ZARR3_METADATA) for key in keys if key.endswith(_ZARR3_METADATA)]
    return {
        tuple(name.split("/")): TensorStoreArray(
            {"driver": "zarr3", "kvstore": {**store, "path": f"{name}/"}, "fill_missing_data_reads": False}, name
        )
        for name in names
    }


def read_easydel_tree(root: Path) -> ArrayTree:
    """Return the arrays of a checkpoint of EasyDeL, which an index lists: zarr arrays in folders of their own.

    Raises:
        UsageError: tensorstore is not installed.
        ValueError: The index is damaged.
    """
    check_tensorstore(root, "a checkpoint of EasyDeL")
    tree: dict[TreePath, TensorStoreArray] = {}
    try:
        for entry in read_json_object(root / EASYDEL_INDEX)["prefixes"]["model"]:
            path = tuple(PurePosixPath(entry["path"]).parts)
            _check_inside(root / EASYDEL_INDEX, entry["path"])
            kvstore = {"driver": "file", "path": f"{root.joinpath(*path)}/"}
            spec = {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}
            tree[path] = TensorStoreArray(spec, entry["path"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{root / EASYDEL_INDEX} does not list the arrays of a checkpoint of EasyDeL: {error!r}"
        ) from error
    return tree


def check_tensorstore(root: Path, kind: str) -> None:
    """Check that tensorstore is installed; `kind` is what needs it, for the message.

    Raises:
        UsageError: It is not.
    """
    try:
        import tensorstore  # noqa: F401 - only looked for
    except ImportError as error:
        raise UsageError(
            f"{root} is {kind}, and the package tensorstore is not installed; run: pip install 'birdie-zmq[orbax]'"
        ) from error


def _check_inside(file: Path, name: str) -> None:
    """Check that a path that a file of the checkpoint names stays in its directory, whose files are the identity.

    Raises:
        ValueError: It leaves it.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{file} names the path {name}, which leaves its folder")


def _spec(root: Path, name: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensorstore's spec of an array.

    Early versions of Orbax store no block of zeros, so that a missing block may be meant as one. In OCDBT, whose index
    names every block, it then is.
    """
    indexed = (root / OCDBT_MANIFEST).is_file()
    if indexed:
        kvstore: dict[str, Any] = {"driver": "ocdbt", "base": f"file://{root}/", "path": f"{name}/"}
    else:
        kvstore = {"driver": "file", "path": f"{root / name}/"}
    return {
        "driver": "zarr3" if stored.get("use_zarr3") else "zarr",
        "kvstore": kvstore,
        "fill_missing_data_reads": indexed and not stored.get("store_array_data_equal_to_fill_value"),
    }
