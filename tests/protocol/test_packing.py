"""Packing: work and answers round-trip, and invalid items are rejected with an error that quotes no text."""

from __future__ import annotations

import tracemalloc
from typing import Any, get_args

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdie_zmq.completions import CompletionWork
from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol.arrays import pack_array
from birdie_zmq.protocol.items import MAX_ITEM_BYTES, MAX_ITEMS, Items, PackedAnswers, PackedWork, WorkKind
from birdie_zmq.protocol.limits import MAX_ELEMENTS, MAX_MAP_ENTRIES, MAX_TEXT_BYTES
from birdie_zmq.protocol.packing import kind_of, pack_answers, pack_work, unpack_answers, unpack_work
from birdie_zmq.types import (
    ChatWork,
    DescribeWork,
    ErrorReport,
    GenerateWork,
    GenerationParams,
    LogLikelihoodWork,
    RollingWork,
    SamplingParams,
    Work,
)
from tests.protocol.test_codec import ANSWERS, values_of, works

SECRET = "correct-horse-battery-staple"
few_examples = settings(deadline=None, max_examples=30)


# --- Valid items -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", get_args(Work), ids=lambda record: record.__name__)
@few_examples
@given(data=st.data())
def test_work_round_trips(record: type[Work], data: st.DataObject) -> None:
    work = data.draw(values_of(record))
    packed = pack_work(work)

    assert unpack_work(packed) == work
    assert packed.kind == kind_of(work)
    assert len(packed) == len(work)


@pytest.mark.parametrize("kind", get_args(WorkKind))
@few_examples
@given(data=st.data())
def test_answers_round_trip(kind: WorkKind, data: st.DataObject) -> None:
    given_answers = data.draw(ANSWERS[kind])

    # Compared as text, since NaN is not equal to itself, and 0.0 is equal to -0.0.
    assert repr(unpack_answers(kind, pack_answers(kind, given_answers))) == repr(given_answers)


@few_examples
@given(works.filter(lambda work: not isinstance(work, DescribeWork)), st.data())
def test_a_selection_of_packed_work_is_the_packed_selection(work: Work, data: st.DataObject) -> None:
    positions = data.draw(st.permutations(range(len(work))))[: data.draw(st.integers(0, len(work)))]

    assert pack_work(work).select(positions) == pack_work(work.select(positions))


@pytest.mark.parametrize("text", ["\0", "\u2028", "\ufeff", "\N{HUGGING FACE}", "a" * 70_000])
def test_any_valid_text_round_trips(text: str) -> None:
    work = LogLikelihoodWork(pairs=[(text, text)])
    assert unpack_work(pack_work(work)) == work
    assert unpack_answers("generate", pack_answers("generate", [text])) == [text]


def test_an_integer_is_a_valid_score() -> None:
    assert repr(unpack_answers("rolling", pack_answers("rolling", [0]))) == "[0.0]"


# --- Invalid items ---------------------------------------------------------------------------------------------------


def work_of(kind: WorkKind, *items: bytes, shared: bytes = b"") -> PackedWork:
    return PackedWork(kind=kind, items=Items.join(items), shared=shared)


def rejection_of_work(work: PackedWork) -> str:
    """Return the error for invalid work, as it would be sent."""
    with pytest.raises(MalformedMessage) as raised:
        unpack_work(work)
    return reported(raised.value)


def rejection_of_answers(kind: WorkKind, *items: bytes) -> str:
    """Return the error for invalid answers, as it would be sent."""
    if kind in ("loglikelihood", "rolling"):
        data = msgpack.packb(list(map(msgpack.unpackb, items)))
    else:
        data = msgspec.msgpack.encode(Items.join(items))
    return rejection_of_answer_data(kind, len(items), data)


def rejection_of_answer_data(kind: WorkKind, count: int, data: bytes) -> str:
    with pytest.raises(MalformedMessage) as raised:
        unpack_answers(kind, PackedAnswers(count=count, data=data))
    return reported(raised.value)


def reported(error: MalformedMessage) -> str:
    report = ErrorReport.of(error)
    assert report.traceback is None
    assert "\n" not in report.message
    assert len(report.message) < 1_000
    return report.message


