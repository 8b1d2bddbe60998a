"""Frames of every message, with a value in each field: ``python -m tests.golden.frames`` writes frames.json.

Run it only with a new ``WIRE_VERSION``: until then the frames must stay byte-equal.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct

from birdie_zmq import types
from birdie_zmq.completions import Completion, TopCount
from birdie_zmq.protocol.codec import encode
from birdie_zmq.protocol.items import PackedAnswers, PackedWork, WorkKind
from birdie_zmq.protocol.messages import Message
from birdie_zmq.protocol.packing import pack_answers, pack_work

PATH = Path(__file__).with_name("frames.json")
NUMBERS: dict[Any, float] = {
    types.Seconds: 2.5,
    types.Duration: 0.25,
    types.Temperature: 0.75,
    types.PositiveFraction: 0.5,
    types.Fraction: 0.125,
    types.LogitBias: -1.5,
    types.Penalty: 1.25,
    TopCount: 2,
    float: -2.25,
    Annotated[float, Meta(ge=0)]: 1.5,
}
ANSWERS: dict[WorkKind, Any] = {
    "loglikelihood": tuple[float, bool],
    "rolling": float,
    "generate": str,
    "chat": str,
    "describe": types.ModelDescription,
    "completion": Completion,
}
KINDS = len(get_args(WorkKind))
ALTERNATIVES = 6 * KINDS
"""Each kind of work is made with each member of the other unions, which have up to three."""


class ValueMaker:
    """Makes a value of a type as the records declare it.

    Args:
        alternative: The member of each union that is made.
    """

    def __init__(self, alternative: int) -> None:
        self._alternative = alternative
        self._last_integer = 0

    def make(self, kind: Any, name: str = "") -> Any:
        """Return a value; a text contains the wire name of its field."""
        if kind in NUMBERS:
            return NUMBERS[kind]
        if kind is PackedWork:
            return pack_work(self.make(get_args(types.Work)[self._alternative // 6]))
        if kind is PackedAnswers:
            work_kind = get_args(WorkKind)[self._alternative // 6]
            return pack_answers(work_kind, [self.make(ANSWERS[work_kind]) for _ in range(2)])
        if inspect.isclass(kind) and issubclass(kind, Struct):
            return self._record(kind)
        if kind is NoneType:
            return None
        if kind is bool:
            return True
        if kind is int:
            self._last_integer += 1
            return self._last_integer
        if kind is bytes:
            return self._bytes(name)
        if kind is str:
            return f"{name or 'text'} ü"
        return self._generic(get_origin(kind), get_args(kind), name)

    def _bytes(self, name: str) -> bytes:
        """Return an array of numbers of four bytes: one for each of the tokens that a completion has."""
        count = {"prompt_ids": 3, "top_ids": 4, "top_logprobs": 4}.get(name, 2)
        return bytes(range(4 * count))

    def _record(self, kind: type[Struct]) -> Struct:
        hints = get_type_hints(kind, include_extras=True)
        names = zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
        values = {field: self.make(hints[field], wire_name) for field, wire_name in names}
        if kind is types.GenerateWork:
            values["keys"] = [5, 6] if values["settings"].sampling else []
        return kind(**values)

    def _generic(self, origin: Any, arguments: tuple[Any, ...], name: str) -> Any:
        if origin is Annotated:
            return self.make(arguments[0], name)
        if origin is Literal:
            return arguments[self._alternative % len(arguments)]
        if origin is Union or origin is UnionType:
            return self.make(arguments[self._alternative % len(arguments)], name)
        if origin is list:
            return [self.make(arguments[0], name) for _ in range(2)]
        if origin is dict:
            return {f"key {number}": self.make(arguments[1], name) for number in range(2)}
        if origin is tuple:
            members = arguments[:1] * 2 if arguments[-1] is ... else arguments
            return tuple(self.make(member, name) for member in members)
        raise TypeError(f"no value is made for {origin}")


def make_frames() -> dict[str, list[str]]:
    """Return the frames of each message in hexadecimal, by its tag: one for each alternative of its unions."""
    frames: dict[str, list[str]] = {}
    for record in get_args(Message):
        made = [encode(ValueMaker(alternative).make(record)).hex() for alternative in range(ALTERNATIVES)]
        frames[record.__struct_config__.tag] = list(dict.fromkeys(made))
    return frames


if __name__ == "__main__":
    PATH.write_text(json.dumps(make_frames(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
