"""``mesh=`` of model_args: over how many devices rows are dealt out, and over how many weights are divided. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from birdie_zmq.errors import UsageError

WORD = "mesh"
AXES = ("data", "model")
"""In the order in which devices are laid out: those that divide one row's weights are neighbours."""

_AXIS = re.compile(rf"({'|'.join(AXES)}):\d+")


@dataclass(frozen=True)
class MeshShape:
    """The sizes of the two axes of a mesh of devices.

    Attributes:
        data: The rows of a step are dealt out to so many groups of devices.
        model: The weights are divided among so many devices of each group.
    """

    data: int = 1
    model: int = 1

    @property
    def size(self) -> int:
        """How many devices it takes."""
        return self.data * self.model

    def as_argument(self) -> dict[str, int]:
        """The one form that stands in the arguments of a model, however it was written."""
        return {"data": self.data, "model": self.model}

    def __str__(self) -> str:
        return f"data:{self.data}/model:{self.model}"


def take_mesh(arguments: MutableMapping[str, object]) -> MeshShape | None:
    """Take the word out of model_args, as lm_eval parsed them; None where it is not there.

    Raises:
        UsageError: It is no mesh.
    """
    value = arguments.pop(WORD, None)
    if isinstance(value, str):
        # lm_eval.simple_evaluate cuts a text at each comma: what stood behind one is a word without a value.
        cut = [name for name, rest in arguments.items() if rest == "" and _AXIS.fullmatch(name)]
        for name in cut:
            del arguments[name]
        value = "/".join([value, *cut])
    return None if value is None else read_mesh(value)


def read_mesh(value: object) -> MeshShape:
    """A mesh as a person writes it: ``data:2/model:4``, also with commas; a list of such parts; or an object.

    Raises:
        UsageError: It is none of these, names another axis or one twice, or a size is no whole number above 0.
    """
    sizes: dict[str, int] = {}
    for name, size in _parts(value):
        if name not in AXES:
            raise _wrong(value, f"it has an axis {name!r}, and the axes are {' and '.join(AXES)}")
        if name in sizes:
            raise _wrong(value, f"it has the axis {name} twice")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise _wrong(value, f"the size of {name} is {size!r}, and must be a whole number above 0")
        sizes[name] = size
    if not sizes:
        raise _wrong(value, "it has no axis")
    return MeshShape(**sizes)


def _parts(value: object) -> list[tuple[str, object]]:
    """Names and sizes, not yet looked at."""
    if isinstance(value, Mapping):
        return [(str(name), size) for name, size in value.items()]
    if isinstance(value, str):
        return [_part(value, text) for text in re.split(r"[/,]", value.strip().strip("[]"))]
    if isinstance(value, list | tuple):
        return [_part(value, str(text)) for text in value]
    raise _wrong(value, f"it is of the type {type(value).__name__}")


def _part(value: object, text: str) -> tuple[str, object]:
    name, colon, size = text.partition(":")
    if not colon:
        raise _wrong(value, f"{text!r} has no size")
    size = size.strip()
    return name.strip(), int(size) if size.isdecimal() else size


def _wrong(value: object, why: str) -> UsageError:
    return UsageError(
        f"mesh={value!r} in model_args: {why}; say for example mesh=data:2/model:4, or in JSON model_args "
        '"mesh": {"data": 2, "model": 4}'
    )
