"""The tensors of a checkpoint as they are stored: their names, their headers, and readers of their values.

Nothing here imports a framework, so that every engine reads the same files. Nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes  # safetensors reads bfloat16 with it
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
"""The floating-point dtypes of safetensors that are read."""

_FLOATS8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu}
"""The 8-bit floating-point dtypes, which only quantised weights have."""

_ROWS_COMPARED = 4096


class TensorHeader(NamedTuple):
    """The header of a stored tensor, known before it is read; `floating` says whether its values are floating-point."""

    shape: tuple[int, ...]
    dtype: str
    floating: bool


Index = tuple[slice, ...]


class TensorReader(Protocol):
    """A function that reads a tensor, or a slice of it."""

    def __call__(self, index: Index | None = None) -> NDArray[Any]:
        """Read the slice at an index; by default the whole tensor."""
        ...


class TensorSource(Protocol):
    """The tensors of a checkpoint, under Hugging Face's names; `location` is its path, for error messages."""

    location: str

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """The header of each tensor, by name."""
        ...

    def read(self) -> Iterator[tuple[str, TensorReader]]:
        """Yield each tensor's name and its reader, in file order; call the reader before the next iteration."""
        ...

    def equal(self, first: str, second: str) -> bool:
        """Return whether two tensors have the same shape and the same values."""
        ...


class SafetensorsFiles:
    """One or several safetensors files, read as one set of tensors.

    Args:
        location: The path that error messages name.
        paths: The files.

    Raises:
        ValueError: A file is damaged, or a tensor is in two of them.
    """

    def __init__(self, location: str, paths: list[Path]) -> None:
        self.location = location
        self.paths = paths
        self.headers: dict[str, TensorHeader] = {}
        self._path_of: dict[str, Path] = {}
        for path in paths:
            with _open_file(path) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name in self.headers:
                        raise ValueError(f"the tensor {name} is in {path} and in another file of {location}")
                    tensor = file.get_slice(name)
                    dtype = tensor.get_dtype()
                    self.headers[name] = TensorHeader(tuple(tensor.get_shape()), dtype, dtype in FLOATS)
                    self._path_of[name] = path

    def read(self) -> Iterator[tuple[str, TensorReader]]:
        """Yield each tensor, file by file; a slice of a tensor is read without the rest."""
        for path in self.paths:
            with _open_file(path) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict

                    def read_tensor(index: Index | None = None, name: str = name, file: Any = file) -> NDArray[Any]:
                        values: NDArray[Any] = file.get_tensor(name) if index is None else file.get_slice(name)[index]
                        return values

                    yield name, read_tensor

    def load(self, name: str) -> NDArray[Any]:
        """Read one tensor, of any dtype."""
        path, header = self._path_of[name], self.headers[name]
        if header.dtype not in _FLOATS8:
            with _open_file(path) as file:
                values: NDArray[Any] = file.get_tensor(name)
            return values
        # safetensors itself has no dtype of NumPy for these. It has checked the header.
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            begin, end = json.loads(raw.read(length))[name]["data_offsets"]
            raw.seek(8 + length + begin)
            return np.frombuffer(raw.read(end - begin), _FLOATS8[header.dtype]).reshape(header.shape)

    def equal(self, first: str, second: str) -> bool:
        """Return whether two tensors have the same shape and values; a few thousand rows are in memory at a time."""
        if self.headers[first].shape != self.headers[second].shape:
            return False
        with _open_file(self._path_of[first]) as one, _open_file(self._path_of[second]) as other:
            slices = one.get_slice(first), other.get_slice(second)
            rows = self.headers[first].shape[0]
            parts = (slice(at, min(at + _ROWS_COMPARED, rows)) for at in range(0, rows, _ROWS_COMPARED))
            return all(np.array_equal(slices[0][part], slices[1][part]) for part in parts)


class SafetensorsDirectory(SafetensorsFiles):
    """The weights of a directory, in the files that transformers chooses.

    These are the file that the config names under ``transformers_weights``, else ``model.safetensors``, else the shards
    that ``model.safetensors.index.json`` names. So an index that an earlier, sharded save left behind is not read.

    Args:
        directory: The directory.
        named: The value of ``transformers_weights`` in its config, if it has one.

    Raises:
        FileNotFoundError: One of these files does not exist.
        ValueError: One of them is damaged, or a tensor is in two of them.
    """

    def __init__(self, directory: Path, named: object = None) -> None:
        super().__init__(str(directory), weight_files(directory, named))


def has_weights(directory: Path) -> bool:
    """Return whether a directory holds a file from which `SafetensorsDirectory` would begin."""
    return any((directory / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE))


def weight_files(directory: Path, named: object = None) -> list[Path]:
    """Return the safetensors files of a directory, as for `SafetensorsDirectory`.

    Raises:
        FileNotFoundError: One of them does not exist.
        ValueError: The index is damaged, or names a file outside of the directory.
    """
    index = directory / INDEX_FILE
    if named is not None:
        path = directory / _plain_name(named, "transformers_weights in the config")
        if not path.name.endswith((".safetensors", ".safetensors.index.json")):
            raise ValueError(
                f"transformers_weights in the config of {directory} names {named!r}, which is no safetensors file"
            )
        paths = _shards(path) if path.suffix == ".json" else [path]
    elif not (directory / WEIGHTS_FILE).is_file() and index.is_file():
        paths = _shards(index)
    else:
        paths = [directory / WEIGHTS_FILE]
    for path in paths:
        if not path.is_file():
            pickled = sorted(found.name for found in directory.glob("*.bin"))
            reason = (
                f"; {pickled[0]} is a pickle, which can run arbitrary code and is not read: save the model with "
                "transformers' save_pretrained, which writes safetensors"
                if pickled
                else ""
            )
            raise FileNotFoundError(f"there is no {path.name} in {directory}{reason}")
    return paths


def _shards(index: Path) -> list[Path]:
    if not index.is_file():
        raise FileNotFoundError(f"there is no {index.name} in {index.parent}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not an index of safetensors files: {error!r}") from error
    return [index.parent / _plain_name(name, str(index)) for name in names]


def _plain_name(name: object, where: str) -> str:
    """Check that an untrusted file names no file outside of its directory."""
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"{where} names {name!r}, which is not a plain file name")
    return name


def _open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
