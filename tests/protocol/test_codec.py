"""The codec: every message round-trips, and untrusted bytes raise a typed error and have no other effect."""

import contextlib
import inspect
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from msgspec import Meta, Struct
from numpy.typing import NDArray

from birdie_zmq import types
from birdie_zmq.errors import MalformedMessage, MessageTooLarge, ProtocolError, VersionMismatch
from birdie_zmq.protocol import codec
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.arrays import pack_array
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.limits import MAX_ELEMENTS, MAX_MAP_ENTRIES
from birdie_zmq.types import (
    Answers,
    Count,
    Duration,
    ErrorReport,
    Fraction,
    GenerateWork,
    GenerationParams,
    Lengths,
    LogitBias,
    LogLikelihoodWork,
    ModelSpec,
    Name,
    Penalty,
    PositiveCount,
    PositiveFraction,
    RandomKey,
    RollingWork,
    SamplingParams,
    Scores,
    Seconds,
    StepLimits,
    Temperature,
    Texts,
    TokenBias,
    TokenIds,
    Work,
)

RECORDS: tuple[type[Struct], ...] = get_args(m.Message)
ANOTHER_VERSION = m.WIRE_VERSION + 1

decode = decoder(m.Message)
few_examples = settings(deadline=None, max_examples=20)
many_examples = settings(deadline=None, max_examples=300)


# --- Messages of every kind ------------------------------------------------------------------------------------------

