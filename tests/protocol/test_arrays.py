"""Arrays: they round-trip, and maps that msgpack-numpy would decode unsafely are rejected."""

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol.arrays import ARRAY_DTYPES, MAX_DIMENSIONS, pack_array, unpack_array

no_deadline = settings(deadline=None, max_examples=50)

arrays = st.sampled_from(sorted(ARRAY_DTYPES)).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=1, max_dims=MAX_DIMENSIONS, min_side=0, max_side=4))
)


def as_received(packed: dict[bytes, Any]) -> dict[bytes, Any]:
    """Return the map as a receiver gets it before decoding."""
    received: dict[bytes, Any] = msgpack.unpackb(msgpack.packb(packed))
    return received


def round_trip(array: NDArray[Any]) -> NDArray[Any]:
    return unpack_array(as_received(pack_array(array)))


@no_deadline
@given(arrays)
def test_arrays_round_trip_bit_for_bit(array: NDArray[Any]) -> None:
    received = round_trip(array)
    assert received.dtype == array.dtype
    assert received.shape == array.shape
    assert received.tobytes() == array.tobytes()


def test_a_single_number_keeps_its_shape() -> None:
    assert round_trip(np.array(2.5)).shape == ()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_array_keeps_its_shape(shape: tuple[int, ...]) -> None:
    assert round_trip(np.zeros(shape, np.int32)).shape == shape


def test_the_order_in_memory_does_not_matter() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.testing.assert_array_equal(round_trip(array.T), array.T)
    np.testing.assert_array_equal(round_trip(array[:, ::2]), array[:, ::2])


def test_a_received_array_is_read_only() -> None:
    received = round_trip(np.zeros(2))
    with pytest.raises(ValueError, match="read-only"):
        received[0] = 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(1, np.int64),
        np.zeros(1, np.float16),
        np.zeros(1, np.complex128),
        np.zeros(1, ">i4"),
        np.zeros(1, "<U3"),
        np.zeros(1, "S3"),
        np.zeros(1, "<M8[s]"),
        np.zeros(1, [("field", "<i4")]),
        np.array([None]),
        np.zeros((1,) * (MAX_DIMENSIONS + 1)),
    ],
    ids=lambda array: f"{array.dtype}-{array.ndim}d",
)
def test_unsupported_arrays_are_not_packed(array: NDArray[Any]) -> None:
    with pytest.raises(MalformedMessage, match="cannot be sent"):
        pack_array(array)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"nd", False),
        (b"nd", 1),
        (b"kind", b"O"),
        (b"kind", b"V"),
        (b"kind", None),
        (b"type", "|O"),
        (b"type", "|S0"),
        (b"type", ">i4"),
        (b"type", b"<i4"),
        (b"type", [["field", "<i4"]]),
        (b"type", {}),
        (b"shape", 2),
        (b"shape", [1]),
        (b"shape", [-1, -2]),
        (b"shape", [True, 2]),
        (b"shape", [2.0]),
        (b"shape", [1, 1, 2]),
        (b"shape", ["2"]),
        (b"data", b""),
        (b"data", bytes(9)),
        (b"data", "12345678"),
        (b"data", None),
    ],
)
def test_an_invalid_entry_is_rejected(key: bytes, value: object) -> None:
    packed = as_received(pack_array(np.zeros(2, np.int32)))
    with pytest.raises(MalformedMessage):
        unpack_array({**packed, key: value})


def test_a_size_beyond_31_bits_is_rejected_even_for_an_empty_array() -> None:
    packed = as_received(pack_array(np.zeros((1, 0))))
    with pytest.raises(MalformedMessage):
        unpack_array({**packed, b"shape": [2**31, 0]})


@pytest.mark.parametrize("key", [b"nd", b"type", b"kind", b"shape", b"data"])
def test_a_missing_entry_is_rejected(key: bytes) -> None:
    packed = as_received(pack_array(np.zeros(2, np.int32)))
    del packed[key]
    with pytest.raises(MalformedMessage, match="keys"):
        unpack_array(packed)


@pytest.mark.parametrize("key", [b"complex", "nd", "shape"])
def test_an_additional_entry_is_rejected(key: object) -> None:
    packed = as_received(pack_array(np.zeros(2, np.int32)))
    with pytest.raises(MalformedMessage, match="keys"):
        unpack_array({**packed, key: True})
