"""Quantised weights, packed bit by bit as the formats describe it, and the values that they stand for.

Nothing here shares code with `birdie_zmq.models.dequantisation`.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]


def _words(fields: list[list[int]], bits: int) -> NDArray[np.int32]:
    """Rows of 32-bit words, each of several fields, the first one in the lowest bits."""
    per_word = 32 // bits
    rows = []
    for row in fields:
        words = []
        for begin in range(0, len(row), per_word):
            word = sum(value << (bits * place) for place, value in enumerate(row[begin : begin + per_word]))
            words.append(word - 2**32 if word >= 2**31 else word)
        rows.append(words)
    return np.array(rows, np.int32)


def gptq(
    random: np.random.Generator, outputs: int, inputs: int, *, bits: int, group: int, order: bool, stored_offset: int
) -> tuple[Tensors, NDArray[np.float32]]:
    """A weight of GPTQ, and its values; `order` assigns inputs to groups at random, as desc_act does."""
    groups, most = inputs // group, 2**bits
    integers = random.integers(0, most, (inputs, outputs))
    zeros = random.integers(0, most, (groups, outputs))
    zeros[0, 0] = 0  # the stored value is then the largest one, if it is one less
    scales = random.uniform(0.01, 0.1, (groups, outputs)).astype(np.float16)
    of_input = np.arange(inputs) // group
    if order:
        random.shuffle(of_input)
    stored_zeros = [[(int(zero) - stored_offset) % most for zero in row] for row in zeros]
    columns = [[int(integer) for integer in column] for column in integers.T]
    tensors: Tensors = {
        "qweight": np.ascontiguousarray(_words(columns, bits).T),
        "qzeros": _words(stored_zeros, bits),
        "scales": scales,
        "g_idx": of_input.astype(np.int32),
    }
    values = np.empty((outputs, inputs), np.float32)
    for column in range(inputs):
        for row in range(outputs):
            scale = np.float32(scales[of_input[column], row])
            values[row, column] = scale * np.float32(integers[column, row] - zeros[of_input[column], row])
    return tensors, values


def awq(random: np.random.Generator, outputs: int, inputs: int, *, group: int) -> tuple[Tensors, NDArray[np.float32]]:
    """A weight of AWQ, and its values: nibble i of an integer holds the column 0, 2, 4, 6, 1, 3, 5 or 7 of its eight."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    groups = inputs // group
    integers, zeros = random.integers(0, 16, (inputs, outputs)), random.integers(0, 16, (groups, outputs))
    scales = random.uniform(0.01, 0.1, (groups, outputs)).astype(np.float16)

    def pack(rows: NDArray[Any]) -> NDArray[np.int32]:
        fields = [[int(row[8 * word + place]) for word in range(outputs // 8) for place in order] for row in rows]
        return _words(fields, 4)

    tensors: Tensors = {"qweight": pack(integers), "qzeros": pack(zeros), "scales": scales}
    values = np.empty((outputs, inputs), np.float32)
    for column in range(inputs):
        for row in range(outputs):
            difference = np.float32(integers[column, row] - zeros[column // group, row])
            values[row, column] = np.float32(scales[column // group, row]) * difference
    return tensors, values


def fp8_blocks(
    random: np.random.Generator, outputs: int, inputs: int, *, block: int
) -> tuple[Tensors, NDArray[np.float32]]:
    """A weight in float8 with a scale for each square block, and its values."""
    stored = random.standard_normal((outputs, inputs)).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    shape = (-(-outputs // block), -(-inputs // block))
    scales = random.uniform(0.01, 0.1, shape).astype(np.float32)
    values = np.empty((outputs, inputs), np.float32)
    for row in range(outputs):
        for column in range(inputs):
            values[row, column] = np.float32(stored[row, column]) * scales[row // block, column // block]
    return {"weight": stored, "weight_scale_inv": scales}, values


def fp8_whole(random: np.random.Generator, outputs: int, inputs: int) -> tuple[Tensors, NDArray[np.float32]]:
    """A weight in float8 with one scale, and its values."""
    stored = random.standard_normal((outputs, inputs)).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    scale = np.float32(0.037)
    return {"weight": stored, "weight_scale_inv": np.array(scale)}, stored.astype(np.float32) * scale


def mxfp4(random: np.random.Generator, experts: int, outputs: int, groups: int) -> tuple[Tensors, NDArray[np.float32]]:
    """The blocks and scales of experts, and their values [e, in, out]."""
    codes = random.integers(0, 16, (experts, outputs, groups, 32))
    exponents = random.integers(120, 132, (experts, outputs, groups))
    tensors: Tensors = {
        "blocks": (codes[..., ::2] + 16 * codes[..., 1::2]).astype(np.uint8),
        "scales": exponents.astype(np.uint8),
    }

    def value(code: int) -> float:
        """A sign, two bits of exponent with a bias of 1, and one bit of mantissa; subnormal without exponent."""
        exponent, mantissa = (code >> 1) & 3, code & 1
        size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
        return -size if code >> 3 else size

    values = np.empty((experts, groups * 32, outputs), np.float32)
    for expert, row, group, place in np.ndindex(codes.shape):
        scale = 2.0 ** (int(exponents[expert, row, group]) - 127)
        values[expert, group * 32 + place, row] = scale * value(int(codes[expert, row, group, place]))
    return tensors, values
