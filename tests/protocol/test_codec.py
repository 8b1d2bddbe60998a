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
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from birdie_zmq import types
from birdie_zmq.completions import Completion, PackedIds, TokenLogprobs, TopCount
from birdie_zmq.errors import MalformedMessage, MessageTooLarge, ProtocolError, VersionMismatch
from birdie_zmq.protocol import codec
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.items import MAX_ITEMS, Indices, Items, PackedAnswers, PackedWork, WorkKind
from birdie_zmq.protocol.limits import MAX_ELEMENTS, MAX_MAP_ENTRIES
from birdie_zmq.protocol.packing import pack_answers, pack_work, unpack_work
from birdie_zmq.types import (
    Answer,
    Count,
    Duration,
    ErrorReport,
    Fraction,
    GenerateWork,
    GenerationParams,
    LogitBias,
    LogLikelihoodWork,
    ModelDescription,
    ModelSpec,
    Name,
    Penalty,
    PositiveCount,
    PositiveFraction,
    RandomKey,
    RequestArgument,
    RequestArguments,
    RequestArgumentValues,
    RollingWork,
    SamplingParams,
    Seconds,
    StepLimits,
    Temperature,
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
REQUEST_ARGUMENT = st.sampled_from(get_args(RequestArgument))
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
    TokenIds: st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
    TokenBias: st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-1e9, 1e9)), max_size=3).map(tuple),
    LogitBias: st.floats(-1e9, 1e9),
    Penalty: st.floats(0, 1e9, exclude_min=True),
    GIVEN: st.lists(TEXT, max_size=3).map(tuple),
    RequestArguments: st.lists(REQUEST_ARGUMENT, max_size=3).map(tuple),
    RequestArgumentValues: st.lists(st.tuples(REQUEST_ARGUMENT, TEXT), max_size=3).map(tuple),
    Indices: st.lists(st.integers(0, MAX_ITEMS - 1), max_size=3),
    PackedIds: st.integers(0, 3).flatmap(lambda count: st.binary(min_size=4 * count, max_size=4 * count)),
    TopCount: st.integers(0, 20),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a type as the records declare it."""
    if kind in LEAVES:
        leaf: st.SearchStrategy[Any] = LEAVES[kind]
        return leaf
    if inspect.isclass(kind) and issubclass(kind, Struct):
        if kind is GenerateWork:
            return generate_work
        if kind is Completion:
            return completions
        if kind is Items:
            return any_items
        if kind is PackedAnswers:
            return packed_answers
        if kind is PackedWork:
            return packed_work
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


@st.composite
def logprobs_of(draw: st.DrawFn, count: int) -> TokenLogprobs | None:
    """Return the log-probabilities of some tokens, or None."""
    if draw(st.booleans()):
        return None
    top = draw(st.integers(0, 3))
    own, ids, likeliest = (
        draw(st.binary(min_size=size, max_size=size)) for size in (4 * count, *[4 * count * top] * 2)
    )
    return TokenLogprobs(top=top, logprobs=own, top_ids=ids, top_logprobs=likeliest)


@st.composite
def some_completion(draw: st.DrawFn) -> Completion:
    """Return a completion whose arrays have lengths that match."""
    prompt, generated, named = (draw(st.integers(0, 3)) for _ in range(3))
    return Completion(
        error=draw(st.none() | TEXT),
        prompt_ids=draw(st.binary(min_size=4 * prompt, max_size=4 * prompt)),
        prompt_text=draw(TEXT),
        ids=draw(st.binary(min_size=4 * generated, max_size=4 * generated)),
        text=draw(TEXT),
        finish_reason=draw(st.sampled_from([None, "stop", "length"])),
        prompt_logprobs=draw(logprobs_of(max(0, prompt - 1))),
        logprobs=draw(logprobs_of(generated)),
        token_ids=draw(st.binary(min_size=4 * named, max_size=4 * named)),
        token_texts=draw(st.lists(TEXT, min_size=named, max_size=named)),
    )


completions = some_completion()
generate_work = values_of(GenerationParams).flatmap(with_keys)
works = values_of(Work)
ANSWERS: dict[WorkKind, st.SearchStrategy[list[Answer]]] = {
    "loglikelihood": st.lists(st.tuples(st.floats(), st.booleans()), max_size=3),
    "rolling": st.lists(st.floats(), max_size=3),
    "generate": st.lists(TEXT, max_size=3),
    "chat": st.lists(TEXT, max_size=3),
    "describe": st.lists(values_of(ModelDescription), min_size=1, max_size=1),
    "completion": st.lists(completions, max_size=3),
}
answers = st.sampled_from(sorted(ANSWERS)).flatmap(lambda kind: st.tuples(st.just(kind), ANSWERS[kind]))
packed_answers = answers.map(lambda answer: pack_answers(*answer)) | st.builds(
    PackedAnswers, count=st.integers(0, MAX_ITEMS), data=st.binary(max_size=8)
)
any_items = st.lists(st.binary(min_size=1, max_size=8), max_size=3).map(Items.join)
packed_work = works.map(pack_work) | st.builds(
    PackedWork, kind=st.sampled_from(get_args(WorkKind)), items=any_items, shared=st.binary(max_size=8)
)
messages = st.one_of(*map(values_of, RECORDS))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
@few_examples
@given(data=st.data())
def test_messages_round_trip(record: type[Struct], data: st.DataObject) -> None:
    message = data.draw(values_of(record))
    assert decode(encode(message)) == message


def test_every_record_is_tested() -> None:
    tagged = {
        record
        for record in (*vars(m).values(), *vars(types).values())
        if inspect.isclass(record) and issubclass(record, Struct) and record.__struct_config__.tag is not None
    }
    assert tagged == {*RECORDS, *get_args(Work)}


def test_select_keeps_the_random_keys() -> None:
    settings = GenerationParams(sampling=SamplingParams())
    work = GenerateWork(prompts=["a", "b", "c"], settings=settings, keys=[1, 2, 3])

    assert work.select([2, 0]) == GenerateWork(prompts=["c", "a"], settings=settings, keys=[3, 1])


# --- Encoding errors -------------------------------------------------------------------------------------------------

PING = encode(m.Ping())
OPENING = b"\x92" + bytes([m.WIRE_VERSION])
SUBMIT = m.Submit(
    batch=7,
    model=ModelSpec(tag="demo", arguments='{"seed": 1}'),
    work=pack_work(LogLikelihoodWork(pairs=[("The sky is", " blue"), ("", "Once")])),
    limits=StepLimits(max_rows=8),
)
SCORES = pack_answers("loglikelihood", [(-1.5, True), (-0.25, False)])
ANSWERED = m.Answered(batch=7, indices=[1, 0], answers=SCORES)


def rolling(text: str) -> m.Submit:
    return m.Submit(batch=0, model=ModelSpec(tag="demo"), work=pack_work(RollingWork(texts=[text])))


def test_a_lone_surrogate_cannot_be_sent() -> None:
    with pytest.raises(MalformedMessage, match=r"this Notice cannot be sent.*surrogate"):
        encode(m.Notice(batch=0, level="info", text="\ud800"))


def test_a_number_beyond_64_bits_cannot_be_sent() -> None:
    with pytest.raises(MalformedMessage, match="this Pong cannot be sent"):
        encode(m.Pong(workers=2**64))


def test_an_integer_for_a_float_is_sent_as_a_float() -> None:
    frame = encode(m.SessionOpened(package_version="1", timeout_s=2))
    assert frame == encode(m.SessionOpened(package_version="1", timeout_s=2.0))
    assert isinstance(decode(frame).timeout_s, float)


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
def test_a_list_in_place_of_the_type_is_a_protocol_error(version: int) -> None:
    with pytest.raises(ProtocolError):
        decode(frame_of({"type": ["ping"]}, version))


def test_a_message_of_another_conversation_is_rejected() -> None:
    with pytest.raises(MalformedMessage, match="lease-done"):
        decoder(m.ClientMessage)(encode(m.LeaseDone(lease=1)))


@pytest.mark.parametrize(
    ("message", "path", "value"),
    [
        (SUBMIT, "batch", "7"),
        (SUBMIT, "batch", -1),
        (SUBMIT, "batch", 2**53),
        (SUBMIT, "batch", True),
        (SUBMIT, "batch", 7.5),
        (SUBMIT, "batch", None),
        (SUBMIT, "batch", [7]),
        (SUBMIT, "model", []),
        (SUBMIT, "model.tag", b"demo"),
        (SUBMIT, "model.tag", "x" * 4097),
        (SUBMIT, "model.arguments", {}),
        (SUBMIT, "work.kind", "tell-me-a-secret"),
        (SUBMIT, "work.shared", "ab"),
        (SUBMIT, "work.items", [["a", "b"], ["a"]]),
        (SUBMIT, "work.items.data", "ab"),
        (SUBMIT, "work.items.sizes", b"ab"),
        (SUBMIT, "limits.max_rows", 0),
        (ANSWERED, "indices", b"ab"),
        (ANSWERED, "indices", {}),
        (ANSWERED, "indices", 1),
        (ANSWERED, "answers.count", {}),
        (ANSWERED, "answers.data", None),
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
        {b"\0" * 10_000: 1},
        {"type": "pong", "workers": ["x" * 10_000]},
    ],
    ids=["type", "field", "key", "value"],
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


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    payload = pickle.dumps(MakeFolder(marker))
    # The form in which msgpack-numpy encodes an array of objects.
    array = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": payload}
    for indices in (array, payload, [payload]):
        with pytest.raises(MalformedMessage):
            decode(frame_of({**body_of(ANSWERED), "indices": indices}))
    work = PackedWork(kind="rolling", items=Items.join([payload]), shared=payload)
    decode(encode(m.Submit(batch=1, model=ModelSpec(tag="demo"), work=work)))
    with pytest.raises(MalformedMessage):
        unpack_work(work)
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists(), "the payload has no effect where it is loaded either"


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
    with pytest.raises(MalformedMessage, match="Expected `str`"):
        decode(OPENING + b"\x81\x90\x01")


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="not valid msgpack"):
        decode(OPENING + b"\x91" * 100_000 + b"\x90")


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
            decode(OPENING + bomb)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 128 * MAX_ELEMENTS


def test_a_map_of_many_entries_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="unknown field"):
        decode(frame_of({"type": "ping", **{str(i): None for i in range(MAX_MAP_ENTRIES + 1)}}))


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
    | st.lists(st.integers(-2, 2**32), max_size=4)
)
field_names = st.sampled_from(["type", "error", "batch", "lease", "indices", "answers", "model", "work"])
junk = st.recursive(
    junk_leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(0, 9) | st.binary(max_size=4), inner, max_size=5)
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
