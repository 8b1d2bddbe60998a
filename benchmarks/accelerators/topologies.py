"""Descriptions of devices that this machine lacks, for which JAX compiles ahead of time.

The compilers come from PyPI: XLA for NVIDIA GPUs from jax-cuda12-plugin, and XLA for TPUs from libtpu.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from birdie_zmq.engine.mesh_shape import AXES

_H200 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
 shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000
 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
 cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
 platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H200" """

TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
"""What libtpu asks the environment where no TPU answers."""


@dataclass(frozen=True)
class Chip:
    """A kind of device.

    Attributes:
        platform: JAX's name of the platform.
        devices: The number of devices that a description can name.
        memory_bytes: The memory of one device.
        flops: Its peak rate of bfloat16 matrix products, in operations per second.
        bandwidth: The peak bandwidth of its memory, in bytes per second.
        capability: The compute capability of a GPU.
    """

    platform: str
    devices: int
    memory_bytes: int
    flops: float
    bandwidth: float
    capability: tuple[int, int] | None = None


CHIPS = {
    "h200": Chip("gpu", 4, 150_000_000_000, 990e12, 4.8e12, (9, 0)),
    "v5e": Chip("tpu", 4, 16 * 2**30, 197e12, 819e9),
}


def mesh_of(chip: str, model: int = 1) -> Mesh:
    """Return a mesh of `model` devices of a kind, over which a model shards its weights.

    Raises:
        RuntimeError: The compiler for this kind is not installed.
    """
    return Mesh(
        np.array(_topology(chip).devices[:model]).reshape(1, model), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def _topology(chip: str) -> Any:
    if chip == "h200":
        return topologies.get_topology_desc("h200", "cuda", target_config=_H200, topology="1x1x4")
    for name, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc("v5e:2x2", "tpu")


def check_platform() -> None:
    """Check that JAX runs on the CPU: a real device would be used for what is only compiled here.

    Raises:
        RuntimeError: It does not.
    """
    if jax.default_backend() != "cpu":
        raise RuntimeError("set JAX_PLATFORMS=cpu: this command compiles for devices that the machine need not have")