GREEDY = pack_work(GenerateWork(prompts=[], settings=GenerationParams())).shared
TEMPLATE_CALL = msgpack.packb({"add_generation_prompt": True, "template_args": "{}"})
COMPLETION_PARAMS = pack_work(CompletionWork(prompts=[])).shared
SHARED: dict[WorkKind, bytes] = {"generate": GREEDY, "chat": TEMPLATE_CALL, "completion": COMPLETION_PARAMS}
VALUES: dict[WorkKind, Any] = {
    "loglikelihood": ("a", "b"),
    "rolling": "a",
    "generate": ("a", None),
    "chat": [{"role": "user", "content": "a"}],
    "describe": None,
    "completion": ("a", b"", 1, b"", 0),
}
OTHER_TYPES: dict[WorkKind, list[Any]] = {
    "loglikelihood": [
        SECRET,
        (SECRET,),
        (SECRET, SECRET, SECRET),
        (SECRET, None),
        (b"a", SECRET),
        {SECRET: SECRET},
        None,
    ],
    "rolling": [1, None, SECRET.encode(), [SECRET], {SECRET: SECRET}, msgpack.ExtType(1, SECRET.encode())],
    "generate": [SECRET, (SECRET, 1.5), (SECRET, True), (SECRET, -1), (SECRET, 2**62), (SECRET, SECRET), (SECRET,)],
    "chat": [
        SECRET,
        {SECRET: SECRET},
        [SECRET],
        [{SECRET: 1}],
        [{SECRET: {SECRET: SECRET}}],
        [{1: SECRET}],
        [[SECRET]],
    ],
    "describe": [SECRET, [], {SECRET: SECRET}, 0, False],
    "completion": [
        SECRET,
        {SECRET: SECRET},
        (1,),
        (SECRET, SECRET),
        (SECRET, b"abc"),
        (SECRET, b"", -1),
        (SECRET, b"", 1, b"abc"),
        (SECRET, b"", 1, b"", -1),
        (SECRET, b"", 1, b"", 0, SECRET),
    ],
}
OTHER_ANSWERS: dict[WorkKind, list[Any]] = {
    "loglikelihood": [1.5, (1.5,), (1.5, 1), (SECRET, True), (1.5, True, SECRET), {SECRET: SECRET}, None],
    "rolling": [SECRET, None, True, [1.5]],
    "generate": [1, None, SECRET.encode(), [SECRET]],
    "chat": [1, None, SECRET.encode(), [SECRET]],
    "describe": [SECRET, {}, {SECRET: SECRET}, {"model": {"tag": 1}}, [SECRET]],
    "completion": [
        SECRET,
        {SECRET: SECRET},
        {"ids": SECRET},
        {"ids": b"abc"},
        {"token_texts": [SECRET]},
        {"finish_reason": SECRET},
        {"ids": b"abcd", "logprobs": {"top": 1, "logprobs": b"abcd"}},
        {"ids": b"abcd", "logprobs": {"top": 21}},
        {"ids": b"abcd", "logprobs": {"top": 0}},
    ],
}


@pytest.mark.parametrize("kind", get_args(WorkKind))
def test_an_item_of_another_type_is_rejected(kind: WorkKind) -> None:
    shared = SHARED.get(kind, b"")
    unpack_work(work_of(kind, msgpack.packb(VALUES[kind]), shared=shared))
    for value in OTHER_TYPES[kind]:
        for other_items in ([], [msgpack.packb(VALUES[kind])]):
            work = work_of(kind, *other_items, msgpack.packb(value), shared=shared)
            assert SECRET not in rejection_of_work(work), value


@pytest.mark.parametrize("kind", get_args(WorkKind))
def test_an_answer_of_another_type_is_rejected(kind: WorkKind) -> None:
    for value in OTHER_ANSWERS[kind]:
        assert SECRET not in rejection_of_answers(kind, msgpack.packb(value)), value


