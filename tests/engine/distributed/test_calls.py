"""What processes of a group tell each other comes out as it went in, and nothing else comes out."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.engine.backend import SamplingMetadata
from birdie_zmq.engine.distributed import calls
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, Pairs, ScorePositions, Step, StepKind, Tree
from birdie_zmq.errors import MalformedMessage, ModelCallError
from birdie_zmq.types import ErrorReport, ModelSpec, SamplingParams

TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6)
SAMPLING = SamplingParams(temperature=0.5, top_k=3)


def ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


WAYS: list[StepKind] = [
    Dense(),
    Tree(TOKENS, TOKENS + 1, b"\x01\xff"),
    Tree(TOKENS, TOKENS + 1, b""),
    Extend(ints(6, 5), b"\x00", b"\x01", 300),
    Extend(ints(6), None, None, 0),
    Fork(ints(0, 0), ints(6, 1), 256),
    Pairs(TOKENS, TOKENS % 2),
]


def step(how: StepKind) -> Step:
    places = ScorePositions()
    places.add(1, [0, 2], ints(7, 8), 5)
    return Step.of(TOKENS, 11, how, places)


def passed(told: Any) -> Any:
    """What comes out at the other process."""
    return calls.decode(calls.encode(told))


def same(here: Any, there: Any) -> None:
    """Equal records of arrays, to the dtype."""
    assert type(here) is type(there)
    for name in here.__dataclass_fields__:
        before, after = getattr(here, name), getattr(there, name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        elif hasattr(before, "__dataclass_fields__"):
            same(before, after)
        else:
            assert before == after, name


@pytest.mark.parametrize("how", WAYS, ids=lambda how: type(how).__name__)
def test_a_step_is_the_same_less_whose_places_they_are(how: StepKind) -> None:
    here = step(how)
    call = passed(calls.Submit(calls.ToldStep.of(here)))
    there = call.step.step()
    nobody = np.zeros_like(here.owners)
    same(Step(here.tokens, 0, how, here.rows, here.positions, here.targets, nobody), there)
    assert there.shape == here.shape


@pytest.mark.parametrize("how", WAYS, ids=lambda how: type(how).__name__)
def test_a_plan_says_from_which_states_its_steps_start(how: StepKind) -> None:
    (there,) = passed(calls.Open.of([step(how)])).steps()
    assert type(there.how) is type(how)
    for name in ("state", "before", "after", "room"):
        assert getattr(there.how, name, None) == getattr(how, name, None)
    assert len(calls.encode(calls.Open.of([step(how)]))) < 150


def test_how_tokens_are_drawn() -> None:
    here = SamplingMetadata(SAMPLING, [2**62 - 1, 0], ints(4, 0))
    call = passed(calls.Next(calls.ToldStep.of(step(Dense())), calls.ToldDrawing.of(here)))
    same(here, call.drawing.drawing())
    assert passed(calls.Next(calls.ToldStep.of(step(Dense())), None)).drawing is None


@pytest.mark.parametrize(
    "told",
    [
        calls.CountRows(512, 16),
        calls.Begin(16, 512, None),
        calls.Begin(16, 512, SAMPLING),
        calls.Put(3, calls.Array.of(ints(1, 2, 3)), [(0, 2, 16, True)], 2**62 - 1, 5),
        calls.Decode(calls.Array.of(np.array([True, False]))),
        calls.Narrow([2, 0]),
        calls.Halve(),
        calls.Agreed(),
        calls.Load("0.1.0", ModelSpec(tag="demo", arguments="{}"), "/a/page.py", "00ff"),
        calls.Prepared(2048),
        calls.Budget(StepBudget(tokens=1024, row_unit=2)),
        calls.LoadedHere("branches", 264, None, "float32"),
        calls.Refused(ErrorReport(code=ModelCallError.code, message="boom", traceback="line 3")),
        calls.Failed("out-of-device-memory"),
    ],
    ids=lambda told: type(told).__name__,
)
def test_what_is_told_comes_out_as_it_went_in(told: Any) -> None:
    assert passed(told) == told


def test_arrays_keep_their_dtype_and_shape() -> None:
    for array in (TOKENS, TOKENS[:, :0], np.array([True, False])):
        there = passed(calls.Decode(calls.Array.of(array))).active.array()
        assert (there.dtype, there.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(there, array)


def test_a_prompts_pieces() -> None:
    (piece,) = passed(calls.Put(0, calls.Array.of(ints(1)), [(0, 2, 16, True)], 0, 0)).planned()
    assert piece == (0, 2, 16, True)
    assert piece.is_kept


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "exec", "code": "1"}),
        msgspec.msgpack.encode({"type": "count-rows", "capacity": -1, "wanted": 1}),
        msgspec.msgpack.encode({"type": "count-rows", "capacity": 1, "wanted": 1, "more": 1}),
        msgspec.msgpack.encode({"type": "decode", "active": {"dtype": "|O", "shape": [1], "data": b"\x80"}}),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="makes no sense"):
        calls.decode(data)


def test_an_array_of_other_bytes_than_it_says_and_a_step_without_its_arrays_are_refused() -> None:
    with pytest.raises(MalformedMessage, match="not as many as its shape"):
        calls.Array("<i4", [2], b"\0" * 4).array()
    with pytest.raises(MalformedMessage, match="read as fork has 1 arrays"):
        calls.Reading("fork", [calls.Array.of(ints(1))]).how()
