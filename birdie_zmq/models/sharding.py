"""How the weights and states of the built-in models are sharded over a mesh.

A weight is sharded over the axis ``model`` as its `ShardSpec` allows, if its number of parts is a multiple of the size
of that axis. All other weights are replicated on every device, so any size that divides at least one weight is
accepted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jax.sharding import Mesh, NamedSharding

from birdie_zmq.engine.jax.sharding import mesh_sharding
from birdie_zmq.errors import UsageError
from birdie_zmq.models.weight_map import ShardSpec, TensorSpec, WeightMap

MODEL_AXIS = "model"
_DATA_AXIS = "data"


class TensorShardings(NamedTuple):
    """The shardings of a tensor: in its form in the file, in its form in memory, and in a stack of layers [l, ...]."""

    in_file: NamedSharding
    in_memory: NamedSharding
    stacked: NamedSharding


def tensor_shardings(spec: TensorSpec, mesh: Mesh) -> TensorShardings:
    """Return the shardings of a tensor of a weight map."""
    axes: list[str | None] = [None] * len(spec.shape)
    if spec.shard is not None and spec.shard.parts % _size(mesh, MODEL_AXIS) == 0:
        axes[spec.shard.axis] = MODEL_AXIS
    file_axes = axes[::-1] if spec.transposed else axes
    leading = [None] if spec.members is None else [None, None]
    return TensorShardings(
        mesh_sharding(mesh, *file_axes), mesh_sharding(mesh, *axes), mesh_sharding(mesh, *leading, *axes)
    )


def state_sharding(shape: tuple[int, ...], heads: tuple[int, int], mesh: Mesh) -> NamedSharding:
    """Return the sharding of keys or values [r, l, ...] of a KV cache.

    Rows are sharded over the axis ``data`` and heads over the axis ``model``, if their numbers are multiples of its
    size.

    Args:
        shape: The shape of the keys or values.
        heads: The axis of the heads, which may hold their widths as well, and the number of heads.
        mesh: The mesh.
    """
    axes: list[str | None] = [None] * len(shape)
    axis, count = heads
    axes[0] = row_axis(shape[0], mesh)
    axes[axis] = MODEL_AXIS if count % _size(mesh, MODEL_AXIS) == 0 else None
    return mesh_sharding(mesh, *axes)


def recurrent_sharding(shape: tuple[int, ...], shard: ShardSpec | None, mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array [r, l, ...] of the states of recurrences; `shard` counts its last axes."""
    axis, parts = (0, 1) if shard is None else shard
    return state_sharding(shape, (axis + 2, parts), mesh)


def row_axis(rows: int, mesh: Mesh) -> str | None:
    """Return the axis over which rows are sharded; None if their number is not a multiple of its size."""
    return _DATA_AXIS if rows % _size(mesh, _DATA_AXIS) == 0 else None


def divides_vocabulary(vocab_size: int, mesh: Mesh) -> bool:
    """Return whether the LM head is sharded over the vocabulary."""
    return _size(mesh, MODEL_AXIS) > 1 and vocab_size % _size(mesh, MODEL_AXIS) == 0


def check_mesh(weight_map: WeightMap, mesh: Mesh) -> None:
    """Check that the axis ``model`` divides some weight of the model.

    Raises:
        UsageError: The axis divides none. The message names sizes that would.
    """
    requested = _size(mesh, MODEL_AXIS)
    parts = {spec.shard.parts for spec in weight_map.specs() if spec.shard}
    if not any(count % requested == 0 for count in parts):
        fitting = [str(size) for size in range(2, 2 * requested) if any(count % size == 0 for count in parts)]
        raise UsageError(
            f"mesh= in model_args has model:{requested}, which divides none of this model's weights (they can be "
            f"divided into {', '.join(map(str, sorted(parts)))} parts); {', '.join(fitting) or 'no size near it'} would"
        )


def _size(mesh: Any, axis: str) -> int:
    size: int = mesh.shape[axis]
    return size
