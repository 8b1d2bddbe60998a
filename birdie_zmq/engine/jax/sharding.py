"""Shardings in JAX: arrays on the default device, or sharded over a mesh of devices.

The mesh has the axes ``data``, over which the rows of a step are sharded, and ``model``, over which a model shards its
weights. This module sets the shardings of inputs and states; the compiler propagates them through each executable.
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
    """Return a mesh of the first devices, over which the compiler partitions jitted functions.

    Raises:
        UsageError: There are too few devices.
    """
    devices = jax.devices()
    if shape.size > len(devices):
        raise UsageError(
            f"mesh={shape} in model_args needs {shape.size} devices, and the model process sees {len(devices)} "
            f"({devices[0].platform}); use a smaller mesh, or start the run or its worker where there are more devices, "
            "without --device N (on a CPU, with XLA_FLAGS=--xla_force_host_platform_device_count=N in its environment)"
        )
    sizes = tuple(getattr(shape, axis) for axis in AXES)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[: shape.size])


def mesh_sharding(mesh: Mesh, *axes: Any) -> NamedSharding:
    """Return the sharding that divides each axis of an array by the named mesh axis; None replicates it."""
    return NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]


def sharded(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Constrain the sharding of an array inside a jitted function."""
    constrained: jax.Array = jax.lax.with_sharding_constraint(x, sharding)  # type: ignore[no-untyped-call]
    return constrained


class MeshSharding:
    """The shardings of a model's arguments and results on a mesh.

    Args:
        mesh: The mesh; None leaves all arrays on the default device.

    Attributes:
        data: The number of device groups over which rows are sharded; 1 without a mesh.
        size: The number of devices; 1 without a mesh.

    If some devices belong to other processes, every process puts the same values, each onto its own devices.
    """

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh
        self.data = 1 if mesh is None else mesh.shape.get("data", 1)
        self.size = 1 if mesh is None else mesh.size

    def put_rows(self, array: Any) -> jax.Array:
        """Put an input [rows, …] on the devices: sharded by rows if their number divides evenly, else replicated."""
        if self.mesh is None:
            return jnp.asarray(array)
        return _put(array, mesh_sharding(self.mesh, self._row_axis(len(array))))

    def replicate(self, tree: Any) -> Any:
        """Put a pytree of inputs on the devices, replicated."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        everywhere = mesh_sharding(self.mesh)
        return jax.tree.map(lambda leaf: _put(leaf, everywhere), tree)

    def put_params(self, tree: Any) -> Any:
        """Put params on the devices: arrays that the user module has sharded stay as they are, others are replicated.

        NumPy arrays are put there too, because otherwise every step would copy them to the device.
        """
        if self.mesh is None:
            return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)
        everywhere = mesh_sharding(self.mesh)

        def put(leaf: Any) -> Any:
            is_sharded = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
            return _put(leaf, everywhere) if hasattr(leaf, "dtype") and not is_sharded else leaf

        return jax.tree.map(put, tree)

    def shard_rows(self, tree: Any) -> Any:
        """Shard arrays [rows, …] by rows inside a jitted function; the compiler chooses the sharding of the other axes."""
        if self.mesh is None:
            return tree
        mesh = self.mesh

        def constrain(x: jax.Array) -> jax.Array:
            if x.ndim == 0:
                return x
            others = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
            return sharded(x, mesh_sharding(mesh, self._row_axis(x.shape[0]), *others))

        return jax.tree.map(constrain, tree)

    def gather(self, tree: Any) -> Any:
        """Replicate arrays inside a jitted function, so that the host of each process can read them."""
        if self.mesh is None:
            return tree
        everywhere = mesh_sharding(self.mesh)
        return jax.tree.map(lambda x: sharded(x, everywhere), tree)

    def _row_axis(self, rows: int) -> str | None:
        return "data" if self.data > 1 and rows % self.data == 0 else None


def _put(values: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        array: jax.Array = jax.device_put(values, sharding)
        return array
    # device_put would compare the values of all processes, which takes a collective of its own.
    if isinstance(values, jax.Array) and jnp.issubdtype(values.dtype, jax.dtypes.prng_key):
        keys = _put(jax.random.key_data(values), sharding)
        wrapped: jax.Array = jax.random.wrap_key_data(keys, impl=jax.random.key_impl(values))
        return wrapped
    host = np.asarray(values)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def argument_shardings(tree: Any) -> tuple[Any, ...]:
    """Return the sharding of each leaf; an executable rejects arguments with other shardings."""
    return tuple(getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))


def bytes_per_device(leaves: Any, shardings: Any) -> int:
    """Return the bytes that arrays, or their shapes, take on one device under these shardings."""
    pairs = zip(jax.tree.leaves(leaves), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in pairs)
