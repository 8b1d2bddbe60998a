"""Messages between the ranks of a process group: round trips, and rejection of malformed bytes."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.engine.backend import GREEDY, SamplingMetadata, TokenChoice
from birdie_zmq.engine.distributed import calls
from birdie_zmq.engine.logits_processing import LogitsProcessing
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, Pairs, ScorePositions, Step, StepKind, Tree
from birdie_zmq.errors import MalformedMessage, ModelCallError
from birdie_zmq.types import ErrorReport, ModelSpec, SamplingParams

TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6)
PROCESSING = LogitsProcessing(
    bias=((3, -1.5),), forbidden=(1, 2), end_tokens=(0,), min_length=9, repetition_penalty=1.5
)
SAMPLING = SamplingParams(temperature=0.5, top_k=3)


def ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


KINDS: list[StepKind] = [
    Dense(),
    Tree(TOKENS, TOKENS + 1, b"\x01\xff"),
    Tree(TOKENS, TOKENS + 1, b""),
    Extend(ints(6, 5), b"\x00", b"\x01", 300),
    Extend(ints(6), None, None, 0),
    Extend(ints(6), None, None, 300, chain=1),
    Fork(ints(0, 0), ints(6, 1), 256),
    Pairs(TOKENS, TOKENS % 2),
]


def step(kind: StepKind) -> Step:
    scored = ScorePositions()
    scored.add(1, ints(0, 2), ints(7, 8), 5)
    return Step.of(TOKENS, 11, kind, scored)


def round_trip(message: Any) -> Any:
    """Encode and decode a message."""
    return calls.decode(calls.encode(message))


def assert_equal(here: Any, there: Any) -> None:
    """Assert that two records are equal, including the dtypes of arrays."""
    assert type(here) is type(there)
    for name in here.__dataclass_fields__:
        before, after = getattr(here, name), getattr(there, name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        elif hasattr(before, "__dataclass_fields__"):
            assert_equal(before, after)
        else:
            assert before == after, name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_step_round_trips_without_owners(kind: StepKind) -> None:
    here = step(kind)
    call = round_trip(calls.Submit(calls.StepPayload.of(here)))
    there = call.step.step()
    no_owners = np.zeros_like(here.owners)
    assert_equal(Step(here.tokens, 0, kind, here.rows, here.positions, here.targets, no_owners), there)
    assert there.shape == here.shape


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_plan_round_trips_the_states_its_steps_start_from(kind: StepKind) -> None:
    (there,) = round_trip(calls.StartPlan.of([step(kind)])).steps()
    assert type(there.kind) is type(kind)
    for name in ("prefix", "before", "after", "capacity"):
        assert getattr(there.kind, name, None) == getattr(kind, name, None)
    assert len(calls.encode(calls.StartPlan.of([step(kind)]))) < 150


def test_sampling_metadata_round_trips() -> None:
    here = SamplingMetadata(TokenChoice(SAMPLING), [2**62 - 1, 0], ints(4, 0))
    call = round_trip(calls.NextTokensCall(calls.StepPayload.of(step(Dense())), calls.SamplingPayload.of(here)))
    assert_equal(here, call.metadata.metadata())
    processed = SamplingMetadata(TokenChoice(None, PROCESSING), [0], ints(4), [ints(7, 8, 9)])
    call = round_trip(calls.NextTokensCall(calls.StepPayload.of(step(Dense())), calls.SamplingPayload.of(processed)))
    assert call.metadata.metadata().choice == processed.choice
    np.testing.assert_array_equal(call.metadata.metadata().texts, processed.texts)
    assert round_trip(calls.NextTokensCall(calls.StepPayload.of(step(Dense())), None)).metadata is None


@pytest.mark.parametrize(
    "message",
    [
        calls.CountRows(512, 16),
        calls.StartDecoding(16, 512, GREEDY),
        calls.StartDecoding(16, 512, TokenChoice(SAMPLING)),
        calls.StartDecoding(16, 512, TokenChoice(None, PROCESSING)),
        calls.Put(3, 1, calls.Array.of(ints(1, 2, 3)), 2**62 - 1, 5),
        calls.Decode(calls.Array.of(np.array([True, False]))),
        calls.Narrow([2, 0]),
        calls.HalveBudget(),
        calls.FailureConfirmed(),
        calls.Load("0.1.0", ModelSpec(tag="demo", arguments="{}"), "/a/api.py", "00ff"),
        calls.MaxLength(2048),
        calls.Budget(StepBudget(tokens=1024, row_unit=2)),
        calls.LoadedModelInfo("trees", "pairs", "forks", 264, None, "float32"),
        calls.LoadFailed(ErrorReport(code=ModelCallError.code, message="boom", traceback="line 3")),
        calls.Failed("out-of-device-memory"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_message_round_trips(message: Any) -> None:
    assert round_trip(message) == message


def test_arrays_keep_their_dtype_and_shape() -> None:
    for array in (TOKENS, TOKENS[:, :0], np.array([True, False])):
        there = round_trip(calls.Decode(calls.Array.of(array))).active.array()
        assert (there.dtype, there.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(there, array)


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
def test_malformed_message_is_rejected(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="cannot decode a message"):
        calls.decode(data)


def test_array_with_a_wrong_size_and_step_without_arrays_are_rejected() -> None:
    with pytest.raises(MalformedMessage, match=r"<i4\[2\] has 4 bytes instead of 8"):
        calls.Array("<i4", [2], b"\0" * 4).array()
    with pytest.raises(MalformedMessage, match="of kind fork has 1 arrays"):
        calls.KindPayload("fork", [calls.Array.of(ints(1))]).step_kind()