@pytest.mark.parametrize("kind", get_args(WorkKind))
def test_a_truncated_item_or_one_with_trailing_bytes_is_rejected(kind: WorkKind) -> None:
    item, shared = msgpack.packb(VALUES[kind]), SHARED.get(kind, b"")
    invalid = [item + b"\xc0", item + item, b"\xc1", *(item[:length] for length in range(1, len(item)))]
    for other in invalid:
        rejection_of_work(work_of(kind, other, shared=shared))


@pytest.mark.parametrize("kind", sorted(set(get_args(WorkKind)) - {"describe"}))
def test_items_whose_sizes_are_shifted_are_rejected(kind: WorkKind) -> None:
    """Their joined bytes are valid, but an item that is leased alone would be another one."""
    items, shared = [msgpack.packb(VALUES[kind])] * 2, SHARED.get(kind, b"")
    data = b"".join(items)
    unpack_work(work_of(kind, *items, shared=shared))
    rejection_of_work(work_of(kind, data[: len(items[0]) + 1], data[len(items[0]) + 1 :], shared=shared))
    rejection_of_work(work_of(kind, data, shared=shared))


@pytest.mark.parametrize("invalid", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"], ids=repr)
@pytest.mark.parametrize("kind", ["loglikelihood", "rolling", "generate", "chat"])
def test_invalid_utf8_is_rejected_without_quoting_the_text(kind: WorkKind, invalid: bytes) -> None:
    """The bytes are an impossible byte, an overlong form, a surrogate, and a code point beyond Unicode."""
    text = SECRET.encode() + invalid
    packed = b"\xd9" + bytes([len(text)]) + text
    item = {
        "loglikelihood": b"\x92\xa1a" + packed,
        "rolling": packed,
        "generate": b"\x92" + packed + b"\xc0",
        "chat": b"\x91\x81" + packed + b"\xa1a",
    }[kind]
    assert SECRET not in rejection_of_work(work_of(kind, item, shared=SHARED.get(kind, b"")))
    assert SECRET not in rejection_of_answers("generate", packed)


@pytest.mark.parametrize("items", [0, 2])
def test_a_request_for_the_description_has_one_item(items: int) -> None:
    assert "other than one item" in rejection_of_work(work_of("describe", *[b"\xc0"] * items))


# --- Arrays of scores ------------------------------------------------------------------------------------------------

NATS, GREEDY_FLAGS = pack_array(np.array([-1.5, -0.5])), pack_array(np.array([True, False]))


def test_scores_are_arrays_of_msgpack_numpy() -> None:
    packed = pack_answers("loglikelihood", [(-1.5, True), (-0.5, False)])

    assert packed.count == 2
    assert packed.data == msgpack.packb([NATS, GREEDY_FLAGS])
    assert pack_answers("rolling", [-1.5, -0.5]).data == msgpack.packb([NATS])


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ([NATS], "arrays of <f8 and |b1"),
        ([GREEDY_FLAGS, NATS], "arrays of <f8 and |b1"),
        ([NATS, NATS], "arrays of <f8 and |b1"),
        ([NATS, GREEDY_FLAGS, GREEDY_FLAGS], "arrays of <f8 and |b1"),
        ([NATS, GREEDY_FLAGS, 5], "arrays of <f8 and |b1"),
        ([5, NATS, GREEDY_FLAGS], "arrays of <f8 and |b1"),
        ([NATS, None], "arrays of <f8 and |b1"),
        ([pack_array(np.zeros((1, 2))), GREEDY_FLAGS], "arrays of <f8 and |b1"),
        (NATS, "arrays of <f8 and |b1"),
        ([NATS, pack_array(np.array([True]))], "different lengths"),
        ([pack_array(np.zeros(3)), pack_array(np.zeros(3, np.bool_))], "3 answers instead of 2"),
        ([{**NATS, b"shape": [3]}, GREEDY_FLAGS], "does not match its shape"),
        ([{**NATS, b"kind": b"O"}, GREEDY_FLAGS], "plain array"),
        ([NATS, {**GREEDY_FLAGS, b"data": b"\1\2"}], "neither 0 nor 1"),
    ],
)
def test_other_arrays_are_rejected(arrays: object, error: str) -> None:
    assert error in rejection_of_answer_data("loglikelihood", 2, msgpack.packb(arrays))


