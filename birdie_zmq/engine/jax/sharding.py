"""Where arrays lie, in JAX: on the default device, or spread over a mesh of devices.

The mesh has the axes ``data``, over which the rows of a step are dealt out, and ``model``, over which a model divides
its weights. What is said here is where inputs and states begin; the compiler carries it through each program.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from birdie_zmq.engine.mesh_shape import AXES, MeshShape
from birdie_zmq.errors import UsageError


def make_mesh(shape: MeshShape) -> Mesh:
    """The first devices there are, as a mesh over which the compiler spreads what is jitted.

    Raises:
        UsageError: There are too few.
    """
    devices = jax.devices()
    if shape.size > len(devices):
        raise UsageError(
            f"mesh={shape} in model_args needs {shape.size} devices, and the model process sees {len(devices)} "
            f"({devices[0].platform}); make it smaller, or start the run or its worker where there are more, without --device N "
            "(on a CPU, with XLA_FLAGS=--xla_force_host_platform_device_count=N in its environment)"
        )
    sizes = tuple(getattr(shape, axis) for axis in AXES)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[: shape.size])


def on(mesh: Mesh, *axes: Any) -> NamedSharding:
    """How an array lies on a mesh: the axis of the mesh by which each of its own is divided, None for whole."""
    return NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]


def lying(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The same array, which a program then lets lie so."""
    kept: jax.Array = jax.lax.with_sharding_constraint(x, sharding)  # type: ignore[no-untyped-call]
    return kept


class Placement:
    """Puts arrays onto a mesh.

    Args:
        mesh: The mesh; None leaves everything where JAX puts it.

    Attributes:
        data: Over how many groups of devices rows are dealt out; 1 without a mesh.
        size: How many devices there are; 1 without a mesh.

    Where some of the devices are those of other processes, every process puts the same values there, each onto its own.
    """

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh
        self.data = 1 if mesh is None else mesh.shape.get("data", 1)
        self.size = 1 if mesh is None else mesh.size

    def rows(self, array: Any) -> jax.Array:
        """An input [rows, …] on the devices: dealt out where the rows can be, else whole on each."""
        if self.mesh is None:
            return jnp.asarray(array)
        return _put(array, on(self.mesh, self._axis(len(array))))

    def whole(self, tree: Any) -> Any:
        """Inputs of any form, whole on each device."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        everywhere = on(self.mesh)
        return jax.tree.map(lambda leaf: _put(leaf, everywhere), tree)

    def params(self, tree: Any) -> Any:
        """Params: those that a page has put onto several devices stay there, others come to be whole on each.

        Arrays of NumPy would be copied to the device in every step.
        """
        if self.mesh is None:
            return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)
        everywhere = on(self.mesh)

        def place(leaf: Any) -> Any:
            is_spread = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
            return _put(leaf, everywhere) if hasattr(leaf, "dtype") and not is_spread else leaf

        return jax.tree.map(place, tree)

    def dealt(self, tree: Any) -> Any:
        """Arrays [rows, …] inside a program: their rows are dealt out; how the other axes lie is left to the compiler."""
        if self.mesh is None:
            return tree
        mesh = self.mesh

        def place(x: jax.Array) -> jax.Array:
            if x.ndim == 0:
                return x
            others = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
            return lying(x, on(mesh, self._axis(x.shape[0]), *others))

        return jax.tree.map(place, tree)

    def fetched(self, tree: Any) -> Any:
        """Arrays inside a program that the host reads next: whole on each device, as each process needs them."""
        if self.mesh is None:
            return tree
        everywhere = on(self.mesh)
        return jax.tree.map(lambda x: lying(x, everywhere), tree)

    def _axis(self, rows: int) -> str | None:
        return "data" if self.data > 1 and rows % self.data == 0 else None


def _put(values: Any, where: NamedSharding) -> jax.Array:
    if where.is_fully_addressable:
        placed: jax.Array = jax.device_put(values, where)
        return placed
    # device_put would compare the values of all processes, which takes a collective of its own.
    if isinstance(values, jax.Array) and jnp.issubdtype(values.dtype, jax.dtypes.prng_key):
        keys = _put(jax.random.key_data(values), where)
        wrapped: jax.Array = jax.random.wrap_key_data(keys, impl=jax.random.key_impl(values))
        return wrapped
    host = np.asarray(values)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def places(tree: Any) -> tuple[Any, ...]:
    """Where each leaf lies: what a compiled program takes elsewhere it refuses."""
    return tuple(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))


def bytes_on_a_device(leaves: Any, shardings: Any) -> int:
    """What arrays, or their shapes, take of one device where they lie so."""
    pairs = zip(jax.tree.leaves(leaves), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in pairs)
