"""The published formulas of weights in fewer bits, as functions of NumPy arrays.

Every function returns a weight as a Hugging Face directory would store it without quantisation: [out, in], or for the
experts of GPT-OSS [e, in, out].
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column, of each eight, that the nibbles of an integer hold, from the lowest on."""

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of a sign, two bits of exponent and one bit of mantissa (OCP Microscaling Formats, version 1.0, section 5.3.3)."""

_WORD_BITS = 32
_SCALE_BIAS = 127


def dequantise_fp8(weight: NDArray[Any], scale: NDArray[Any], block: tuple[int, int] | None) -> Floats:
    """Multiply float8 values [out, in] by their scale (DeepSeek-AI, 2024, arXiv:2412.19437, section 3.3).

    Args:
        weight: The values.
        scale: One number; or one for each block, [ceil(out / rows), ceil(in / columns)]; or one for each output, [out, 1].
        block: The rows and columns of a block; None if there are no blocks.
    """
    wide = np.asarray(weight).astype(np.float32)
    factors = np.asarray(scale).astype(np.float32)
    if block is not None:
        rows, columns = wide.shape
        factors = np.repeat(np.repeat(factors, block[0], axis=0)[:rows], block[1], axis=1)[:, :columns]
    elif factors.size == 1:
        factors = factors.reshape(1, 1)
    wide *= factors
    return wide


def dequantise_mxfp4(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[Any]:
    """Decode blocks of 32 values with one power of two each (OCP Microscaling Formats, version 1.0, section 5.2).

    A byte holds two values, the first one in its lower half. All values are exact in bfloat16.

    Args:
        blocks: [e, out, in / 32, 16].
        scales: The exponents plus 127, [e, out, in / 32].

    Returns:
        bfloat16 [e, in, out].
    """
    experts, outputs, groups, half = blocks.shape
    values = np.array(FP4_VALUES, np.float32)
    found = np.empty((experts, groups * half * 2, outputs), ml_dtypes.bfloat16)
    for expert in range(experts):  # one after another, since float32 takes twice the memory
        pairs = np.stack([values[blocks[expert] & 15], values[blocks[expert] >> 4]], axis=-1)
        exponents = scales[expert].astype(np.int32) - _SCALE_BIAS
        scaled = np.ldexp(pairs.reshape(outputs, groups, 2 * half), exponents[..., None])
        found[expert] = scaled.reshape(outputs, -1).T.astype(ml_dtypes.bfloat16)
    return found


def unpack(packed: NDArray[np.int32], bits: int, axis: int) -> NDArray[np.int32]:
    """Return the integers of `bits` bits that 32-bit words hold along an axis of two, the first one in the lowest bits."""
    words = np.moveaxis(packed.astype(np.uint32), axis, -1)
    shifts = np.arange(0, _WORD_BITS, bits, dtype=np.uint32)
    values = (words[..., None] >> shifts) & np.uint32(2**bits - 1)
    return np.moveaxis(values.reshape(*words.shape[:-1], -1), -1, axis).astype(np.int32)


def dequantise_gptq(parts: dict[str, NDArray[Any]], bits: int, *, zero_offset: int) -> Floats:
    """Decode GPTQ's integers (Frantar et al., 2022, arXiv:2210.17323): ``scale * (integer - zero)``.

    Args:
        parts: ``qweight`` int32 [in * bits / 32, out], ``qzeros`` int32 [groups, out * bits / 32], ``scales`` [groups, out]
            and ``g_idx`` int [in], the group of each input.
        bits: 4 or 8.
        zero_offset: 1 if a stored zero is one less than the zero, modulo ``2**bits``, as in the format ``gptq``; 0 in the
            format ``gptq_v2``.
    """
    integers = unpack(parts["qweight"], bits, 0)
    zeros = (unpack(parts["qzeros"], bits, 1) + zero_offset) % 2**bits
    groups, scales = np.asarray(parts["g_idx"]), parts["scales"].astype(np.float32)
    zeros = zeros[:, : scales.shape[1]]
    return np.ascontiguousarray(((integers - zeros[groups]).astype(np.float32) * scales[groups]).T)


def dequantise_awq(parts: dict[str, NDArray[Any]], group: int) -> Floats:
    """Decode AWQ's 4-bit integers (Lin et al., 2023, arXiv:2306.00978): ``scale * (integer - zero)``.

    Args:
        parts: ``qweight`` int32 [in, out / 8], ``qzeros`` int32 [groups, out / 8] and ``scales`` [groups, out]. The eight
            columns of an integer are in the order of `AWQ_ORDER`.
        group: The number of inputs of a group.
    """

    def columns(packed: NDArray[np.int32]) -> NDArray[np.int32]:
        nibbles = unpack(packed, 4, 1).reshape(packed.shape[0], -1, 8)
        return nibbles[..., np.argsort(AWQ_ORDER)].reshape(packed.shape[0], -1)

    integers, zeros, scales = columns(parts["qweight"]), columns(parts["qzeros"]), parts["scales"].astype(np.float32)
    groups = np.arange(len(integers)) // group
    return np.ascontiguousarray(((integers - zeros[groups]).astype(np.float32) * scales[groups]).T)
