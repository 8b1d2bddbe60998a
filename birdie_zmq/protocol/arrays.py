"""NumPy arrays in the format of msgpack-numpy, validated before they are decoded.

msgpack-numpy encodes an array as a map with the keys ``nd``, ``type``, ``kind``, ``shape`` and ``data`` (as bytes). Its
decoder unpickles a map whose kind is ``O`` and accepts any dtype and any shape, so an untrusted frame could run code or claim
a shape larger than memory. This module accepts only a map with exactly those keys, an empty kind, a dtype from a short list,
and a shape that matches the size of the data. Only then does it call msgpack-numpy's decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack_numpy
import numpy as np
import numpy.typing as npt

from birdie_zmq.errors import MalformedMessage

ARRAY_KEYS = frozenset({b"nd", b"type", b"kind", b"shape", b"data"})
ARRAY_DTYPES = {dtype: np.dtype(dtype) for dtype in ("<i4", "<f4", "<f8", "|b1")}
MAX_DIMENSIONS = 2


def pack_array(array: npt.NDArray[Any]) -> dict[bytes, Any]:
    """Return the map of an array.

    Raises:
        MalformedMessage: The dtype or the number of dimensions is not supported.
    """
    if array.dtype.str not in ARRAY_DTYPES or array.ndim > MAX_DIMENSIONS:
        raise MalformedMessage(
            f"an array of dtype {array.dtype} and {array.ndim} dimensions cannot be sent; "
            f"supported: dtypes {', '.join(ARRAY_DTYPES)}, at most {MAX_DIMENSIONS} dimensions"
        )
    packed: dict[bytes, Any] = msgpack_numpy.encode(np.asarray(array, order="C"))
    return packed


def unpack_array(packed: Mapping[Any, Any]) -> npt.NDArray[Any]:
    """Return the array of a map, as a read-only view of the map's bytes.

    Raises:
        MalformedMessage: The map does not have the form that `pack_array` returns.
    """
    if set(packed) != ARRAY_KEYS:
        raise MalformedMessage(
            f"an array map must have exactly the keys nd, type, kind, shape and data; it has {len(packed)} keys"
        )
    if packed[b"nd"] is not True or packed[b"kind"] not in (b"", ""):
        raise MalformedMessage("an array map must describe a plain array: nd true and kind empty")
    dtype = ARRAY_DTYPES.get(packed[b"type"]) if isinstance(packed[b"type"], str) else None
    if dtype is None:
        raise MalformedMessage(f"an array has an unsupported dtype; supported: {', '.join(ARRAY_DTYPES)}")
    shape, data = packed[b"shape"], packed[b"data"]
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**31 for size in shape)
    ):
        raise MalformedMessage(f"the shape of an array must be at most {MAX_DIMENSIONS} integers from 0 to 2**31 - 1")
    elements = 1
    for size in shape:
        elements *= size
    if not isinstance(data, bytes) or elements * dtype.itemsize != len(data):
        raise MalformedMessage("the number of bytes of an array does not match its shape and dtype")
    if dtype.kind == "b" and data.translate(None, b"\0\1"):
        raise MalformedMessage("a boolean of an array is neither 0 nor 1")
    array: npt.NDArray[Any] = msgpack_numpy.decode(dict(packed))
    return array