TEXT = st.text(max_size=8)
GIVEN = get_type_hints(GenerationParams, include_extras=True)["given"]
LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**64 - 1),
    str: TEXT,
    Count: st.integers(0, 2**53 - 1),
    PositiveCount: st.integers(1, 2**53 - 1),
    Seconds: st.floats(0, 1e9, exclude_min=True, exclude_max=True),
    Duration: st.floats(0, 1e9, exclude_max=True),
    RandomKey: st.integers(0, 2**62 - 1),
    Temperature: st.floats(0, 1e9, exclude_min=True, exclude_max=True),
    PositiveFraction: st.floats(0, 1, exclude_min=True),
    Fraction: st.floats(0, 1),
    Annotated[float, Meta(ge=0)]: st.floats(0, allow_infinity=False),
    Name: TEXT,
    Lengths: st.lists(st.integers(0, 2**53 - 1), max_size=3).map(tuple),
    TokenIds: st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
    TokenBias: st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-1e9, 1e9)), max_size=3).map(tuple),
    LogitBias: st.floats(-1e9, 1e9),
    Penalty: st.floats(0, 1e9, exclude_min=True),
    GIVEN: st.lists(TEXT, max_size=3).map(tuple),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a type as the records declare it."""
    if kind in LEAVES:
        leaf: st.SearchStrategy[Any] = LEAVES[kind]
        return leaf
    if inspect.isclass(kind) and issubclass(kind, Struct):
        if kind is GenerateWork:
            return generate_work
        if kind is Scores:
            return scores
        fields = get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{name: values_of(fields[name]) for name in kind.__struct_fields__})
    arguments = get_args(kind)
    match get_origin(kind):
        case origin if origin is Union or origin is UnionType:
            return st.one_of(*map(values_of, arguments))
        case origin if origin is Literal:
            return st.sampled_from(arguments)
        case origin if origin is list:
            return st.lists(values_of(arguments[0]), max_size=3)
        case origin if origin is dict:
            return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
        case origin if origin is tuple and arguments[-1] is ...:
            return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
        case origin if origin is tuple:
            return st.tuples(*map(values_of, arguments))
        case origin if origin is np.ndarray:
            return npst.arrays(get_args(arguments[1])[0], st.integers(0, 3))
    raise TypeError(f"no strategy for {kind}")


def with_keys(settings: GenerationParams) -> st.SearchStrategy[GenerateWork]:
    """Return a strategy for prompts, each with its random key if it is sampled."""
    prompts = st.lists(st.tuples(TEXT, values_of(RandomKey)), max_size=3)
    return prompts.map(
        lambda keyed_prompts: GenerateWork(
            prompts=[text for text, _ in keyed_prompts],
            settings=settings,
            keys=[key for _, key in keyed_prompts] if settings.sampling else [],
        )
    )


scores = st.lists(st.tuples(st.floats(), st.booleans()), max_size=3).map(
    lambda pairs: Scores(
        loglikelihoods=np.array([number for number, _ in pairs]), greedy=np.array([flag for _, flag in pairs], np.bool_)
    )
)
generate_work = values_of(GenerationParams).flatmap(with_keys)
messages = st.one_of(*map(values_of, RECORDS))


def content(value: Any) -> Any:
    """Return a record as a value that compares by its content, arrays bit for bit."""
    if isinstance(value, Struct):
        return type(value), {name: content(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return value


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
@few_examples
@given(data=st.data())
def test_messages_round_trip(record: type[Struct], data: st.DataObject) -> None:
    message = data.draw(values_of(record))
    assert content(decode(encode(message))) == content(message)


def test_every_record_is_tested() -> None:
    tagged = {
        record
        for record in (*vars(m).values(), *vars(types).values())
        if inspect.isclass(record) and issubclass(record, Struct) and record.__struct_config__.tag is not None
    }
    assert tagged == {*RECORDS, *get_args(Work), *get_args(Answers)}


@pytest.mark.parametrize(("sampling", "keys"), [(None, [1]), (SamplingParams(), []), (SamplingParams(), [1, 2])])
def test_sampled_prompts_have_one_key_each(sampling: SamplingParams | None, keys: list[int]) -> None:
    work = GenerateWork(prompts=["a"], settings=GenerationParams(sampling=sampling), keys=[1] if sampling else [])
    message = m.Submit(batch=0, model=ModelSpec(tag="demo"), work=work)
    frame = msgpack.unpackb(encode(message))
    frame[1]["work"]["keys"] = keys

    with pytest.raises(MalformedMessage, match=r"1 prompts need . keys"):
        decode(msgpack.packb(frame))


def test_select_keeps_the_random_keys() -> None:
    settings = GenerationParams(sampling=SamplingParams())
    work = GenerateWork(prompts=["a", "b", "c"], settings=settings, keys=[1, 2, 3])

    assert work.select([2, 0]) == GenerateWork(prompts=["c", "a"], settings=settings, keys=[3, 1])


def test_non_finite_scores_round_trip() -> None:
    scores = Scores(loglikelihoods=np.array([np.nan, -np.inf, -0.0]), greedy=np.array([False, True, True]))
    message = m.LeaseAnswered(lease=1, indices=np.arange(3, dtype=np.int32), answers=scores)
    assert content(decode(encode(message))) == content(message)


# --- Encoding errors -------------------------------------------------------------------------------------------------

PING = encode(m.Ping())
SUBMIT = m.Submit(
    batch=7,
    model=ModelSpec(tag="demo", arguments='{"seed": 1}'),
    work=LogLikelihoodWork(pairs=[("The sky is", " blue"), ("", "Once")]),
    limits=StepLimits(max_rows=8),
)
SCORES = Scores(loglikelihoods=np.array([-1.5, -0.25]), greedy=np.array([True, False]))
ANSWERED = m.Answered(batch=7, indices=np.array([1, 0], np.int32), answers=SCORES)


def rolling(text: str) -> m.Submit:
    return m.Submit(batch=0, model=ModelSpec(tag="demo"), work=RollingWork(texts=[text]))


def test_a_lone_surrogate_cannot_be_sent() -> None:
    with pytest.raises(MalformedMessage, match=r"this Submit cannot be sent.*surrogate"):
        encode(rolling("\ud800"))


def test_a_number_beyond_64_bits_cannot_be_sent() -> None:
    with pytest.raises(MalformedMessage, match="this Pong cannot be sent"):
        encode(m.Pong(workers=2**64))


def test_an_array_of_another_type_cannot_be_sent() -> None:
    indices: NDArray[Any] = np.zeros(1, np.int64)
    with pytest.raises(MalformedMessage, match="int64"):
        encode(m.Answered(batch=0, indices=indices, answers=Texts(texts=[""])))


def test_a_message_over_the_limit_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", len(encode(rolling("x" * 100))))
    encode(rolling("x" * 100))
    with pytest.raises(MessageTooLarge, match="a Submit of"):
        encode(rolling("x" * 101))


# --- Decoding errors -------------------------------------------------------------------------------------------------


def frame_of(body: object, version: object = m.WIRE_VERSION) -> bytes:
    frame: bytes = msgpack.packb([version, body])
    return frame


def body_of(message: m.Message) -> dict[str, Any]:
    """Return the body of a message's frame, to be modified."""
    body: dict[str, Any] = msgpack.unpackb(encode(message))[1]
    return body


def test_a_frame_over_the_limit_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = encode(SUBMIT)
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", len(frame))
    decode(frame)
    with pytest.raises(MessageTooLarge, match="over the limit"):
        decode(frame + b"\0")


@pytest.mark.parametrize("message", [SUBMIT, ANSWERED], ids=["submit", "answered"])
def test_every_truncation_is_malformed(message: m.Message) -> None:
    frame = encode(message)
    for length in range(len(frame)):
        with pytest.raises(MalformedMessage):
            decode(frame[:length])


def test_trailing_data_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        decode(PING + PING)


