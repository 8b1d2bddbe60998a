"""NumPy arrays in the form of msgpack-numpy, checked before anything is made of them.

msgpack-numpy writes an array as a map with the keys ``nd``, ``type``, ``kind``, ``shape`` and ``data`` (as bytes). Its
decoder unpickles a map whose kind is ``O`` and believes any dtype and any shape, so a stranger's frame could run code
or claim a shape that no memory holds. Here a map must name exactly those keys, an empty kind, a dtype from a short
list, and a shape whose size is that of the data: only then is msgpack-numpy's decoder called.
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
    """The map that stands for an array; raises MalformedMessage for a dtype that does not travel."""
    if array.dtype.str not in ARRAY_DTYPES or array.ndim > MAX_DIMENSIONS:
        raise MalformedMessage(
            f"an array of dtype {array.dtype} and {array.ndim} dimensions cannot be sent; "
            f"the dtypes that travel are {', '.join(ARRAY_DTYPES)}, in at most {MAX_DIMENSIONS} dimensions"
        )
    packed: dict[bytes, Any] = msgpack_numpy.encode(np.asarray(array, order="C"))
    return packed


def unpack_array(packed: Mapping[Any, Any]) -> npt.NDArray[Any]:
    """The array that a map stands for, read-only, over the map's own bytes.

    Raises:
        MalformedMessage: The map is not exactly what `pack_array` makes.
    """
    if set(packed) != ARRAY_KEYS:
        raise MalformedMessage(
            f"an array map must have the keys nd, type, kind, shape and data, not {len(packed)} others"
        )
    if packed[b"nd"] is not True or packed[b"kind"] not in (b"", ""):
        raise MalformedMessage("an array map must be of a plain array: nd true and kind empty")
    dtype = ARRAY_DTYPES.get(packed[b"type"]) if isinstance(packed[b"type"], str) else None
    if dtype is None:
        raise MalformedMessage(f"an array of another dtype than {', '.join(ARRAY_DTYPES)} is not accepted")
    shape, data = packed[b"shape"], packed[b"data"]
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**31 for size in shape)
    ):
        raise MalformedMessage(
            f"the shape of an array must be at most {MAX_DIMENSIONS} whole numbers, from 0 to 2**31 - 1"
        )
    elements = 1
    for size in shape:
        elements *= size
    if not isinstance(data, bytes) or elements * dtype.itemsize != len(data):
        raise MalformedMessage("the bytes of an array are not as many as its shape and dtype say")
    if dtype.kind == "b" and data.translate(None, b"\0\1"):
        raise MalformedMessage("a truth value of an array is neither 0 nor 1")
    array: npt.NDArray[Any] = msgpack_numpy.decode(dict(packed))
    return array
