"""What XLA is told of how to compile, where its own choice is for programs that run for days."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping

import jax

logger = logging.getLogger(__name__)

_FOR_GPUS: dict[str, str | bool] = {"xla_gpu_enable_triton_gemm": False}
"""Matrix products come from NVIDIA's library. XLA would write kernels of its own for each of them, try them and take the
best, which took most of a minute for each shape of a step in float32 (H200, jax 0.11.2)."""


def options_for(platform: str, environment: Mapping[str, str]) -> dict[str, str | bool]:
    """The options for a platform; none that XLA_FLAGS speaks of.

    Args:
        platform: As JAX names it: ``cpu``, ``gpu`` or ``tpu``.
        environment: Variables of the process.
    """
    said = environment.get("XLA_FLAGS", "")
    return {name: value for name, value in _FOR_GPUS.items() if platform == "gpu" and name not in said}


@functools.cache
def compiler_options() -> dict[str, str | bool] | None:
    """The options for this process, None where there are none or this XLA does not know them."""
    options = options_for(jax.default_backend(), os.environ)
    if not options:
        return None
    try:
        jax.jit(lambda x: x + 1).lower(0).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        logger.warning("XLA compiles by its own choice, which may take long: %s", error)
        return None
    return options