@pytest.mark.parametrize(
    "envelope",
    [
        None,
        1,
        "ping",
        {},
        [],
        [1],
        [1, {"type": "ping"}, 0],
        ["1", {"type": "ping"}],
        [True, {"type": "ping"}],
        [m.WIRE_VERSION, []],
    ],
    ids=repr,
)
def test_an_invalid_envelope_is_malformed(envelope: object) -> None:
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(envelope))


def test_a_version_mismatch_names_both_versions() -> None:
    with pytest.raises(VersionMismatch, match=f"version {ANOTHER_VERSION}, .* version {m.WIRE_VERSION}"):
        decode(frame_of({"type": "ping", "mood": "new"}, ANOTHER_VERSION))


def test_a_refusal_of_another_version_is_decoded() -> None:
    refusal = m.Refusal(error=ErrorReport(code=VersionMismatch.code, message="install the same on both sides"))
    assert decode(frame_of(body_of(refusal), ANOTHER_VERSION)) == refusal


@pytest.mark.parametrize("version", [m.WIRE_VERSION, ANOTHER_VERSION])
def test_an_array_in_place_of_the_type_is_a_protocol_error(version: int) -> None:
    with pytest.raises(ProtocolError):
        decode(frame_of({"type": as_received(np.zeros(2))}, version))


def test_a_message_of_another_conversation_is_rejected() -> None:
    with pytest.raises(MalformedMessage, match="lease-done"):
        decoder(m.ClientMessage)(encode(m.LeaseDone(lease=1)))


def as_received(array: NDArray[Any]) -> dict[bytes, Any]:
    """Return the map of an array as a receiver gets it."""
    packed: dict[bytes, Any] = msgpack.unpackb(msgpack.packb(pack_array(array)))
    return packed


@pytest.mark.parametrize(
    ("message", "path", "value"),
    [
        (SUBMIT, "batch", "7"),
        (SUBMIT, "batch", -1),
        (SUBMIT, "batch", 2**53),
        (SUBMIT, "batch", True),
        (SUBMIT, "batch", 7.5),
        (SUBMIT, "batch", None),
        (SUBMIT, "batch", as_received(np.zeros(1))),
        (SUBMIT, "model", []),
        (SUBMIT, "model.tag", b"demo"),
        (SUBMIT, "model.tag", "x" * 4097),
        (SUBMIT, "model.arguments", {}),
        (SUBMIT, "work.type", "tell-me-a-secret"),
        (SUBMIT, "work.pairs", "ab"),
        (SUBMIT, "work.pairs", [["a", "b"], ["a"]]),
        (SUBMIT, "limits.max_rows", 0),
        (ANSWERED, "indices", [0, 1]),
        (ANSWERED, "indices", as_received(np.zeros(2))),
        (ANSWERED, "indices", as_received(np.zeros((2, 1), np.int32))),
        (ANSWERED, "answers.loglikelihoods", as_received(np.zeros(2, np.float32))),
        (ANSWERED, "answers.greedy", None),
        (m.ModelLoaded(seconds=1.0), "seconds", float("nan")),
        (m.SessionOpened(package_version="1", timeout_s=1.0), "timeout_s", float("inf")),
        (m.Notice(batch=1, level="info", text=""), "level", "error"),
    ],
)
def test_an_invalid_field_is_named(message: m.Message, path: str, value: object) -> None:
    body = record = body_of(message)
    *outer, field = path.split(".")
    for name in outer:
        record = record[name]
    record[field] = value
    where = r"\." + path.removesuffix(".type").replace(".", r"\.")
    with pytest.raises(MalformedMessage, match=rf"invalid field.*\${where}"):
        decode(frame_of(body))


def test_a_missing_field_is_named() -> None:
    with pytest.raises(MalformedMessage, match="workers"):
        decode(frame_of({"type": "pong"}))


def test_an_unknown_field_is_rejected() -> None:
    with pytest.raises(MalformedMessage, match="unknown field"):
        decode(frame_of({"type": "ping", "mood": "good"}))


@pytest.mark.parametrize(
    "body",
    [
        {"type": "x" * 10_000},
        {"type": "ping", "x" * 10_000: 1},
        {b"nd": True, b"\0" * 10_000: 1},
        {**as_received(np.zeros(1)), b"shape": [1] * 10_000},
    ],
    ids=["type", "field", "array-key", "array-shape"],
)
def test_error_messages_are_short_whatever_the_frame(body: object) -> None:
    with pytest.raises(MalformedMessage) as raised:
        decode(frame_of(body))
    assert len(raised.value.message) < 1_000


# --- Malicious frames ------------------------------------------------------------------------------------------------


