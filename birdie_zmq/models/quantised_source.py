"""Weights in fewer bits as a source of plain tensors: each is dequantised when it is read, one at a time.

Which formats are read is what `read_scheme` accepts. Activations stay in the dtype of the model, whatever the
configuration says of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from birdie_zmq.models.config_fields import ConfigReader, UnsupportedValueError
from birdie_zmq.models.dequantisation import dequantise_awq, dequantise_fp8, dequantise_gptq, dequantise_mxfp4
from birdie_zmq.models.tensor_source import Index, SafetensorsFiles, TensorHeader, TensorReader

METHODS = ("awq", "fp8", "gptq", "mxfp4")
"""The supported values of ``quant_method``."""

Parts = dict[str, NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


class Scheme(Protocol):
    """How a quantised weight is stored.

    Attributes:
        main: What the name of the weight's largest tensor ends with.
        others: What the names of its other tensors end with, in place of `main`; those of `optional` may be missing.
        plain: What the name of the weight would end with, in place of `main`.
    """

    main: ClassVar[str]
    others: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]]
    plain: ClassVar[str]

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of the weight, from those of its tensors."""
        ...

    def dequantise(self, parts: Parts) -> NDArray[Any]:
        """Return the weight, from its tensors."""
        ...


@dataclass(frozen=True)
class Fp8:
    """Float8 values with a scale for the tensor, or for each block of it."""

    block: tuple[int, int] | None
    main: ClassVar[str] = ".weight"
    others: ClassVar[tuple[str, ...]] = (".weight_scale_inv", ".weight_scale")
    optional: ClassVar[tuple[str, ...]] = others
    plain: ClassVar[str] = ".weight"

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of the weight."""
        return shapes[self.main]

    def dequantise(self, parts: Parts) -> NDArray[Any]:
        """Return the weight."""
        scale = next(parts[name] for name in self.others if name in parts)
        return dequantise_fp8(parts[self.main], scale, self.block if scale.ndim == 2 else None)


@dataclass(frozen=True)
class Mxfp4:
    """The experts of GPT-OSS: blocks of 4-bit values that share an exponent."""

    main: ClassVar[str] = "_blocks"
    others: ClassVar[tuple[str, ...]] = ("_scales",)
    optional: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[str] = ""

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of the weight."""
        experts, outputs, groups, half = shapes[self.main]
        return experts, groups * half * 2, outputs

    def dequantise(self, parts: Parts) -> NDArray[Any]:
        """Return the weight."""
        return dequantise_mxfp4(parts[self.main], parts["_scales"])


@dataclass(frozen=True)
class Gptq:
    """GPTQ with 4 or 8 bits."""

    bits: int
    group: int
    zero_offset: int
    main: ClassVar[str] = ".qweight"
    others: ClassVar[tuple[str, ...]] = (".qzeros", ".scales", ".g_idx")
    optional: ClassVar[tuple[str, ...]] = (".g_idx",)
    plain: ClassVar[str] = ".weight"

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of the weight."""
        rows, outputs = shapes[self.main]
        return outputs, rows * 32 // self.bits

    def dequantise(self, parts: Parts) -> NDArray[Any]:
        """Return the weight."""
        inputs = len(parts[".qweight"]) * 32 // self.bits
        if ".g_idx" not in parts:
            parts[".g_idx"] = np.arange(inputs) // (self.group if self.group > 0 else inputs)
        named = {name.removeprefix("."): part for name, part in parts.items()}
        return dequantise_gptq(named, self.bits, zero_offset=self.zero_offset)


@dataclass(frozen=True)
class Awq:
    """AWQ with 4 bits, in the packing of its matrix kernels (GEMM)."""

    group: int
    main: ClassVar[str] = ".qweight"
    others: ClassVar[tuple[str, ...]] = (".qzeros", ".scales")
    optional: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[str] = ".weight"

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of the weight."""
        inputs, columns = shapes[self.main]
        return columns * 8, inputs

    def dequantise(self, parts: Parts) -> NDArray[Any]:
        """Return the weight."""
        inputs = len(parts[".qweight"])
        named = {name.removeprefix("."): part for name, part in parts.items()}
        return dequantise_awq(named, self.group if self.group > 0 else inputs)