def test_the_elements_of_arrays_are_limited() -> None:
    large = pack_array(np.zeros(MAX_ELEMENTS))
    assert "elements" in rejection_of_answer_data("rolling", MAX_ITEMS, msgpack.packb([large]))


@pytest.mark.parametrize("kind", get_args(WorkKind))
@few_examples
@given(data=st.data())
def test_answers_have_their_number(kind: WorkKind, data: st.DataObject) -> None:
    packed = pack_answers(kind, data.draw(ANSWERS[kind]))
    rejection_of_answer_data(kind, packed.count + 1, packed.data)


# --- Parameters that items share -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loglikelihood", "rolling", "describe"])
def test_work_without_parameters_rejects_them(kind: WorkKind) -> None:
    assert "has no parameters" in rejection_of_work(work_of(kind, msgpack.packb(VALUES[kind]), shared=b"\xc0"))


@pytest.mark.parametrize("kind", ["generate", "chat"])
def test_malformed_parameters_are_rejected(kind: WorkKind) -> None:
    valid = SHARED[kind]
    fields = msgpack.unpackb(valid)
    field = sorted(fields)[0]
    invalid = [
        *(valid[:length] for length in range(len(valid))),
        valid + b"\xc0",
        msgpack.packb({**fields, SECRET: SECRET}),
        msgpack.packb({**fields, field: {SECRET: SECRET}}),
        msgpack.packb([SECRET]),
        msgpack.packb(msgpack.ExtType(1, SECRET.encode())),
        b"\x82" + (msgpack.packb(field) + msgpack.packb(fields[field])) * 2,
        msgpack.packb({f"{SECRET} {number}": 1 for number in range(MAX_MAP_ENTRIES + 1)}),
        msgpack.packb([None] * (MAX_ELEMENTS + 1)),
        msgpack.packb({**fields, field: "a" * (MAX_TEXT_BYTES + 1)}),
    ]
    for shared in invalid:
        assert SECRET not in rejection_of_work(work_of(kind, msgpack.packb(VALUES[kind]), shared=shared))


@pytest.mark.parametrize(("sampling", "key"), [(None, 1), (SamplingParams(), None)])
def test_each_prompt_has_a_key_exactly_if_it_is_sampled(sampling: SamplingParams | None, key: int | None) -> None:
    work = GenerateWork(
        prompts=["a", "b"], settings=GenerationParams(sampling=sampling), keys=[1, 2] if sampling else []
    )
    packed = pack_work(work)
    first = packed.items.split()[0]
    changed = work_of("generate", first, msgpack.packb((SECRET, key)), shared=packed.shared)

    assert SECRET not in (error := rejection_of_work(changed))
    assert f"2 prompts need {2 if sampling else 0} keys, not 1" in error


# --- Nested items ----------------------------------------------------------------------------------------------------

