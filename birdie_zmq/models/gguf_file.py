"""Read a GGUF file of llama.cpp: config, tokenizer, and weights, which may be quantised.

llama.cpp's own package ``gguf`` implements every quantisation and the names of tensors. What differs between the
architectures is in `gguf_architectures`, the tokenizers in `gguf_tokenizer`. Weights are dequantised to float32 one tensor
at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from birdie_zmq.errors import TokenizerError, UsageError
from birdie_zmq.models.gguf_architectures import find_architecture
from birdie_zmq.models.gguf_layouts import HeadCounts, TensorLayout, find_layout
from birdie_zmq.models.gguf_metadata import GgufMetadata
from birdie_zmq.models.gguf_parts import gguf_parts
from birdie_zmq.models.gguf_rope import FACTOR_TENSORS
from birdie_zmq.models.gguf_tokenizer import build_tokenizer
from birdie_zmq.models.tensor_source import Index, TensorHeader, TensorReader
from birdie_zmq.models.tokenizer import CheckpointTokenizer
from birdie_zmq.models.weight_map import WeightMap

_MEMBER = re.compile(r"(?P<module>.+?)(?:\.norms)?\.(?P<number>\d+)\.weight")
"""The Hugging Face name of one of several tensors that llama.cpp's converter stacks."""


