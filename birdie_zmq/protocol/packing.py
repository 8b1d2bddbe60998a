"""Packing: encoding and decoding of the items of work, and of answers.

============= ============================ ========================== =====================
kind          item                         shared by all items        answer
============= ============================ ========================== =====================
loglikelihood [context, continuation]      nothing                    (nats, is greedy)
rolling       text                         nothing                    nats
generate      [prompt, random key or nil]  the generation parameters  text
chat          conversation                 the template's arguments   text
describe      nil                          nothing                    model description
completion    completion prompt            completion parameters      completion
============= ============================ ========================== =====================

The receiver decodes each item by itself and validates it against its type, so an item has exactly the bytes that its size
says. The sender applies the same rules, so that the person at the prompt gets the error. An item of texts and numbers has
a fixed number of them, and msgspec decodes it; the nested items of a message are decoded within common `limits`. Scores
are arrays, since they are many and small.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgpack
import msgspec
import numpy as np
from msgspec import Struct

from birdie_zmq.completions import Completion, CompletionParams, CompletionPrompt, CompletionWork
from birdie_zmq.errors import MalformedMessage
from birdie_zmq.protocol.arrays import pack_array
from birdie_zmq.protocol.codec import validated
from birdie_zmq.protocol.items import MAX_ITEM_BYTES, MAX_ITEMS, Items, PackedAnswers, PackedWork, WorkKind
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
        return validated(list, map(self._decode_item, items.split()))


class _ScoreType:
    """Encoding and decoding of scores as arrays, one for each of their numbers."""

    def __init__(self, kind: Any, *dtypes: str) -> None:
        self._dtypes = list(dtypes)
        self._convert = partial(msgspec.convert, type=list[kind])

    def pack(self, scores: Sequence[Any]) -> bytes:
        try:
            validated(self._convert, scores)
        except MalformedMessage as error:
            raise MalformedMessage(f"this answer cannot be sent: {error.message}") from None
        columns = (
            [scores] if len(self._dtypes) == 1 else [[score[i] for score in scores] for i in range(len(self._dtypes))]
        )
        arrays = [np.array(column, dtype) for column, dtype in zip(columns, self._dtypes, strict=True)]
        packed: bytes = msgpack.packb(arrays, default=pack_array)
        return packed

    def unpack(self, data: bytes) -> list[Any]:
        (arrays,) = unpack_all([data])
        found = arrays if isinstance(arrays, list) else []
        if [_dtype_of(value) for value in found] != self._dtypes:
            raise MalformedMessage(f"scores must be arrays of {' and '.join(self._dtypes)}")
        columns = [array.tolist() for array in found]
        if len(set(map(len, columns))) != 1:
            raise MalformedMessage("the arrays of scores have different lengths")
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def _dtype_of(value: object) -> str | None:
    """Return the dtype of an array of one dimension, and None for any other value."""
    return value.dtype.str if isinstance(value, np.ndarray) and value.ndim == 1 else None


_PARAMETERS = {
    "generate": _ItemType(GenerationParams, is_nested=True),
    "chat": _ItemType(_ChatTemplateCall, is_nested=True),
    "completion": _ItemType(CompletionParams, is_nested=True),
}
_WORK: dict[WorkKind, _ItemType] = {
    "loglikelihood": _ItemType(tuple[str, str]),
    "rolling": _ItemType(str),
    "generate": _ItemType(tuple[str, RandomKey | None]),
    "chat": _ItemType(list[dict[str, str]], is_nested=True),
    "describe": _ItemType(None),
    "completion": _ItemType(CompletionPrompt),
}
_OTHER_ANSWERS: dict[WorkKind, _ItemType] = {
    "generate": _ItemType(str),
    "chat": _ItemType(str),
    "describe": _ItemType(ModelDescription, is_nested=True),
    "completion": _ItemType(Completion, is_nested=True),
}
_SCORES: dict[WorkKind, _ScoreType] = {
    "loglikelihood": _ScoreType(tuple[float, bool], "<f8", "|b1"),
    "rolling": _ScoreType(float, "<f8"),
}
_decode_items = msgspec.msgpack.Decoder(Items).decode
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
        case CompletionWork(prompts=items, params=shared):
            pass
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
        case "completion":
            return CompletionWork(prompts=items, params=shared)


def pack_answers(kind: WorkKind, answers: Sequence[Answer]) -> PackedAnswers:
    """Encode answers to work of some kind.

    Raises:
        MalformedMessage: An answer has the wrong type for the kind of work, or a text is not valid UTF-8 or too long.
    """
    scores = _SCORES.get(kind)
    data = _encode(_OTHER_ANSWERS[kind].pack(answers, "answer")) if scores is None else scores.pack(answers)
    return PackedAnswers(count=len(answers), data=data)


def unpack_answers(kind: WorkKind, answers: PackedAnswers) -> list[Answer]:
    """Decode answers to work of some kind.

    Raises:
        MalformedMessage: An answer is invalid, or there are fewer or more of them than their count.
    """
    scores = _SCORES.get(kind)
    if scores is None:
        unpacked = _OTHER_ANSWERS[kind].unpack(validated(_decode_items, answers.data))
    else:
        unpacked = scores.unpack(answers.data)
    if len(unpacked) != answers.count:
        raise MalformedMessage(f"a message has {len(unpacked):,} answers instead of {answers.count:,}")
    return unpacked
