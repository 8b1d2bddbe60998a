"""Messages to bytes and back, with nothing believed on the way in.

A frame is msgpack of ``[wire version, {"type": name, field: value, …}]``. The version stands first and in every
version, so that two that differ can still tell each other so. Decoding bounds what a frame may hold (bytes, elements,
map sizes), accepts no extension type, reads arrays through `arrays`, and lets msgspec hold every field against the
types in `messages`; whatever does not fit is a MalformedMessage that names the field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgpack
import msgspec
import numpy as np

from birdie_zmq.errors import MalformedMessage, MessageTooLarge, VersionMismatch
from birdie_zmq.wire.arrays import pack_array, unpack_array
from birdie_zmq.wire.messages import WIRE_VERSION, Message

MAX_FRAME_BYTES = 64 * 2**20
MAX_ELEMENTS = 2**20
"""List items and map entries of one frame, all levels together: a megabyte of nested empty lists would take 70 MB."""
MAX_MAP_ENTRIES = 4096

M = TypeVar("M")


def encode(message: Message) -> bytes:
    """Pack a message into one frame.

    Raises:
        MessageTooLarge: The frame would be over MAX_FRAME_BYTES, which the receiver would refuse.
        MalformedMessage: A text holds what UTF-8 cannot (a lone surrogate), or a number msgpack cannot.
    """
    try:
        frame: bytes = msgpack.packb([WIRE_VERSION, message], default=_to_plain, use_bin_type=True)
    except (UnicodeEncodeError, OverflowError, ValueError, TypeError) as error:
        raise MalformedMessage(f"this {type(message).__name__} cannot be sent: {error}") from error
    if len(frame) > MAX_FRAME_BYTES:
        raise MessageTooLarge(
            f"a {type(message).__name__} of {len(frame):,} bytes is over the limit of {MAX_FRAME_BYTES:,} bytes a message"
        )
    return frame


def decoder(expected: Any) -> Callable[[bytes], Any]:
    """A function that decodes one frame into one of the expected message types (a union of records).

    The function raises:
        MessageTooLarge: The frame is over MAX_FRAME_BYTES.
        VersionMismatch: The frame is of another wire version.
        MalformedMessage: Anything else that is not one of the expected messages.
    """

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
        try:
            return msgspec.convert(body, expected, dec_hook=_to_array, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise MalformedMessage(f"a message has a wrong field: {_short(error)}") from error

    return decode


def _to_plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value)
        tag = value.__struct_config__.tag
        return fields if tag is None else {"type": tag, **fields}
    if isinstance(value, np.ndarray):
        return pack_array(value)
    raise TypeError(f"a {type(value).__name__} does not travel")


def _to_array(expected: Any, value: Any) -> Any:
    """Accept an array where the record asks for one of that dtype and one dimension (msgspec's hook)."""
    dtype = expected.__args__[1].__args__[0]
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1:
        # msgspec adds the path of the field to a TypeError.
        raise TypeError(f"expected an array of {np.dtype(dtype)} with one dimension")
    return value


def _short(error: object) -> str:
    """An error's text without the middle, where it repeats what a stranger sent."""
    text = str(error)
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"


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

    def on_map(entries: dict[Any, Any]) -> Any:
        count(len(entries))
        return unpack_array(entries) if b"nd" in entries else entries

    try:
        envelope = msgpack.unpackb(
            frame,
            raw=False,
            strict_map_key=True,
            list_hook=on_list,
            object_hook=on_map,
            ext_hook=_refuse_extension,
            max_str_len=MAX_FRAME_BYTES,
            max_bin_len=MAX_FRAME_BYTES,
            max_array_len=MAX_ELEMENTS,
            max_map_len=MAX_MAP_ENTRIES,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise MalformedMessage(f"a frame is not msgpack as it is used here: {_short(error)}") from error
    return envelope


def _refuse_extension(code: int, data: bytes) -> Any:
    raise MalformedMessage(f"a frame holds an extension type ({code}, {len(data)} bytes)")