class GgufFile:
    """An open GGUF file, or all parts of a split one, whose first part is named.

    Raises:
        UsageError: The package ``gguf`` is not installed.
        FileNotFoundError: A part is missing.
        ValueError: A file is not a complete GGUF file, or it is a part other than the first.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise UsageError(
                f"{path} is a GGUF file, and the package gguf is not installed; run: pip install 'birdie-zmq[gguf]'"
            ) from error
        self._gguf = gguf
        self.path = path
        parts = gguf_parts(path)
        readers = [self._open(part) for part in parts]
        for number, (part, reader) in enumerate(zip(parts, readers, strict=True)):
            no, count = (_read_key(reader, f"split.{key}") for key in ("no", "count"))
            no, count = int(no or 0), int(1 if count is None else count)
            if (no, max(count, 1)) != (number, len(parts)):
                raise ValueError(
                    f"{part} says that it is part {no + 1} of {count} of a split GGUF model, and its name does not; rename "
                    f"the parts to NAME-00001-of-{count:05}.gguf and so on, and name the first"
                )
        self._tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        self._metadata = GgufMetadata(
            path,
            lambda key: _read_key(readers[0], key),
            tuple(readers[0].fields),
            {name: _shape(tensor) for name, tensor in self._tensors.items()},
            lambda name: _dequantise(gguf, self._tensors[name]),
        )

    def _open(self, path: Path) -> Any:
        try:
            return self._gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{path} is not a complete GGUF file: {error}") from error

    def config(self) -> dict[str, Any]:
        """Return the keys of the Hugging Face ``config.json`` of the same model.

        Raises:
            ValueError: The architecture is not supported, or a key is missing.
        """
        return find_architecture(self._metadata).read_config(self._metadata)

    def tokenizer(self, fingerprint: str | Callable[[], str] | None = None) -> CheckpointTokenizer:
        """Read the tokenizer in the file.

        Raises:
            TokenizerError: Its type is not supported, or it is incomplete.
        """
        try:
            return build_tokenizer(self._metadata, fingerprint)
        except ValueError as error:
            raise TokenizerError(str(error)) from error

    def source(self, weight_map: WeightMap) -> GgufSource:
        """Return the weights, under the names of a weight map.

        Raises:
            ValueError: The file has a tensor that the model does not use.
        """
        architecture = find_architecture(self._metadata)
        names = self._gguf.get_tensor_name_map(self._model_arch(), weight_map.n_layers)
        tensors: dict[str, _StoredTensor] = {}
        # Tensors that checkpoints may have without a use, such as the keys of layers that use those of another.
        unused = (f"model{ending}" for ending in weight_map.redundant if ending.startswith(".layers."))
        used = {*FACTOR_TENSORS, *(_stored_name(names, name)[0] for name in unused)}
        for name, _ in weight_map.tensors():
            stored, member = _stored_name(names, name)
            if stored in self._tensors:
                used.add(stored)
                layout = find_layout(architecture.layouts, name)
                tensors[name] = _StoredTensor(self._tensors[stored], layout, member)
        unknown = [name for name in self._tensors if name not in used]
        if unknown:
            raise ValueError(f"{self.path} has the tensor {unknown[0]}, which this architecture does not use")
        return GgufSource(self.path, self._gguf, tensors, self._heads() if architecture.layouts else HeadCounts(1, 1))

    def _heads(self) -> HeadCounts:
        heads = self._metadata.integer("attention.head_count")
        return HeadCounts(heads, self._metadata.integer("attention.head_count_kv", heads))

    def _model_arch(self) -> Any:
        names = self._gguf.MODEL_ARCH_NAMES
        return next(arch for arch, name in names.items() if name == self._metadata.architecture)


class _StoredTensor(NamedTuple):
    """A tensor of the reader, how it was changed, and its part that is meant; None for all of it."""

    tensor: Any
    layout: TensorLayout | None
    member: int | None


class GgufSource:
    """The tensors of a GGUF file, dequantised to float32, under Hugging Face's names.

    Args:
        path: The file, for error messages.
        package: The module ``gguf``.
        tensors: The tensors, by Hugging Face's names.
        heads: The numbers of heads, by which rows are reordered.
    """

    def __init__(self, path: Path, package: Any, tensors: Mapping[str, _StoredTensor], heads: HeadCounts) -> None:
        self.location = str(path)
        self._package = package
        self._tensors = tensors
        self._heads = heads
        self.headers = {name: _header(stored) for name, stored in tensors.items()}

    def read(self) -> Iterator[tuple[str, TensorReader]]:
        """Yield each tensor in float32. A slice is taken from the whole tensor, because numbers are quantised in blocks."""
        for name in self._tensors:
            cache: list[NDArray[np.float32]] = []

            def read_tensor(
                index: Index | None = None, name: str = name, cache: list[NDArray[np.float32]] = cache
            ) -> NDArray[Any]:
                if not cache:
                    cache.append(self._read(name))
                return cache[0] if index is None else cache[0][index]

            yield name, read_tensor

    def equal(self, first: str, second: str) -> bool:
        """Return whether two tensors have the same shape and values."""
        return np.array_equal(self._read(first), self._read(second))

    def _read(self, name: str) -> NDArray[np.float32]:
        stored = self._tensors[name]
        values = _dequantise(self._package, stored.tensor)
        if stored.member is not None:
            values = values[stored.member]
        if stored.layout is not None:
            values = stored.layout.restore(values, self._heads)
        return np.ascontiguousarray(values)


def _stored_name(names: Any, name: str) -> tuple[str, int | None]:
    """Return llama.cpp's name of a tensor, and its part that the Hugging Face name means; an empty name for none."""
    suffixes = (".weight", ".bias")
    found = names.get_name(name, suffixes) or names.get_name(name.removeprefix("transformer."), suffixes)
    member = _MEMBER.fullmatch(name)
    if found is None and member is not None and (stacked := names.get_name(member["module"])) is not None:
        return f"{stacked}.weight", int(member["number"])
    if found is not None and not found.endswith(suffixes):
        found += ".weight"  # a parameter without a module
    return found or "", None


def _header(stored: _StoredTensor) -> TensorHeader:
    shape = _shape(stored.tensor)
    if stored.member is not None:
        shape = shape[1:]
    if stored.layout is not None and stored.layout.transposed:
        shape = shape[::-1]
    return TensorHeader(shape, stored.tensor.tensor_type.name, True)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _dequantise(package: Any, tensor: Any) -> NDArray[np.float32]:
    values = package.quants.dequantize(tensor.data, tensor.tensor_type)
    return np.asarray(values, np.float32).reshape(_shape(tensor))


def _read_key(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
