"""Encoding and decoding of messages; received frames are untrusted.

A frame is msgpack of ``[wire version, {"type": name, field: value, …}]``. The version comes first in every wire version, so
that peers with different versions can report the mismatch. Decoding limits the contents of a frame (`limits`) and validates
every field against the types in `messages` with msgspec. Anything invalid raises a MalformedMessage that names the field.
Encoding applies the same rules, so that the sender gets the error, not the receiver. The items of work and of answers are
bytes here, which `packing` encodes and decodes.

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
from birdie_zmq.protocol.arrays import pack_array
from birdie_zmq.protocol.items import Items, PackedWork
from birdie_zmq.protocol.limits import MAX_FRAME_BYTES, unpack
from birdie_zmq.protocol.messages import WIRE_VERSION, Message
from birdie_zmq.types import GenerationParams, ModelDescription

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
        frame: bytes = msgpack.packb([WIRE_VERSION, message], default=to_plain, use_bin_type=True)
    except (UnicodeEncodeError, OverflowError, ValueError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"this {kind} cannot be sent: {error}") from None
    if len(frame) > MAX_FRAME_BYTES:
        raise MessageTooLarge(
            f"a {kind} of {len(frame):,} bytes is over the limit of {MAX_FRAME_BYTES:,} bytes per message"
        )
    try:
        convert(unpack(frame)[1], type(message))
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
        envelope = unpack(frame)
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
        return convert(body, records.get(kind, expected) if isinstance(kind, str) else expected)

    return decode


def to_plain(value: Any) -> Any:
    """Return a record or an array in the form that msgpack encodes (msgpack's hook)."""
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        fields = {encoded: getattr(value, name) for name, encoded in names}
        tag = value.__struct_config__.tag
        return fields if tag is None else {"type": tag, **fields}
    if isinstance(value, np.ndarray):
        return pack_array(value)
    raise TypeError(f"a {type(value).__name__} cannot be encoded")


def convert(body: Any, expected: Any) -> Any:
    """Convert decoded msgpack to a type, and validate it.

    Raises:
        MalformedMessage: It does not match the type. The text quotes names of the protocol, and nothing else of the value.
    """
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
    for record in get_args(Message):
        yield str(record.__struct_config__.tag)
    for record in (*get_args(Message), Items, PackedWork, GenerationParams, ModelDescription):
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
