"""The argument ``mesh=`` of model_args: the numbers of devices for data and tensor parallelism. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from birdie_zmq.errors import UsageError

MESH_ARGUMENT = "mesh"
AXES = ("data", "model")
"""The axes in the order in which devices are laid out: devices that share one copy of the weights are neighbours."""

SIZE_ARGUMENTS = {"data": ("data_parallel_size", "dp_size"), "model": ("tensor_parallel_size", "tp_size")}
"""The arguments of vLLM and SGLang that have the size of each axis."""

_AXIS = re.compile(rf"({'|'.join(AXES)}):\d+")


@dataclass(frozen=True)
class MeshShape:
    """The sizes of the two axes of a mesh of devices.

    Attributes:
        data: The number of groups of devices over which the rows of a step are sharded (data parallelism).
        model: The number of devices in each group, over which the weights are sharded (tensor parallelism).
    """

    data: int = 1
    model: int = 1

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.data * self.model

    def as_argument(self) -> dict[str, int]:
        """Return the canonical form for the arguments of a model, however the mesh was written."""
        return {"data": self.data, "model": self.model}

    def __str__(self) -> str:
        return f"data:{self.data}/model:{self.model}"


def pop_mesh(arguments: MutableMapping[str, object]) -> MeshShape | None:
    """Remove the mesh from model_args, as lm_eval parsed them, and return it; None if it is not given.

    Raises:
        UsageError: The value is not a mesh.
    """
    value = arguments.pop(MESH_ARGUMENT, None)
    if isinstance(value, str):
        # lm_eval.simple_evaluate splits its text at each comma: an axis after a comma is an argument without a value.
        split = [name for name, rest in arguments.items() if rest == "" and _AXIS.fullmatch(name)]
        for name in split:
            del arguments[name]
        value = "/".join([value, *split])
    return None if value is None else parse_mesh(value)


def mesh_of_sizes(arguments: Mapping[str, object]) -> MeshShape | None:
    """Return the mesh that the arguments of vLLM and SGLang in model_args describe; None for one device.

    Raises:
        UsageError: A size is not a whole number above 0, or two arguments contradict each other.
    """
    shape = MeshShape(**{axis: _one_size(arguments, names) for axis, names in SIZE_ARGUMENTS.items()})
    return shape if shape.size > 1 else None


def _one_size(arguments: Mapping[str, object], names: tuple[str, ...]) -> int:
    given = {name: arguments[name] for name in names if arguments.get(name) is not None}
    for name, size in given.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"{name}={size!r} in model_args must be a whole number above 0")
    sizes = {size for size in given.values() if isinstance(size, int)}
    if len(sizes) > 1:
        raise UsageError(f"{' and '.join(given)} in model_args contradict each other; set only one")
    return max(sizes, default=1)


def parse_mesh(value: object) -> MeshShape:
    """Parse a mesh as users write it: ``data:2/model:4``, also with commas; a list of such axes; or an object.

    Raises:
        UsageError: The value is none of these, has an unknown axis or one axis twice, or has a size that is not a
            whole number above 0.
    """
    sizes: dict[str, int] = {}
    for name, size in _axes(value):
        if name not in AXES:
            raise _mesh_error(value, f"the axis {name!r} is unknown; the axes are {' and '.join(AXES)}")
        if name in sizes:
            raise _mesh_error(value, f"the axis {name} is given twice")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise _mesh_error(value, f"the size of {name} is {size!r}, but must be a whole number above 0")
        sizes[name] = size
    if not sizes:
        raise _mesh_error(value, "no axis is given")
    return MeshShape(**sizes)


def _axes(value: object) -> list[tuple[str, object]]:
    """Return the names and sizes of the axes, unchecked."""
    if isinstance(value, Mapping):
        return [(str(name), size) for name, size in value.items()]
    if isinstance(value, str):
        return [_axis(value, text) for text in re.split(r"[/,]", value.strip().strip("[]"))]
    if isinstance(value, list | tuple):
        return [_axis(value, str(text)) for text in value]
    raise _mesh_error(value, f"its type is {type(value).__name__}")


def _axis(value: object, text: str) -> tuple[str, object]:
    name, colon, size = text.partition(":")
    if not colon:
        raise _mesh_error(value, f"{text!r} has no size")
    size = size.strip()
    return name.strip(), int(size) if size.isdecimal() else size


def _mesh_error(value: object, why: str) -> UsageError:
    return UsageError(
        f"mesh={value!r} in model_args: {why}; write for example mesh=data:2/model:4, or in JSON model_args "
        '"mesh": {"data": 2, "model": 4}'
    )
