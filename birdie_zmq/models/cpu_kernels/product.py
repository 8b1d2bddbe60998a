"""The product of a few rows with the matrix of one layer, read where it lies in the stack of all layers.

Rows of the matrix are added to the outputs, eight at a time, so that they are read in their order in memory. Those that
come next are fetched into the processor's cache meanwhile. Each output is the sum of its products in the order of the
inputs, each added with one rounding, so a row's outputs do not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic

from birdie_zmq.models.cpu_kernels.parallel_call import NUMBA_OPTIONS, ParallelCall, floats_at, integers_at, kernel
from birdie_zmq.models.cpu_kernels.vectors import LANES, Vectors

_MAX_ROWS = 32
"""With more rows, XLA's products are faster."""

_INPUTS = 8
"""Inputs whose products are added at once."""

_BLOCK = 6 * LANES
"""Outputs of an item; those of all rows stay in the processor's nearest cache."""

_AHEAD = _INPUTS
"""How many rows before its use a row of the matrix is fetched."""


def _adding(rows: int, inputs: int) -> Any:
    """Return a function that adds the products of some inputs to the outputs of some rows.

    Its arguments are int64: the addresses of the rows' first input and the bytes between two rows of them, the same of the
    matrix and of the outputs, and the number of outputs.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def add(
        typing: Any, x: Any, x_stride: Any, matrix: Any, matrix_stride: Any, y: Any, y_stride: Any, count: Any
    ) -> Any:
        del typing, x, x_stride, matrix, matrix_stride, y, y_stride, count

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            del signature
            _generate_adding(builder, arguments, rows, inputs)
            return context.get_dummy_value()

        return numba.types.none(*[numba.types.int64] * 7), generate

    return add


def _generate_adding(builder: Any, arguments: Any, rows: int, inputs: int) -> None:
    """Write the instructions of `_adding`."""
    x, x_stride, matrix, matrix_stride, y, y_stride, count = arguments
    vectors = Vectors(builder)
    factors = [
        [vectors.spread(x, x_stride, row, vectors.word(4 * each)) for each in range(inputs)] for row in range(rows)
    ]
    with cgutils.for_range(builder, builder.udiv(count, vectors.word(LANES))) as loop:
        offset = builder.mul(loop.index, vectors.word(4 * LANES))
        weights = []
        for each in range(inputs):
            weights.append(vectors.load(matrix, matrix_stride, each, offset))
            vectors.fetch(matrix, matrix_stride, each + _AHEAD, offset)
        for row in range(rows):
            total = vectors.load(y, y_stride, row, offset)
            for each in range(inputs):
                total = vectors.multiply_add(factors[row][each], weights[each], total)
            vectors.store(total, y, y_stride, row, offset)


_add_to_1, _add_to_2, _add_to_4 = _adding(1, _INPUTS), _adding(2, _INPUTS), _adding(4, _INPUTS)
_add_to_8 = _adding(8, _INPUTS // 2)  # the factors of more inputs do not fit into registers


def _multiply(item: Any, addresses: Any, sizes: Any) -> None:
    """Compute a block of the outputs [rows, outputs] of x [rows, inputs] and a layer of the stack [l, inputs, outputs]."""
    rows, inputs, outputs = int(sizes[0]), int(sizes[1]), int(sizes[2])
    layer = int(integers_at(addresses[2], 1)[0])
    begin = item * _BLOCK
    count = min(_BLOCK, outputs - begin)
    x, x_stride, stride = addresses[0], 4 * inputs, 4 * outputs
    matrix = addresses[1] + layer * inputs * stride + 4 * begin
    # Rows of y can lie at a distance at which they displace each other in the cache. These lie next to each other.
    sums, sums_stride = np.zeros((rows, _BLOCK), np.float32), 4 * _BLOCK
    for each in range(0, inputs, _INPUTS):
        at, row = matrix + each * stride, 0
        while rows - row >= 8:
            from_, to = x + row * x_stride + 4 * each, sums.ctypes.data + row * sums_stride
            _add_to_8(from_, x_stride, at, stride, to, sums_stride, count)
            _add_to_8(from_ + 2 * _INPUTS, x_stride, at + _INPUTS // 2 * stride, stride, to, sums_stride, count)
            row += 8
        from_, to = x + row * x_stride + 4 * each, sums.ctypes.data + row * sums_stride
        if rows - row >= 4:
            _add_to_4(from_, x_stride, at, stride, to, sums_stride, count)
            from_, to, row = from_ + 4 * x_stride, to + 4 * sums_stride, row + 4
        if rows - row >= 2:
            _add_to_2(from_, x_stride, at, stride, to, sums_stride, count)
            from_, to, row = from_ + 2 * x_stride, to + 2 * sums_stride, row + 2
        if rows > row:
            _add_to_1(from_, x_stride, at, stride, to, sums_stride, count)
    floats_at(addresses[3], (rows, outputs))[:, begin : begin + count] = sums[:, :count]


_call = ParallelCall("multiply_by_layer", kernel(_multiply, NUMBA_OPTIONS))


def multiply_by_layer(x: jax.Array, stack: jax.Array, layer: jax.Array) -> jax.Array | None:
    """Multiply rows by the matrix of a layer: float32 [r, i] and [l, i, o] -> [r, o].

    Args:
        x: The rows.
        stack: The matrices of all layers.
        layer: int32 [], the index of the layer.

    Returns:
        The products; None if the kernel does not compute them, for these dtypes or sizes.
    """
    if x.ndim != 2 or stack.ndim != 3 or not x.dtype == stack.dtype == jnp.float32:
        return None
    (rows, inputs), outputs = x.shape, stack.shape[2]
    if rows > _MAX_ROWS or inputs % _INPUTS or outputs % LANES:
        return None
    (y,) = _call(-(-outputs // _BLOCK), (rows, inputs, outputs), (x, stack, layer), (rows, outputs))
    return y
