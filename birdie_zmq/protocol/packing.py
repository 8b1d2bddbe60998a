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

The receiver decodes each item by itself and validates it against its type, so an item has exactly the bytes that its size
says. The sender applies the same rules, so that the person at the prompt gets the error. An item of texts and numbers has
a fixed number of them, and msgspec decodes it; the nested items of a message are decoded within common `limits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol.codec import validated
from birdie_zmq.protocol.items import MAX_ITEM_BYTES, MAX_ITEMS, Items, PackedWork, WorkKind
from birdie_zmq.protocol.limits import unpack_all
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


class _ChatTemplateCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments that all conversations of a `ChatWork` share."""

    add_generation_prompt: bool
    template_args: str


class _ItemType:
    """Encoding and decoding of items of one type: of a fixed number of texts and numbers, or with nested values."""

    def __init__(self, kind: Any, *, is_nested: bool = False) -> None:
        self._is_nested = is_nested
        self._decode_item = msgspec.msgpack.Decoder(kind).decode
        self._convert = partial(msgspec.convert, type=list[kind])

    def pack(self, values: Sequence[Any], what: str) -> Items:
        try:
            if len(values) > MAX_ITEMS:
                raise ValueError(f"{len(values):,} items are over the limit of {MAX_ITEMS:,} per message")
            items = Items.join(list(map(_encode, values)))
            if max(items.sizes, default=0) > MAX_ITEM_BYTES:
                raise ValueError(f"it has more than the limit of {MAX_ITEM_BYTES:,} bytes")
            if self._is_nested:
                self.unpack(items)
            else:  # What has these types and was encoded can be decoded.
                validated(self._convert, values)
        except MalformedMessage as error:
            raise MalformedMessage(f"this {what} cannot be sent: {error.message}") from None
        except (UnicodeEncodeError, OverflowError, ValueError, TypeError, RecursionError) as error:
            raise MalformedMessage(f"this {what} cannot be sent: {error}") from None
        return items

    def unpack(self, items: Items) -> list[Any]:
        if self._is_nested:
            return validated(self._convert, unpack_all(items.split()))
        return validated(lambda encoded: list(map(self._decode_item, encoded)), items.split())


_PARAMETERS = {
    "generate": _ItemType(GenerationParams, is_nested=True),
    "chat": _ItemType(_ChatTemplateCall, is_nested=True),
}
_WORK: dict[WorkKind, _ItemType] = {
    "loglikelihood": _ItemType(tuple[str, str]),
    "rolling": _ItemType(str),
    "generate": _ItemType(tuple[str, RandomKey | None]),
    "chat": _ItemType(list[dict[str, str]], is_nested=True),
    "describe": _ItemType(None),
}
_ANSWERS: dict[WorkKind, _ItemType] = {
    "loglikelihood": _ItemType(tuple[float, bool]),
    "rolling": _ItemType(float),
    "generate": _ItemType(str),
    "chat": _ItemType(str),
    "describe": _ItemType(ModelDescription, is_nested=True),
}
_encode = msgspec.msgpack.Encoder().encode


def kind_of(work: Work) -> WorkKind:
    """Return the kind of some work."""
    kind: WorkKind = type(work).__struct_config__.tag  # type: ignore[assignment]
    return kind


def pack_work(work: Work) -> PackedWork:
    """Encode work.

    Raises:
        MalformedMessage: A receiver would reject an item or a parameter: a text is not valid UTF-8 (a lone surrogate), or
            too long.
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
    parameters = b"" if shared is None else _PARAMETERS[kind].pack([shared], "request").data
    return PackedWork(kind=kind, items=_WORK[kind].pack(items, "request"), shared=parameters)


def unpack_work(work: PackedWork) -> Work:
    """Decode work.

    Raises:
        MalformedMessage: An item or a parameter is invalid.
    """
    items = _WORK[work.kind].unpack(work.items)
    shared: Any = None
    if work.kind in _PARAMETERS:
        (shared,) = _PARAMETERS[work.kind].unpack(Items.join([work.shared]))
    elif work.shared:
        raise MalformedMessage(f"work of the kind {work.kind} has no parameters")
    match work.kind:
        case "loglikelihood":
            return LogLikelihoodWork(pairs=items)
        case "rolling":
            return RollingWork(texts=items)
        case "generate":
            keys = [key for _, key in items if key is not None]
            try:
                return GenerateWork(prompts=[prompt for prompt, _ in items], settings=shared, keys=keys)
            except ValueError as error:
                raise MalformedMessage(str(error)) from None
        case "chat":
            return ChatWork(conversations=items, **msgspec.structs.asdict(shared))
        case "describe":
            if len(items) != 1:
                raise MalformedMessage("a request for the description has other than one item")
            return DescribeWork()


def pack_answers(kind: WorkKind, answers: Sequence[Answer]) -> Items:
    """Encode answers to work of some kind.

    Raises:
        MalformedMessage: An answer has the wrong type for the kind of work, or a text is not valid UTF-8 or too long.
    """
    return _ANSWERS[kind].pack(answers, "answer")


def unpack_answers(kind: WorkKind, items: Items) -> list[Answer]:
    """Decode answers to work of some kind.

    Raises:
        MalformedMessage: An answer is invalid.
    """
    return _ANSWERS[kind].unpack(items)
