"""Messages to bytes and back, with nothing believed on the way in.

A frame is msgpack of ``[wire version, {"type": name, field: value, …}]``. The version stands first and in every
version, so that two that differ can still tell each other so. Decoding bounds what a frame may hold (bytes, elements,
map sizes, the length of a text), accepts no extension type and no key twice, reads arrays through `arrays`, and lets
msgspec hold every field against the types in `messages`; whatever does not fit is a MalformedMessage that names the
field. Encoding holds what it has made against the same rules, so that a sender hears of it and not a receiver.

What is said of a frame quotes only words of the protocol: anything else in it may be a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args

import msgpack
import msgspec
import numpy as np

from birdie_zmq.errors import MalformedMessage, MessageTooLarge, VersionMismatch
from birdie_zmq.protocol.arrays import pack_array, unpack_array
from birdie_zmq.protocol.messages import WIRE_VERSION, Message
from birdie_zmq.types import Answers, Work

MAX_FRAME_BYTES = 64 * 2**20
MAX_ELEMENTS = 2**20
"""List items, map entries and array elements of one frame: a megabyte of nested empty lists would take 70 MB."""
MAX_MAP_ENTRIES = 4096
MAX_TEXT_BYTES = 16 * 2**20
"""UTF-8 of one text: one letter beyond the Basic Multilingual Plane makes Python keep four bytes for each of the others."""
MAX_BINARY_BYTES = 8 * MAX_ELEMENTS
"""Bytes of one array: as many float64 as a frame may have elements."""

M = TypeVar("M")


def encode(message: Message) -> bytes:
    """Pack a message into one frame.

    Raises:
        MessageTooLarge: The frame would be over MAX_FRAME_BYTES.
        MalformedMessage: A text holds what UTF-8 cannot (a lone surrogate), or anything else that a receiver would
            refuse: too many elements, a text that is too long, a number that does not fit its field.
    """
    kind = type(message).__name__
    try:
        frame: bytes = msgpack.packb([WIRE_VERSION, message], default=_to_plain, use_bin_type=True)
    except (UnicodeEncodeError, OverflowError, ValueError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"this {kind} cannot be sent: {error}") from None
    if len(frame) > MAX_FRAME_BYTES:
        raise MessageTooLarge(
            f"a {kind} of {len(frame):,} bytes is over the limit of {MAX_FRAME_BYTES:,} bytes a message"
        )
    try:
        _convert(_unpack(frame)[1], type(message))
    except MalformedMessage as error:
        raise MalformedMessage(f"this {kind} cannot be sent: {error.message}") from None
    return frame


def decoder(expected: Any) -> Callable[[bytes], Any]:
    """A function that decodes one frame into one of the expected message types (a union of records).

    The function raises:
        MessageTooLarge: The frame is over MAX_FRAME_BYTES.
        VersionMismatch: The frame is of another wire version.
        MalformedMessage: Anything else that is not one of the expected messages.
    """
    records = {record.__struct_config__.tag: record for record in get_args(expected) or (expected,)}

    def decode(frame: bytes) -> Any:
        if len(frame) > MAX_FRAME_BYTES:
            raise MessageTooLarge(f"a frame of {len(frame):,} bytes is over the limit of {MAX_FRAME_BYTES:,}")
        envelope = _unpack(frame)
        if not isinstance(envelope, list) or len(envelope) != 2 or type(envelope[0]) is not int:
            raise MalformedMessage("a frame must be a list of the wire version and a message")
        version, body = envelope
        # A refusal is read whatever its version, since it is how the other side says that versions differ.
        kind = body.get("type") if isinstance(body, dict) else None
        if version != WIRE_VERSION and not (isinstance(kind, str) and kind == "refusal"):
            raise VersionMismatch(
                f"a message of wire version {version} came to birdie-zmq with wire version {WIRE_VERSION}; "
                "install the same birdie-zmq on both sides"
            )
        # msgspec would look through the whole union at each call, which takes ten times as long as the rest.
        return _convert(body, records.get(kind, expected) if isinstance(kind, str) else expected)

    return decode


def _to_plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        fields = {encoded: getattr(value, name) for name, encoded in names}
        tag = value.__struct_config__.tag
        return fields if tag is None else {"type": tag, **fields}
    if isinstance(value, np.ndarray):
        return pack_array(value)
    raise TypeError(f"a {type(value).__name__} does not travel")


def _convert(body: Any, expected: Any) -> Any:
    try:
        return msgspec.convert(body, expected, dec_hook=_to_array, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        text = _without_values(str(error))
    # Outside of the except clause: the error that caused this one may quote what a stranger sent, and would travel along.
    raise MalformedMessage(f"a message has a wrong field: {text}")


def _to_array(expected: Any, value: Any) -> Any:
    """Accept an array where the record asks for one of that dtype and one dimension (msgspec's hook)."""
    dtype = expected.__args__[1].__args__[0]
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1:
        # msgspec adds the path of the field to a TypeError.
        raise TypeError(f"expected an array of {np.dtype(dtype)} with one dimension")
    return value


def _words() -> Iterator[str]:
    for record in (*get_args(Message), *get_args(Work), *get_args(Answers)):
        yield str(record.__struct_config__.tag)
        yield from record.__struct_encode_fields__


_WORDS = frozenset(_words())
_QUOTING = re.compile(r"(Invalid value|Invalid enum value|Object contains unknown field) (.*)", re.DOTALL)
_PATH = re.compile(r" - at `(\$(?:\.\w+|\[\.\.\.\]|\[\d+\])*)`\Z", re.ASCII)


def _without_values(text: str) -> str:
    """What msgspec says, without the values that it quotes, unless they are words of the protocol."""
    path = _PATH.search(text)
    what = text if path is None else text[: path.start()]
    quoting = _QUOTING.fullmatch(what)
    if quoting is not None and quoting[2][1:-1] not in _WORDS:
        what = f"{quoting[1]} (it is not shown)"
    return what if path is None else f"{what} - at `{path[1]}`"


def _unpack(frame: bytes) -> Any:
    elements = 0

    def count(added: int) -> None:
        nonlocal elements
        elements += added + 1
        if elements > MAX_ELEMENTS:
            raise MalformedMessage(f"a frame holds more than {MAX_ELEMENTS:,} elements")

    def on_list(items: list[Any]) -> list[Any]:
        count(len(items))
        return items

    def on_map(pairs: list[tuple[Any, Any]]) -> Any:
        count(len(pairs))
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise MalformedMessage("a frame holds a map that has a key twice")
        if b"nd" not in entries:
            return entries
        array = unpack_array(entries)
        count(array.size)
        return array

    try:
        envelope = msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            list_hook=on_list,
            object_pairs_hook=on_map,
            ext_hook=_refuse_extension,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=MAX_BINARY_BYTES,
            # Room is made for a list before its items are read, and each item is a byte at least.
            max_array_len=min(MAX_ELEMENTS, len(frame)),
            max_map_len=MAX_MAP_ENTRIES,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        text = _short(error)
    else:
        return envelope
    raise MalformedMessage(f"a frame is not msgpack as it is used here: {text}")


def _short(error: Exception) -> str:
    """What msgpack says; where bytes are no UTF-8, it names one byte of them and its place."""
    return str(error)[:400] or type(error).__name__


def _refuse_extension(code: int, data: bytes) -> Any:
    raise MalformedMessage(f"a frame holds an extension type ({code}, {len(data)} bytes)")
