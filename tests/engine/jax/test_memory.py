"""The number of rows of a state that fit into free memory."""

from __future__ import annotations

import jax
import pytest

from birdie_zmq.engine.decoding_memory import rows_that_fit
from birdie_zmq.engine.jax import memory
from birdie_zmq.engine.prefix_cache import ANY_CAPACITY
from birdie_zmq.errors import OutOfDeviceMemory


def test_a_share_of_free_memory_holds_the_rows_and_two_more() -> None:
    assert rows_that_fit(free=1000, row_bytes=80, capacity=256, tokens=200) == 8
    assert rows_that_fit(free=300, row_bytes=80, capacity=256, tokens=200) == 1


def test_an_error_names_the_number_of_tokens_that_fit() -> None:
    # 240 bytes hold one state, and three states of 85 tokens each.
    with pytest.raises(OutOfDeviceMemory, match=r"its answer of 200 tokens need 3 states .* about 85 tokens would fit"):
        rows_that_fit(free=300, row_bytes=240, capacity=256, tokens=200)


def test_an_error_names_no_tokens_where_the_size_of_a_state_does_not_depend_on_them() -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"generation needs 3 states .* shorter texts do not help"):
        rows_that_fit(free=300, row_bytes=240, capacity=ANY_CAPACITY, tokens=200)


def test_the_fixed_part_of_a_state_is_no_memory_for_tokens() -> None:
    # Three states of 80 bytes; 60 bytes of each hold no tokens; the other 180 bytes of a state hold 256.
    with pytest.raises(OutOfDeviceMemory, match="about 28 tokens would fit"):
        rows_that_fit(free=300, row_bytes=240, capacity=256, tokens=200, fixed_share=0.25)
    with pytest.raises(OutOfDeviceMemory, match="shorter texts do not help"):
        rows_that_fit(free=300, row_bytes=240, capacity=256, tokens=200, fixed_share=0.5)


def test_virtual_devices_of_a_cpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_free_bytes", lambda: 1000)
    (device,) = jax.devices("cpu")[:1]

    assert memory.free_bytes([device]) == 1000
    assert memory.free_bytes([device] * 4) == 250
