"""Compiler options for XLA, because its defaults suit executables that run for days."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping

import jax

logger = logging.getLogger(__name__)

_GPU_OPTIONS: dict[str, str | bool] = {
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_dot_merger_threshold_mb": "0",
}
"""Matrix products use cuBLAS. XLA would otherwise autotune Triton kernels for each of them, which took most of a minute
for each step shape in float32 (H200, jax 0.11.2). Products of the same input are not merged: XLA would copy the weights of
queries, keys and values into one matrix in each layer and step."""


def options_for(platform: str, environment: Mapping[str, str]) -> dict[str, str | bool]:
    """Return the options for a platform, without those that XLA_FLAGS already sets.

    Args:
        platform: JAX's name of the platform: ``cpu``, ``gpu`` or ``tpu``.
        environment: The environment variables of the process.
    """
    xla_flags = environment.get("XLA_FLAGS", "")
    return {name: value for name, value in _GPU_OPTIONS.items() if platform == "gpu" and name not in xla_flags}


@functools.cache
def compiler_options() -> dict[str, str | bool] | None:
    """Return the options for this process; None if there are none or this XLA rejects them."""
    options = options_for(jax.default_backend(), os.environ)
    if not options:
        return None
    if jax.__version_info__ < (0, 11):
        logger.info(
            "XLA of jax %s copies weights in each decode step on a GPU; jax 0.11 or later does not", jax.__version__
        )
    try:
        jax.jit(lambda x: x + 1).lower(0).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        logger.warning(
            "XLA rejects our compiler options, so it compiles with its defaults, which may take long: %s", error
        )
        return None
    return options
