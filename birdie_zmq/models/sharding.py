"""Over which devices of a mesh the weights and states of the built-in models lie.

Weights are divided over the axis ``model`` as their layout says, where their number of parts is a multiple of it; what
is not divided is whole on each device, so that any size of the axis which divides something can be asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jax.sharding import Mesh, NamedSharding

from birdie_zmq.engine.jax.sharding import on
from birdie_zmq.errors import UsageError
from birdie_zmq.models.weight_map import Layout, TensorSpec

AXIS = "model"
_ROWS = "data"


class Shardings(NamedTuple):
    """Where a tensor lies: as it is read, as it is in memory, and where it is one of a stack [l, ...]."""

    read: NamedSharding
    alone: NamedSharding
    stacked: NamedSharding


def shardings_of(stored: TensorSpec, mesh: Mesh) -> Shardings:
    """Where a tensor of a layout lies."""
    axes: list[str | None] = [None] * len(stored.shape)
    if stored.cut is not None and stored.cut.parts % _size(mesh, AXIS) == 0:
        axes[stored.cut.axis] = AXIS
    read = axes[::-1] if stored.transposed else axes
    return Shardings(on(mesh, *read), on(mesh, *axes), on(mesh, None, *axes))


def state_sharding(rows: int, heads: int, mesh: Mesh) -> NamedSharding:
    """Where keys and values [r, l, k, c, h] lie: rows over one axis, heads over the other, where they are multiples."""
    row_axis = _ROWS if rows % _size(mesh, _ROWS) == 0 else None
    head_axis = AXIS if heads % _size(mesh, AXIS) == 0 else None
    return on(mesh, row_axis, None, head_axis, None, None)


def divides_vocabulary(vocab_size: int, mesh: Mesh) -> bool:
    """Whether a device has the head of some tokens only."""
    return _size(mesh, AXIS) > 1 and vocab_size % _size(mesh, AXIS) == 0


def check(layout: Layout, mesh: Mesh) -> None:
    """See that the axis ``model`` is of use.

    Raises:
        UsageError: It divides nothing of the model. The sizes that would are named.
    """
    asked = _size(mesh, AXIS)
    parts = {stored.cut.parts for stored in (*layout.outer.values(), *layout.layers.values()) if stored.cut}
    if not any(count % asked == 0 for count in parts):
        fitting = [str(size) for size in range(2, 2 * asked) if any(count % size == 0 for count in parts)]
        raise UsageError(
            f"mesh= in model_args has model:{asked}, which divides none of this model's weights (their parts are "
            f"{', '.join(map(str, sorted(parts)))}); {', '.join(fitting) or 'no size near it'} would"
        )


def _size(mesh: Any, axis: str) -> int:
    size: int = mesh.shape[axis]
    return size
