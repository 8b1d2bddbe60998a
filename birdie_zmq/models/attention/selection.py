"""The implementation of attention for each platform."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from birdie_zmq.models.attention.blockwise import BlockwiseAttention
from birdie_zmq.models.attention.interface import AttentionImplementation, Target
from birdie_zmq.models.attention.static_shapes import StaticAttention


def attention_for(target: Target) -> AttentionImplementation:
    """Return the implementation of attention for the devices that a function is compiled for."""
    return BlockwiseAttention() if target.platform == "cpu" else StaticAttention()


def default_target(mesh: Mesh | None = None) -> Target:
    """Return the target of functions that run on a mesh, or on JAX's default device."""
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return Target(device.platform, mesh)
