"""The product of a few rows with the transpose of a matrix, such as an embedding that is also the head.

An output is a sum of products along a row of the matrix: first of each lane of a vector, then of pairs of lanes. That order is
the same for any number of rows, so a row's outputs do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numba
from numba.core import cgutils
from numba.extending import intrinsic

from birdie_zmq.models.cpu_kernels.parallel_call import NUMBA_OPTIONS, ParallelCall, kernel
from birdie_zmq.models.cpu_kernels.vectors import LANES, Vectors

_TILE = 8
"""Outputs that are computed for all rows, before the next ones; their rows of the matrix stay in the nearest cache."""

_BLOCK = 8 * _TILE
"""Outputs of an item."""


def _multiplying(rows: int, outputs: int) -> Any:
    """Return a function that computes some outputs of some rows; their product is at most `LANES`.

    Its arguments are int64: the addresses of the rows, of the matrix' first row and of the first output; the bytes of a row of
    x or of the matrix, and those between two rows of outputs.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def multiply(typing: Any, x: Any, matrix: Any, y: Any, row_bytes: Any, y_stride: Any) -> Any:
        del typing, x, matrix, y, row_bytes, y_stride

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            del signature
            _generate_multiplying(builder, arguments, rows, outputs)
            return context.get_dummy_value()

        return numba.types.none(*[numba.types.int64] * 5), generate

    return multiply


def _generate_multiplying(builder: Any, arguments: Any, rows: int, outputs: int) -> None:
    """Write the instructions of `_multiplying`."""
    x, matrix, y, row_bytes, y_stride = arguments
    vectors = Vectors(builder)
    sums = [cgutils.alloca_once_value(builder, vectors.zero) for _ in range(rows * outputs)]
    for total in sums:
        builder.store(vectors.zero, total)
    with cgutils.for_range(builder, builder.udiv(row_bytes, vectors.word(4 * LANES))) as loop:
        offset = builder.mul(loop.index, vectors.word(4 * LANES))
        weights = []
        for output in range(outputs):
            weights.append(vectors.load(matrix, row_bytes, output, offset))
            vectors.fetch(matrix, row_bytes, output + _TILE, offset)
        for row in range(rows):
            factors = vectors.load(x, row_bytes, row, offset)
            for weight, total in zip(weights, sums[row * outputs : (row + 1) * outputs], strict=True):
                builder.store(vectors.multiply_add(factors, weight, builder.load(total)), total)
    totals = vectors.sums_of([builder.load(total) for total in sums])
    for row in range(rows):
        vectors.store_lanes(totals, row * outputs, outputs, builder.add(y, builder.mul(y_stride, vectors.word(row))))


_multiply_1, _multiply_2, _multiply_4 = _multiplying(1, _TILE), _multiplying(2, _TILE), _multiplying(4, _TILE // 2)


def _multiply(item: Any, addresses: Any, sizes: Any) -> None:
    """Compute a block of the outputs [rows, outputs] of x [rows, width] and a matrix [outputs, width]."""
    rows, width, outputs = int(sizes[0]), int(sizes[1]), int(sizes[2])
    row_bytes, y_stride = 4 * width, 4 * outputs
    end = min((item + 1) * _BLOCK, outputs)
    for each in range(item * _BLOCK, end, _TILE):
        tile = min(each, outputs - _TILE)  # the last one computes some outputs once more
        matrix, y = addresses[1] + tile * row_bytes, addresses[2] + 4 * tile
        x, row = addresses[0], 0
        while rows - row >= 4:
            _multiply_4(x, matrix, y, row_bytes, y_stride)
            _multiply_4(x, matrix + _TILE // 2 * row_bytes, y + 2 * _TILE, row_bytes, y_stride)
            x, y, row = x + 4 * row_bytes, y + 4 * y_stride, row + 4
        if rows - row >= 2:
            _multiply_2(x, matrix, y, row_bytes, y_stride)
            x, y, row = x + 2 * row_bytes, y + 2 * y_stride, row + 2
        if rows > row:
            _multiply_1(x, matrix, y, row_bytes, y_stride)


_call = ParallelCall("multiply_by_transpose", kernel(_multiply, NUMBA_OPTIONS))


def multiply_by_transpose(x: jax.Array, matrix: jax.Array) -> jax.Array | None:
    """Multiply rows by the transpose of a matrix: float32 [r, i] and [o, i] -> [r, o].

    Returns:
        The products; None if the kernel does not compute them, for these dtypes or sizes.
    """
    if x.ndim != 2 or matrix.ndim != 2 or not x.dtype == matrix.dtype == jnp.float32:
        return None
    (rows, width), outputs = x.shape, matrix.shape[0]
    if width % LANES or outputs < _TILE:
        return None
    (y,) = _call(-(-outputs // _BLOCK), (rows, width, outputs), (x, matrix), (rows, outputs))
    return y