class MakeFolder:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def array_frame(kind: bytes, dtype: object, shape: list[int], data: bytes) -> bytes:
    """Return a frame that is valid except for its array."""
    indices = {b"nd": True, b"type": dtype, b"kind": kind, b"shape": shape, b"data": data}
    return frame_of({**body_of(ANSWERED), "indices": indices})


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    frame = array_frame(b"O", "|O", [1], pickle.dumps(MakeFolder(marker)))
    msgpack.unpackb(frame, object_hook=msgpack_numpy.decode)
    assert marker.exists(), "the payload has no effect on an unsafe decoder either"
    marker.rmdir()
    with pytest.raises(MalformedMessage):
        decode(frame)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "dtype"), [(b"", "|O"), (b"V", [["field", "|O"]]), (b"V", [["field", "|O", [1]]])], ids=repr
)
def test_untrusted_bytes_never_become_object_pointers(kind: bytes, dtype: object) -> None:
    with pytest.raises(MalformedMessage):
        decode(array_frame(kind, dtype, [1], b"\x41" * 8))


def test_zero_size_elements_cannot_claim_a_huge_shape() -> None:
    frame = array_frame(b"", "|S0", [10**12], b"")
    decoded = msgpack.unpackb(frame, object_hook=msgpack_numpy.decode)
    assert decoded[1]["indices"].shape == (10**12,), "the payload has no effect on an unsafe decoder either"
    with pytest.raises(MalformedMessage):
        decode(frame)


def packed_extension(code: int, length: int) -> bytes:
    frame: bytes = msgpack.packb([m.WIRE_VERSION, msgpack.ExtType(code, bytes(length))])
    return frame


@pytest.mark.parametrize(
    "frame",
    [packed_extension(5, 0), packed_extension(5, 1), packed_extension(127, 300), frame_of(msgpack.Timestamp(1, 1))],
    ids=["empty", "small", "large", "timestamp"],
)
def test_an_extension_type_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedMessage, match="ext"):
        decode(frame)


def test_a_list_as_a_map_key_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="not valid msgpack"):
        decode(b"\x92\x01\x81\x90\x01")


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="not valid msgpack"):
        decode(b"\x92\x01" + b"\x91" * 100_000 + b"\x90")


def list_of(item: bytes, times: int) -> bytes:
    """Return a msgpack list of packed items."""
    return b"\xdd" + times.to_bytes(4, "big") + item * times


@pytest.mark.parametrize(
    "bomb",
    [
        list_of(b"\x90", 4 * MAX_ELEMENTS),
        list_of(list_of(b"\x90", MAX_ELEMENTS // 4), 16),
        b"\xdd\x00\x0f\xff\xff" * 1_000,
    ],
    ids=["one-long-list", "many-long-lists", "lengths-only"],
)
def test_memory_of_a_frame_is_limited_by_its_elements(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(b"\x92\x01" + bomb)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 128 * MAX_ELEMENTS


def test_a_map_of_too_many_entries_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="not valid msgpack"):
        decode(frame_of({str(i): None for i in range(MAX_MAP_ENTRIES + 1)}))


# --- Random input ----------------------------------------------------------------------------------------------------


def assert_decodes_or_rejects(frame: bytes) -> None:
    """Decode a frame; the result is a message or a ProtocolError, and any other exception fails the test."""
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode(frame), RECORDS)


@many_examples
@given(st.binary(max_size=64))
def test_any_bytes_are_decoded_or_rejected(frame: bytes) -> None:
    assert_decodes_or_rejects(frame)


junk_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=8)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
    | npst.arrays(st.sampled_from(["<i4", "<f8", "|b1"]), st.integers(0, 2)).map(as_received)
)
array_keys = st.sampled_from([b"nd", b"type", b"kind", b"shape", b"data"])
field_names = st.sampled_from(["type", "error", "batch", "lease", "indices", "answers", "model", "work"])
junk = st.recursive(
    junk_leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(array_keys, inner, max_size=5)
        | st.dictionaries(field_names, inner, max_size=4)
    ),
    max_leaves=8,
)


@many_examples
@given(junk, st.sampled_from([m.WIRE_VERSION, ANOTHER_VERSION]))
def test_any_body_is_decoded_or_rejected(body: object, version: int) -> None:
    assert_decodes_or_rejects(frame_of(body, version))


@many_examples
@given(messages, st.data())
def test_a_message_with_an_invalid_field_is_decoded_or_rejected(message: m.Message, data: st.DataObject) -> None:
    body = body_of(message)
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(junk)
    assert_decodes_or_rejects(frame_of(body))


@many_examples
@given(messages, st.data())
def test_a_mutated_frame_is_decoded_or_rejected(message: m.Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(frame)))
        replaced = data.draw(st.integers(0, 4))
        frame[start : start + replaced] = data.draw(st.binary(max_size=4))
    assert_decodes_or_rejects(bytes(frame))