EMPTY_MAPS = MAX_ELEMENTS // 8
CONVERSATION_OF_EMPTY_MAPS = b"\xdd" + EMPTY_MAPS.to_bytes(4, "big") + b"\x80" * EMPTY_MAPS
BOMBS = {
    "one-long-conversation": [b"\xdd" + MAX_ELEMENTS.to_bytes(4, "big") + b"\x80" * MAX_ELEMENTS],
    "long-conversations": [CONVERSATION_OF_EMPTY_MAPS] * 64,
    "short-conversations": [b"\x9f" + b"\x80" * 15] * MAX_ITEMS,
    "lengths-only": [b"\xdd\x00\x0f\xff\xff" * 1_000],
    "lengths-and-data": [b"\xdd\x00\x0f\xff\xff" * 1_000 + b"\xc0" * MAX_ELEMENTS],
    "deep": [b"\x91" * MAX_ELEMENTS + b"\x90"],
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_of_nested_items_is_limited_by_the_elements_of_all(bomb: str) -> None:
    work = work_of("chat", *BOMBS[bomb], shared=TEMPLATE_CALL)
    tracemalloc.start()
    try:
        rejection_of_work(work)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 128 * MAX_ELEMENTS


@pytest.mark.parametrize("kind", ["loglikelihood", "rolling", "generate"])
def test_a_length_that_an_item_does_not_have_allocates_nothing(kind: WorkKind) -> None:
    items = [b"\xdd\x7f\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\x92\xdb\x00\xff\xff\xff"]
    tracemalloc.start()
    try:
        for item in items:
            rejection_of_work(work_of(kind, item, shared=SHARED.get(kind, b"")))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


def test_many_conversations_are_decoded_in_linear_time() -> None:
    work = ChatWork(conversations=[[{"role": "user"}]] * 100_000, add_generation_prompt=True)
    assert len(unpack_work(pack_work(work))) == 100_000


# --- What cannot be sent ---------------------------------------------------------------------------------------------


def chat(*conversations: Any) -> ChatWork:
    return ChatWork(conversations=list(conversations), add_generation_prompt=True)


DEEP: Any = SECRET
for _ in range(2_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("work", "pattern"),
    [
        (RollingWork(texts=[f"{SECRET}\ud800"]), "surrogates"),
        (LogLikelihoodWork(pairs=[("a", f"{SECRET}\udfff")]), "surrogates"),
        (chat([{"role": f"{SECRET}\ud800"}]), "surrogates"),
        (RollingWork(texts=["a" * MAX_ITEM_BYTES]), f"more than the limit of {MAX_ITEM_BYTES:,}"),
        (RollingWork(texts=[""] * (MAX_ITEMS + 1)), "over the limit"),
        (RollingWork(texts=[[SECRET]]), "Expected `str`"),  # type: ignore[list-item]
        (RollingWork(texts=[object()]), "unsupported"),  # type: ignore[list-item]
        (LogLikelihoodWork(pairs=[(SECRET, SECRET, SECRET)]), "of length 2"),  # type: ignore[list-item]
        (chat([{"role": "a"}] * (MAX_ELEMENTS // 2)), "elements"),
        (chat([{str(number): "" for number in range(MAX_MAP_ENTRIES + 1)}]), "max_map_len"),
        (chat(DEEP), "recursion|StackError"),  # Python 3.13 encodes deeper nesting, which the check then finds
        (chat([{SECRET: 1}]), "Expected `str`"),
    ],
)
def test_invalid_work_is_not_packed(work: Work, pattern: str) -> None:
    with pytest.raises(MalformedMessage, match=f"^this request cannot be sent: .*({pattern})") as raised:
        pack_work(work)
    assert SECRET not in reported(raised.value)


@pytest.mark.parametrize(
    ("kind", "answer", "pattern"),
    [
        ("loglikelihood", (1.5, 1), "Expected `bool`"),
        ("loglikelihood", SECRET, "Expected `array`"),
        ("rolling", None, "Expected `float`"),
        ("generate", f"{SECRET}\ud800", "surrogates"),
        ("chat", "a" * MAX_ITEM_BYTES, "more than the limit"),
        ("describe", SECRET, "invalid field"),
    ],
)
def test_invalid_answers_are_not_packed(kind: WorkKind, answer: Any, pattern: str) -> None:
    with pytest.raises(MalformedMessage, match=f"^this answer cannot be sent: .*{pattern}") as raised:
        pack_answers(kind, [answer])
    assert SECRET not in reported(raised.value)


@pytest.mark.parametrize(
    ("work", "pattern"),
    [
        (GenerateWork(prompts=["a"], settings=GenerationParams(max_gen_toks=-1)), "max_gen_toks"),
        (GenerateWork(prompts=["a"], settings=GenerationParams(until=(f"{SECRET}\ud800",))), "surrogates"),
        (GenerateWork(prompts=["a"], settings=GenerationParams(until=("",) * (MAX_ELEMENTS + 1))), "max_array_len"),
        (ChatWork(conversations=[], add_generation_prompt=True, template_args=f"{SECRET}\ud800"), "surrogates"),
    ],
)
def test_invalid_parameters_are_not_packed(work: Work, pattern: str) -> None:
    with pytest.raises(MalformedMessage, match=f"^this request cannot be sent: .*{pattern}") as raised:
        pack_work(work)
    assert SECRET not in reported(raised.value)
