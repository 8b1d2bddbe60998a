"""Packing: encoding and decoding of the items of work and answers.

============= ============================ ========================== =====================
kind          item                         shared by all items        answer
============= ============================ ========================== =====================
loglikelihood [context, continuation]      nothing                    [nats, is greedy]
rolling       text                         nothing                    nats
generate      [prompt, random key or nil]  the generation parameters  text
chat          conversation                 the template's arguments   text
describe      nil                          nothing                    model description
============= ============================ ========================== =====================

The receiver validates every item against its type. The sender decodes what it encodes, so that the person at the prompt
gets the error. Items of plain texts and numbers are decoded by msgspec, whose lists have as many elements as there are
items; nested ones are decoded within the limits of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import msgspec
from msgspec import Struct

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol.codec import convert, to_plain
from birdie_zmq.protocol.items import Items, PackedWork, WorkKind
from birdie_zmq.protocol.limits import unpack
from birdie_zmq.types import (
    Answer,
    ChatWork,
    DescribeWork,
    GenerateWork,
    GenerationParams,
    LogLikelihoodWork,
    ModelDescription,
    RandomKey,
    RollingWork,
    Work,
)

Decode = Callable[[Items], list[Any]]


class _ChatTemplateCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments that all conversations of a `ChatWork` share."""

    add_generation_prompt: bool
    template_args: str


def _flat(kind: Any) -> Decode:
    """Return a decoder of items of plain texts and numbers: all at once, as one list of that many elements."""
    decoder = msgspec.msgpack.Decoder(list[kind])

    def decode(items: Items) -> list[Any]:
        try:
            return decoder.decode(b"\xdd" + len(items).to_bytes(4, "big") + items.data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            text = str(error)
        # Raised outside of the except clause: the original error would be sent as the cause.
        raise MalformedMessage(f"an item is invalid: {text}")

    return decode


def _nested(kind: Any) -> Decode:
    """Return a decoder of items with lists or maps of any size."""

    def decode(items: Items) -> list[Any]:
        return [convert(unpack(items.select([position]).data), kind) for position in range(len(items))]

    return decode


_DECODE_WORK: dict[WorkKind, Decode] = {
    "loglikelihood": _flat(tuple[str, str]),
    "rolling": _flat(str),
    "generate": _flat(tuple[str, RandomKey | None]),
    "chat": _nested(list[dict[str, str]]),
    "describe": _flat(None),
}
_DECODE_ANSWERS: dict[WorkKind, Decode] = {
    "loglikelihood": _flat(tuple[float, bool]),
    "rolling": _flat(float),
    "generate": _flat(str),
    "chat": _flat(str),
    "describe": _nested(ModelDescription),
}
_encode_flat = msgspec.msgpack.Encoder().encode


def kind_of(work: Work) -> WorkKind:
    """Return the kind of some work."""
    kind: WorkKind = type(work).__struct_config__.tag  # type: ignore[assignment]
    return kind


def pack_work(work: Work) -> PackedWork:
    """Encode work.

    Raises:
        MalformedMessage: A text is not valid UTF-8 (a lone surrogate), or too long.
    """
    shared: Struct | None = None
    items: list[Any] = [None]
    match work:
        case LogLikelihoodWork(pairs=pairs):
            items = list(pairs)
        case RollingWork(texts=texts):
            items = list(texts)
        case GenerateWork(prompts=prompts, settings=shared, keys=keys):
            keys_or_none: Sequence[int | None] = keys or (None,) * len(prompts)
            items = list(zip(prompts, keys_or_none, strict=True))
        case ChatWork(conversations=conversations):
            items = list(conversations)
            shared = _ChatTemplateCall(
                add_generation_prompt=work.add_generation_prompt, template_args=work.template_args
            )
    kind = kind_of(work)
    packed = _pack(items, "request", _DECODE_WORK[kind])
    return PackedWork(kind=kind, items=packed, shared=b"" if shared is None else _pack_record(shared))


def unpack_work(work: PackedWork) -> Work:
    """Decode work.

    Raises:
        MalformedMessage: An item or a parameter is invalid.
    """
    items = _DECODE_WORK[work.kind](work.items)
    match work.kind:
        case "loglikelihood":
            return LogLikelihoodWork(pairs=items)
        case "rolling":
            return RollingWork(texts=items)
        case "generate":
            settings: GenerationParams = convert(unpack(work.shared), GenerationParams)
            keys = [key for _, key in items if key is not None]
            try:
                return GenerateWork(prompts=[prompt for prompt, _ in items], settings=settings, keys=keys)
            except ValueError as error:
                raise MalformedMessage(str(error)) from None
        case "chat":
            call: _ChatTemplateCall = convert(unpack(work.shared), _ChatTemplateCall)
            return ChatWork(conversations=items, **msgspec.structs.asdict(call))
        case "describe":
            return DescribeWork()


def pack_answers(kind: WorkKind, answers: Sequence[Answer]) -> Items:
    """Encode answers to work of some kind.

    Raises:
        MalformedMessage: An answer has the wrong type for the kind of work, or a text is not valid UTF-8 or too long.
    """
    return _pack(answers, "answer", _DECODE_ANSWERS[kind])


def unpack_answers(kind: WorkKind, items: Items) -> list[Answer]:
    """Decode answers to work of some kind.

    Raises:
        MalformedMessage: An answer is invalid.
    """
    return _DECODE_ANSWERS[kind](items)


def _pack(items: Sequence[Any], what: str, decode: Decode) -> Items:
    try:
        encode = _pack_record if items and isinstance(items[0], Struct) else _encode_flat
        packed = Items.join([encode(item) for item in items])
        decode(packed)
    except MalformedMessage as error:
        raise MalformedMessage(f"this {what} cannot be sent: {error.message}") from None
    except (UnicodeEncodeError, OverflowError, ValueError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"this {what} cannot be sent: {error}") from None
    return packed


def _pack_record(record: Struct) -> bytes:
    packed: bytes = msgpack.packb(record, default=to_plain, use_bin_type=True)
    return packed
