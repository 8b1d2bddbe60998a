"""States of the engine torch that change in place while rows are decoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from birdie_zmq.engine.torch.states import keep_rows, put_row, row_of

pytestmark = pytest.mark.torch


def test_rows_that_are_kept_move_within_the_memory_of_the_state() -> None:
    keys = torch.arange(15.0).reshape(5, 3)
    state = {"lengths": torch.tensor([4, 7, 1, 9, 2]), "layers": [{"keys": keys}]}

    kept = keep_rows(state, [1, 3, 4])

    assert kept["lengths"].tolist() == [7, 9, 2]
    torch.testing.assert_close(kept["layers"][0]["keys"], torch.arange(15.0).reshape(5, 3)[[1, 3, 4]])
    assert kept["layers"][0]["keys"].data_ptr() == keys.data_ptr()


def test_a_row_of_a_state_is_changed_in_place() -> None:
    state: dict[str, Any] = {"lengths": torch.tensor([4, 7]), "layers": [{"keys": torch.zeros(2, 3)}]}

    place = row_of(state, 1)
    place["lengths"] += 1
    put_row(place, 0, {"lengths": place["lengths"], "layers": [{"keys": torch.ones(1, 3)}]}, 0)

    assert state["lengths"].tolist() == [4, 8]
    assert state["layers"][0]["keys"].tolist() == [[0, 0, 0], [1, 1, 1]]
