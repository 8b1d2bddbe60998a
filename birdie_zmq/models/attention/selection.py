"""The implementation of attention for each platform, and the kernel for this process's devices."""

from __future__ import annotations

import os
from collections.abc import Iterable

import jax
from jax.sharding import Mesh

from birdie_zmq.errors import UsageError
from birdie_zmq.models import cpu_kernels
from birdie_zmq.models.attention import cudnn
from birdie_zmq.models.attention.blockwise import BlockwiseAttention
from birdie_zmq.models.attention.cudnn import CudnnKernel, PagedCudnnKernel
from birdie_zmq.models.attention.interface import AttentionImplementation, Target
from birdie_zmq.models.attention.kernel_check import agrees_with_xla
from birdie_zmq.models.attention.splash import SplashKernel
from birdie_zmq.models.attention.static_shapes import FlashKernel, StaticAttention
from birdie_zmq.settings import ATTENTION_VARIABLE

_KERNELS: dict[str, FlashKernel | None] = {
    "xla": None,
    "cudnn": CudnnKernel(),
    "paged_cudnn": PagedCudnnKernel(),
    "splash": SplashKernel(),
}


_WIDEST_HEAD = 256
"""The width of the widest heads that a kernel supports."""


def attention_for(target: Target) -> AttentionImplementation:
    """Return the implementation of attention for the devices that a function is compiled for."""
    return BlockwiseAttention() if target.platform == "cpu" else StaticAttention(_KERNELS[target.kernel])


def default_target(mesh: Mesh | None = None, head_widths: Iterable[int] = (), float32_bytes: int = 0) -> Target:
    """Return the target of functions that run on a mesh, or on JAX's default device.

    A kernel is chosen only if it is there and computes on these devices what XLA computes, for heads of each width of the
    model; a warning says if it does not. On a CPU, kernels are chosen by the bytes of the model's float32 weights.
    The environment variable BIRDIE_ZMQ_ATTENTION=xla forbids kernels.

    Raises:
        UsageError: The variable has another value.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    target = Target(device.platform, mesh)
    wanted = os.environ.get(ATTENTION_VARIABLE, "")
    if wanted not in ("", "xla"):
        raise UsageError(f"{ATTENTION_VARIABLE}={wanted} is not supported; set it to xla, or unset it")
    if wanted == "xla":
        return target
    if device.platform == "cpu":
        return target._replace(kernel="numba") if mesh is None and cpu_kernels.is_worthwhile(float32_bytes) else target
    # Kernels leave wider heads to XLA.
    widths = sorted({width for width in head_widths if width <= _WIDEST_HEAD}) or [64]

    def is_right(kernel: CudnnKernel | SplashKernel) -> bool:
        return all(agrees_with_xla(kernel, width, mesh) for width in widths)

    if device.platform == "gpu" and "rocm" not in device.client.platform_version and cudnn.is_available():
        # Pages are numbered across the rows of one device.
        if mesh is None and is_right(PagedCudnnKernel()):
            return target._replace(kernel="paged_cudnn")
        return target._replace(kernel="cudnn" if is_right(CudnnKernel()) else "xla")
    if device.platform == "tpu" and mesh is None and is_right(SplashKernel()):
        return target._replace(kernel="splash")  # XLA does not partition the kernel over a mesh
    return target