def read_scheme(quantisation: Mapping[str, Any]) -> Scheme:
    """Read the ``quantization_config`` of a checkpoint.

    Raises:
        UnsupportedValueError: The method or one of its options is not supported. The message names it.
        ValueError: A value has the wrong type.
    """
    config = ConfigReader(quantisation)
    method = config.text("quant_method", "none")
    match method:
        case "fp8":
            config.require("fmt", ("e4m3",))
            config.require("activation_scheme", ("dynamic",))
            sizes = config.integers("weight_block_size")
            if len(sizes) not in (0, 2) or any(size < 1 for size in sizes):
                raise ValueError(f"weight_block_size must be a list of two sizes, not {list(sizes)}")
            return Fp8((sizes[0], sizes[1]) if sizes else None)
        case "mxfp4":
            return Mxfp4()
        case "gptq":
            config.require("bits", (4, 8))
            config.require("checkpoint_format", ("gptq", "gptq_v2"))
            config.require("is_marlin_format", (False,))
            config.require("pack_dtype", ("int32",))
            offset = 0 if config.text("checkpoint_format", "gptq") == "gptq_v2" else 1
            return Gptq(config.integer("bits"), config.integer("group_size"), offset)
        case "awq":
            config.require("bits", (4,))
            version = config.text("version", "gemm").lower()
            if version != "gemm":
                raise UnsupportedValueError(f"version={version!r} of AWQ is not supported, only 'gemm'")
            config.require("zero_point", (True,))
            return Awq(config.integer("group_size"))
    raise UnsupportedValueError(f"weights quantised by {method!r} are not supported, only by {', '.join(METHODS)}")


class DequantisedSource:
    """The tensors of a checkpoint with quantised weights, without quantisation; others are as they are stored.

    Args:
        source: The stored tensors.
        scheme: How weights are quantised.

    Raises:
        ValueError: A quantised weight lacks one of its tensors.
    """

    def __init__(self, source: SafetensorsFiles, scheme: Scheme) -> None:
        self.location = source.location
        self._source, self._scheme = source, scheme
        self._parts: dict[str, dict[str, str]] = {}  # of each weight, by the name of its main tensor
        self.headers: dict[str, TensorHeader] = {}
        used: set[str] = set()
        for name in source.headers:
            parts = self._find_parts(name)
            if parts is not None:
                self._parts[name] = parts
                used.update(parts.values())
        for name, header in source.headers.items():
            if name in self._parts:
                shapes = {end: source.headers[part].shape for end, part in self._parts[name].items()}
                self.headers[self._plain(name)] = TensorHeader(scheme.shape(shapes), header.dtype, floating=True)
            elif name not in used:
                self.headers[name] = header

    def read(self) -> Iterator[tuple[str, TensorReader]]:
        """Yield each weight's name and its reader, in file order."""
        for name, read_tensor in self._source.read():
            if name in self._parts:
                yield self._plain(name), self._reader(name)
            elif name in self.headers:
                yield name, read_tensor

    def equal(self, first: str, second: str) -> bool:
        """Return whether two tensors have the same shape and the same values; a quantised one equals no other."""
        stored = self._source.headers
        return first in stored and second in stored and self._source.equal(first, second)

    def _find_parts(self, name: str) -> dict[str, str] | None:
        """Return the names of a weight's tensors, if it is quantised and this is the name of its main one."""
        scheme, headers = self._scheme, self._source.headers
        if not name.endswith(scheme.main) or headers[name].floating:
            return None
        base = name.removesuffix(scheme.main)
        parts = {end: base + end for end in (scheme.main, *scheme.others) if base + end in headers}
        missing = [end for end in scheme.others if end not in parts and end not in scheme.optional]
        if missing or len(parts) == 1:
            lacking = (missing or [*scheme.others])[0]
            raise ValueError(f"{self.location} has the quantised tensor {name} and lacks {base}{lacking}")
        return parts

    def _plain(self, name: str) -> str:
        return name.removesuffix(self._scheme.main) + self._scheme.plain

    def _reader(self, name: str) -> TensorReader:
        """Return a reader that dequantises a weight once, whatever slices are read."""
        weight: list[NDArray[Any]] = []

        def read_tensor(index: Index | None = None) -> NDArray[Any]:
            if not weight:
                parts = {end: self._source.load(part) for end, part in self._parts[name].items()}
                weight.append(self._scheme.dequantise(parts))
            return weight[0] if index is None else weight[0][index]

        return read_tensor
