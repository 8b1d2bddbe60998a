"""Encoding and decoding of messages; received frames are untrusted.

A frame is msgpack of ``[wire version, {"type": name, field: value, …}]``. The version comes first in every wire version, so
that peers with different versions can report the mismatch. msgspec decodes a frame straight into the records of `messages`,
and stops at the first value of another type, unknown field, extension type or list that is too long. A frame must also be
what `encode` returns for its message, so that no key comes twice. Anything invalid raises a MalformedMessage that names the
field. Encoding applies the same rules, so that the sender gets the error, not the receiver. The items of work and of answers
are bytes here, which `packing` encodes and decodes.

Error messages about a frame quote only names of the protocol: anything else in the frame may be part of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args

import msgspec

from birdie_zmq.completions import Completion, CompletionParams
from birdie_zmq.errors import MalformedMessage, MessageTooLarge, VersionMismatch
from birdie_zmq.protocol.items import Items, PackedAnswers, PackedWork
from birdie_zmq.protocol.limits import MAX_FRAME_BYTES, MAX_TEXT_BYTES, unpack_all
from birdie_zmq.protocol.messages import WIRE_VERSION, Message, Refusal
from birdie_zmq.types import GenerationParams, ModelDescription

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
_decode_message: Callable[[Any], Message] = msgspec.msgpack.Decoder(Message).decode


def encode(message: Message) -> bytes:
    """Encode a message as one frame.

    Raises:
        MessageTooLarge: The frame would be larger than MAX_FRAME_BYTES.
        MalformedMessage: A text is not valid UTF-8 (a lone surrogate), or a receiver would reject the message: a text or a
            list that is too long, a number outside the range of its field.
    """
    kind = type(message).__name__
    try:
        frame = _encode((WIRE_VERSION, message))
        if len(frame) > MAX_FRAME_BYTES:
            raise MessageTooLarge(
                f"a {kind} of {len(frame):,} bytes is over the limit of {MAX_FRAME_BYTES:,} bytes per message"
            )
        _check_texts(frame)
        _, body = _decode_envelope(frame)
        received = validated(_decode_message, body)
    except MalformedMessage as error:
        raise MalformedMessage(f"this {kind} cannot be sent: {error.message}") from None
    except (UnicodeEncodeError, OverflowError, ValueError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"this {kind} cannot be sent: {error}") from None
    # An integer in a field for floats has become a float, as the receiver expects it.
    return _encode((WIRE_VERSION, received))


def decoder(expected: Any) -> Callable[[bytes], Any]:
    """Return a function that decodes one frame into one of the expected message types (a union of records).

    The function raises:
        MessageTooLarge: The frame is larger than MAX_FRAME_BYTES.
        VersionMismatch: The frame has another wire version.
        MalformedMessage: The frame is not one of the expected messages.
    """
    decode_expected = msgspec.msgpack.Decoder(expected).decode

    def decode(frame: bytes) -> Any:
        if len(frame) > MAX_FRAME_BYTES:
            raise MessageTooLarge(f"a frame of {len(frame):,} bytes is over the limit of {MAX_FRAME_BYTES:,}")
        _check_texts(frame)
        version, body = validated(_decode_envelope, frame)
        try:
            message = validated(decode_expected, body)
        except MalformedMessage:
            if version == WIRE_VERSION:
                raise
            message = None
        # A refusal is decoded whatever its version, since the other side reports a version mismatch with it.
        if version != WIRE_VERSION and not isinstance(message, Refusal):
            raise VersionMismatch(
                f"received a message of wire version {version}, but this birdie-zmq has wire version {WIRE_VERSION}; "
                "install the same birdie-zmq on both sides"
            )
        if _encode((version, message)) != frame:
            raise MalformedMessage("a frame has a key twice, or a value in another form than this protocol gives it")
        return message

    return decode


def _check_texts(frame: bytes) -> None:
    """Refuse a text that is too long before it is decoded; msgspec would decode it first.

    Raises:
        MalformedMessage: A text is too long.
    """
    if len(frame) > MAX_TEXT_BYTES:
        unpack_all([frame])


def validated(decode: Callable[[Any], T], value: Any) -> T:
    """Decode with msgspec.

    Raises:
        MalformedMessage: The value is invalid. The text quotes names of the protocol, and nothing else of the value.
    """
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        text = f"a message has an invalid field: {_redacted(str(error))}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = f"a message is not valid msgpack for this protocol: {error}"  # for invalid UTF-8 it names one byte
    # Raised outside of the except clause: the original error may quote untrusted input, and would be sent as the cause.
    raise MalformedMessage(text)


_NAMED: tuple[Any, ...] = (
    *get_args(Message),
    Items,
    PackedWork,
    PackedAnswers,
    GenerationParams,
    ModelDescription,
    Completion,
    CompletionParams,
)


def _protocol_names() -> Iterator[str]:
    for record in get_args(Message):
        yield str(record.__struct_config__.tag)
    for record in _NAMED:
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
