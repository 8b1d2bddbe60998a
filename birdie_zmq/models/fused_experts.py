"""Experts that a file holds as one tensor, as a source of the separate tensors that weight maps name.

transformers merges the experts of a layer when it loads a model, and some published checkpoints have them merged already:
``experts.gate_up_proj`` [e, 2f, d] and ``experts.down_proj`` [e, d, f] in place of ``experts.0.gate_proj.weight`` [f, d] and
so on. Only the part of an expert that is needed is read.

Shape letters: e experts, f width of an expert, d width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from birdie_zmq.models.tensor_source import Index, TensorHeader, TensorReader, TensorSource

_GATE_UP, _DOWN = ".experts.gate_up_proj", ".experts.down_proj"


class _Part(NamedTuple):
    """A separate tensor: its name, and the rows [begin, end) of an expert that it is."""

    name: str
    expert: int
    begin: int
    end: int


class SeparateExperts:
    """A checkpoint whose merged experts are presented as separate tensors; all other tensors are as they are.

    Args:
        source: The checkpoint.
    """

    def __init__(self, source: TensorSource) -> None:
        self.location = source.location
        self._source = source
        self._parts = {name: list(_parts(name, header)) for name, header in source.headers.items() if is_fused(name)}
        self._headers: dict[str, TensorHeader] = {}
        for name, header in source.headers.items():
            if name not in self._parts:
                self._headers[name] = header
            for part in self._parts.get(name, ()):
                self._headers[part.name] = header._replace(shape=(part.end - part.begin, *header.shape[2:]))

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """The header of each tensor, by name."""
        return self._headers

    def read(self) -> Iterator[tuple[str, TensorReader]]:
        """Yield each tensor's name and its reader; call the reader before the next iteration."""
        for name, read_tensor in self._source.read():
            if name not in self._parts:
                yield name, read_tensor
            for part in self._parts.get(name, ()):
                yield part.name, _reader(read_tensor, part)

    def equal(self, first: str, second: str) -> bool:
        """Return whether two tensors outside of the experts have the same shape and values."""
        return self._source.equal(first, second)


def is_fused(name: str) -> bool:
    """Return whether a tensor of this name holds the experts of a layer."""
    return name.endswith((_GATE_UP, _DOWN))


def _parts(name: str, header: TensorHeader) -> Iterator[_Part]:
    if len(header.shape) != 3:
        raise ValueError(f"the tensor {name} has the shape {header.shape}, not one axis of experts and two of a matrix")
    experts, rows, _ = header.shape
    prefix, _, kind = name.rpartition(".")
    names = ("down_proj",) if kind == "down_proj" else ("gate_proj", "up_proj")
    size = rows // len(names)
    for expert in range(experts):
        for number, matrix in enumerate(names):
            yield _Part(f"{prefix}.{expert}.{matrix}.weight", expert, number * size, (number + 1) * size)


def _reader(read_tensor: TensorReader, part: _Part) -> TensorReader:
    def read_part(index: Index | None = None) -> NDArray[Any]:
        rows, columns = index or (slice(None), slice(None))
        begin, end, _ = rows.indices(part.end - part.begin)
        whole = (slice(part.expert, part.expert + 1), slice(part.begin + begin, part.begin + end), columns)
        values: NDArray[Any] = read_tensor(whole)[0]
        return values

    return read_part
