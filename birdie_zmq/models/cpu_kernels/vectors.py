"""Instructions on vectors of float32, as LLVM knows them; Numba has no types for vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16
"""The floats of a vector."""


class Vectors:
    """Writes instructions where a builder of LLVM is; addresses, strides and offsets are int64, in bytes.

    Attributes:
        word: The type int64; called with a number, a constant.
        zero: The vector of zeros.
    """

    def __init__(self, builder: Any) -> None:
        self.word = ir.IntType(64)
        self._builder = builder
        self._number, self._lane = ir.FloatType(), ir.IntType(32)
        self._vector = ir.VectorType(self._number, LANES)
        self.zero = ir.Constant(self._vector, None)

    def at(self, base: Any, stride: Any, index: int, offset: Any) -> Any:
        """Return the address `offset` bytes after the row of a number."""
        builder = self._builder
        return builder.add(builder.add(base, builder.mul(stride, self.word(index))), offset)

    def load(self, base: Any, stride: Any, index: int, offset: Any) -> Any:
        """Return the vector at the address that `at` returns."""
        pointer = self._builder.inttoptr(self.at(base, stride, index, offset), self._vector.as_pointer())
        return self._builder.load(pointer, align=4)

    def store(self, vector: Any, base: Any, stride: Any, index: int, offset: Any) -> None:
        """Store a vector at the address that `at` returns."""
        pointer = self._builder.inttoptr(self.at(base, stride, index, offset), self._vector.as_pointer())
        self._builder.store(vector, pointer, align=4)

    def fetch(self, base: Any, stride: Any, index: int, offset: Any) -> None:
        """Begin to fetch the address that `at` returns into all caches of the processor; it need not be readable."""
        bytes_, lane = ir.IntType(8).as_pointer(), self._lane
        kind = ir.FunctionType(ir.VoidType(), [bytes_, lane, lane, lane])
        function = cgutils.get_or_insert_function(self._builder.module, kind, "llvm.prefetch.p0i8")
        pointer = self._builder.inttoptr(self.at(base, stride, index, offset), bytes_)
        self._builder.call(function, [pointer, lane(0), lane(3), lane(1)])  # to read, to keep in all caches, data

    def spread(self, base: Any, stride: Any, index: int, offset: Any) -> Any:
        """Return a vector whose lanes are the number at the address that `at` returns."""
        builder, undefined = self._builder, ir.Constant(self._vector, ir.Undefined)
        pointer = builder.inttoptr(self.at(base, stride, index, offset), self._number.as_pointer())
        one = builder.insert_element(undefined, builder.load(pointer), self._lane(0))
        return builder.shuffle_vector(one, undefined, self._lanes([0] * LANES))

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """Return x * y + z, rounded once."""
        kind = ir.FunctionType(self._vector, [self._vector] * 3)
        function = cgutils.get_or_insert_function(self._builder.module, kind, f"llvm.fma.v{LANES}f32")
        return self._builder.call(function, [x, y, z])

    def sums_of(self, vectors: Sequence[Any]) -> Any:
        """Return a vector whose lanes are the sums of the lanes of vectors, whose number is a power of two up to `LANES`.

        Halves of a vector are added until one lane remains. Two vectors are halved together in one, so all vectors take
        hardly longer than one.
        """
        builder, size = self._builder, LANES
        while size > 1:
            pairs = list(zip(vectors[::2], vectors[1::2], strict=True)) if len(vectors) > 1 else [(vectors[0],) * 2]
            halves = [begin + lane for begin in range(0, 2 * LANES, size) for lane in range(size // 2)]
            others = [lane + size // 2 for lane in halves]
            vectors = [
                builder.fadd(*(builder.shuffle_vector(*pair, self._lanes(lanes)) for lanes in (halves, others)))
                for pair in pairs
            ]
            size //= 2
        return vectors[0]

    def store_lanes(self, vector: Any, first: int, count: int, address: Any) -> None:
        """Store `count` lanes of a vector, from the lane `first` on, at an address."""
        some = self._builder.shuffle_vector(vector, vector, self._lanes(range(first, first + count)))
        pointer = self._builder.inttoptr(address, ir.VectorType(self._number, count).as_pointer())
        self._builder.store(some, pointer, align=4)

    def _lanes(self, lanes: Sequence[int]) -> Any:
        return ir.Constant(ir.VectorType(self._lane, len(lanes)), list(lanes))
