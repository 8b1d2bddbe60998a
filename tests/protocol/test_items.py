"""Items: their sizes are checked, and a broker selects any of them without decoding one."""

from __future__ import annotations

import re

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.codec import decoder, encode
from birdie_zmq.protocol.items import MAX_ITEM_BYTES, MAX_ITEMS, Items, PackedAnswers, PackedWork
from birdie_zmq.types import ModelSpec
from tests.protocol.test_codec import body_of, frame_of

decode = decoder(m.Message)
encoded_items = st.lists(st.binary(min_size=1, max_size=8), max_size=6)


@given(encoded_items)
def test_split_returns_the_joined_items(encoded: list[bytes]) -> None:
    items = Items.join(encoded)

    assert len(items) == len(encoded)
    assert items.data == b"".join(encoded)
    assert items.split() == encoded


@given(encoded_items, st.data())
def test_select_returns_the_items_in_the_order_of_the_positions(encoded: list[bytes], data: st.DataObject) -> None:
    positions = data.draw(st.permutations(range(len(encoded))))[: data.draw(st.integers(0, len(encoded)))]

    assert Items.join(encoded).select(positions).split() == [encoded[position] for position in positions]


def test_a_position_beyond_the_items_is_an_error() -> None:
    with pytest.raises(IndexError):
        Items.join([b"a"]).select([1])


def test_work_keeps_its_kind_and_its_shared_parameters() -> None:
    work = PackedWork(kind="generate", items=Items.join([b"a", b"bc"]), shared=b"d")

    selected = work.select([1])

    assert (selected.kind, selected.items.split(), selected.shared) == ("generate", [b"bc"], b"d")
    assert len(selected) == 1


SUM = "the sizes of the items do not add up to their data"
INVALID: dict[str, tuple[list[int], bytes, str]] = {
    "no-size-for-data": ([], b"a", SUM),
    "too-little-data": ([1, 1], b"a", SUM),
    "too-much-data": ([1, 1], b"abc", SUM),
    "zero": ([1, 0], b"a", "Expected `int` >= 1"),
    "negative": ([-1, 2], b"a", "Expected `int` >= 1"),
    "smallest-int32": ([-(2**31), 1], b"a", "Expected `int` >= 1"),
    "too-long": ([MAX_ITEM_BYTES + 1], bytes(MAX_ITEM_BYTES + 1), f"Expected `int` <= {MAX_ITEM_BYTES}"),
    "beyond-64-bits": ([2**64 - 1, 2], b"a", f"Expected `int` <= {MAX_ITEM_BYTES}"),
    # In 32 bits, the sums are 1 and 0.
    "overflowing-sum": ([MAX_ITEM_BYTES] * 256 + [1], b"a", SUM),
    "overflowing-sum-to-zero": ([MAX_ITEM_BYTES] * 256, b"", SUM),
    "too-many": ([1] * (MAX_ITEMS + 1), bytes(MAX_ITEMS + 1), f"Expected `array` of length <= {MAX_ITEMS}"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_sizes_are_rejected(name: str) -> None:
    sizes, data, error = INVALID[name]
    work = PackedWork(kind="describe", items=Items.join([b"a"]))
    submit = m.Submit(batch=1, model=ModelSpec(tag="demo"), work=work)
    body = body_of(submit)
    received = {"sizes": sizes, "data": data}

    with pytest.raises(MalformedMessage, match=rf"{re.escape(error)}.* - at `\$\.work\.items"):
        decode(frame_of({**body, "work": {**body["work"], "items": received}}))
    if error == SUM:
        with pytest.raises(ValueError, match=error):
            Items(sizes=sizes, data=data)
    else:
        invalid = Items(sizes=sizes, data=data) if sum(sizes) == len(data) else None
        if invalid is not None:
            with pytest.raises(MalformedMessage, match=rf"^this Submit cannot be sent: .*{re.escape(error)}"):
                encode(msgspec.structs.replace(submit, work=PackedWork(kind="describe", items=invalid)))


def test_the_largest_number_of_items_is_accepted() -> None:
    work = PackedWork(kind="rolling", items=Items.join([b"\xc0"] * MAX_ITEMS))

    assert len(decode(encode(m.Submit(batch=1, model=ModelSpec(tag="demo"), work=work))).work) == MAX_ITEMS


@pytest.mark.parametrize("count", [-1, MAX_ITEMS + 1, 1.5, None])
def test_the_number_of_answers_is_limited(count: object) -> None:
    body = body_of(m.Answered(batch=1, indices=[], answers=PackedAnswers(count=MAX_ITEMS, data=b"a")))

    with pytest.raises(MalformedMessage, match=r"`\$\.answers\.count`"):
        decode(frame_of({**body, "answers": {"count": count, "data": b"a"}}))


def test_a_message_is_decoded_whatever_its_items_hold() -> None:
    """The broker never decodes an item: not a bomb, and not a pickle."""
    bomb = b"\xdd\x00\x0f\xff\xff" + b"\x80" * (2**20 - 1)
    extension = msgpack.packb(msgpack.ExtType(1, b"a"))
    work = PackedWork(kind="chat", items=Items.join([bomb, extension, b"\xc1"]), shared=bomb)

    submit = decode(encode(m.Submit(batch=1, model=ModelSpec(tag="demo"), work=work)))

    assert submit.work.select([1]).items.data == extension
    assert submit.work.items.split() == [bomb, extension, b"\xc1"]
