"""Encoding and decoding of messages; received frames are untrusted.

A frame is msgpack of ``[wire version, {"type": name, field: value, …}]``. The version comes first in every wire version, so
that peers with different versions can report the mismatch. Decoding limits the contents of a frame (bytes, elements, map
sizes, text lengths), rejects extension types and duplicate keys, decodes arrays with `arrays`, and validates every field
against the types in `messages` with msgspec. Anything invalid raises a MalformedMessage that names the field. Encoding applies
the same rules, so that the sender gets the error, not the receiver.

Error messages about a frame quote only names of the protocol: anything else in the frame may be part of a prompt.
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
"""UTF-8 bytes of one text: with one character beyond the Basic Multilingual Plane, Python stores four bytes per character."""
MAX_BINARY_BYTES = 8 * MAX_ELEMENTS
"""Bytes of one array: MAX_ELEMENTS float64 values."""

M = TypeVar("M")


def encode(message: Message) -> bytes:
    """Encode a message as one frame.

    Raises:
        MessageTooLarge: The frame would be larger than MAX_FRAME_BYTES.
        MalformedMessage: A text is not valid UTF-8 (a lone surrogate), or a receiver would reject the message: too many
            elements, a text that is too long, a number outside the range of its field.
    """
    kind = type(message).__name__
    try:
        frame: bytes = msgpack.packb([WIRE_VERSION, message], default=_to_plain, use_bin_type=True)
    except (UnicodeEncodeError, OverflowError, ValueError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"this {kind} cannot be sent: {error}") from None
    if len(frame) > MAX_FRAME_BYTES:
        raise MessageTooLarge(
            f"a {kind} of {len(frame):,} bytes is over the limit of {MAX_FRAME_BYTES:,} bytes per message"
        )
    try:
        _convert(_unpack(frame)[1], type(message))
    except MalformedMessage as error:
        raise MalformedMessage(f"this {kind} cannot be sent: {error.message}") from None
    return frame


def decoder(expected: Any) -> Callable[[bytes], Any]:
    """Return a function that decodes one frame into one of the expected message types (a union of records).

    The function raises:
        MessageTooLarge: The frame is larger than MAX_FRAME_BYTES.
        VersionMismatch: The frame has another wire version.
        MalformedMessage: The frame is not one of the expected messages.
    """
    records = {record.__struct_config__.tag: record for record in get_args(expected) or (expected,)}

    def decode(frame: bytes) -> Any:
        if len(frame) > MAX_FRAME_BYTES:
            raise MessageTooLarge(f"a frame of {len(frame):,} bytes is over the limit of {MAX_FRAME_BYTES:,}")
        envelope = _unpack(frame)
        if not isinstance(envelope, list) or len(envelope) != 2 or type(envelope[0]) is not int:
            raise MalformedMessage("a frame must be a list of the wire version and a message")
        version, body = envelope
        # A refusal is decoded whatever its version, since the other side reports a version mismatch with it.
        kind = body.get("type") if isinstance(body, dict) else None
        if version != WIRE_VERSION and not (isinstance(kind, str) and kind == "refusal"):
            raise VersionMismatch(
                f"received a message of wire version {version}, but this birdie-zmq has wire version {WIRE_VERSION}; "
                "install the same birdie-zmq on both sides"
            )
        # With the whole union, msgspec would inspect every record at each call, which takes ten times as long as the rest.
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
    raise TypeError(f"a {type(value).__name__} cannot be encoded")


def _convert(body: Any, expected: Any) -> Any:
    try:
        return msgspec.convert(body, expected, dec_hook=_to_array, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        text = _redacted(str(error))
    # Raised outside of the except clause: the original error may quote untrusted input, and would be sent as the cause.
    raise MalformedMessage(f"a message has an invalid field: {text}")


def _to_array(expected: Any, value: Any) -> Any:
    """Accept an array if it has one dimension and the dtype of the record's field (msgspec's hook)."""
    dtype = expected.__args__[1].__args__[0]
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1:
        # msgspec adds the path of the field to a TypeError.
        raise TypeError(f"expected an array of {np.dtype(dtype)} with one dimension")
    return value


def _protocol_names() -> Iterator[str]:
    for record in (*get_args(Message), *get_args(Work), *get_args(Answers)):
        yield str(record.__struct_config__.tag)
        yield from record.__struct_encode_fields__


_PROTOCOL_NAMES = frozenset(_protocol_names())
_QUOTING = re.compile(r"(Invalid value|Invalid enum value|Object contains unknown field) (.*)", re.DOTALL)
_PATH = re.compile(r" - at `(\$(?:\.\w+|\[\.\.\.\]|\[\d+\])*)`\Z", re.ASCII)


def _redacted(text: str) -> str:
    """Return msgspec's error text without the values that it quotes, unless they are names of the protocol."""
    path = _PATH.search(text)
    what = text if path is None else text[: path.start()]
    quoting = _QUOTING.fullmatch(what)
    if quoting is not None and quoting[2][1:-1] not in _PROTOCOL_NAMES:
        what = f"{quoting[1]} (not shown)"
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
            # msgpack allocates a list before it reads the items, and each item takes at least one byte.
            max_array_len=min(MAX_ELEMENTS, len(frame)),
            max_map_len=MAX_MAP_ENTRIES,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        text = _error_text(error)
    else:
        return envelope
    raise MalformedMessage(f"a frame is not valid msgpack for this protocol: {text}")


def _error_text(error: Exception) -> str:
    """Return msgpack's error text; for invalid UTF-8 it names one byte and its position."""
    return str(error)[:400] or type(error).__name__


def _refuse_extension(code: int, data: bytes) -> Any:
    raise MalformedMessage(f"a frame holds an extension type ({code}, {len(data)} bytes)")
