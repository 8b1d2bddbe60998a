"""Compile a step for a chip, and read from the compiler what it will do."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from benchmarks.accelerators.architectures import ARCHITECTURES
from benchmarks.accelerators.steps import CompiledFunction, StepShape, build
from benchmarks.accelerators.topologies import CHIPS, mesh_of
from birdie_zmq.engine.jax.compiler_options import options_for
from birdie_zmq.engine.jax.sharding import mesh_sharding
from birdie_zmq.models.attention import Target, attention_for
from birdie_zmq.models.attention.interface import CacheSize, KVCache
from birdie_zmq.models.decoder import DecoderState
from birdie_zmq.models.sharding import state_sharding, tensor_shardings
from birdie_zmq.models.weight_map import Params

KERNELS = {"h200": "paged_cudnn", "v5e": "splash"}

FLASH_CALLS = ("__cudnn$fmha", "tpu_custom_call")


@dataclass(frozen=True)
class Facts:
    """What the compiler says of a step.

    Attributes:
        seconds: Seconds of compiling.
        temporary_bytes: The memory of one device beside arguments and results.
        state_bytes: The size of the state that the step overwrites, on each device; 0 if there is none.
        argument_bytes: The size of all arguments on each device, the state included.
        in_place: Whether the state is overwritten in its own memory.
        loops: Number of loops.
        unknown_loops: Number of loops for which a GPU would wait for the host before each turn.
        flash: Whether a kernel computes attention.
        text: The optimised program.
    """

    seconds: float
    temporary_bytes: int
    state_bytes: int
    argument_bytes: int
    in_place: bool
    loops: int
    unknown_loops: int
    flash: bool
    text: str


def compile_step(chip: str, model: str, dtype: str, shape: StepShape, devices: int = 1) -> Facts:
    """Compile a step.

    Args:
        chip: A key of `CHIPS`.
        model: A key of `ARCHITECTURES`.
        dtype: The dtype of the weights.
        shape: The step.
        devices: The number of devices over which the weights are sharded.

    Raises:
        jax.errors.JaxRuntimeError: The compiler fails, or the step needs more memory than a device has.
    """
    platform, mesh = CHIPS[chip].platform, mesh_of(chip, devices)
    kernel: Any = KERNELS[chip] if devices == 1 else "cudnn" if platform == "gpu" else "xla"
    target = Target(platform, mesh if devices > 1 else None, kernel)
    step = build(ARCHITECTURES[model](), dtype, shape, target)
    donated = () if step.donated is None else (step.donated,)
    jitted = jax.jit(step.function, in_shardings=_shardings(model, step, target, mesh), donate_argnums=donated)
    options = options_for(platform, {}) or None
    began = time.monotonic()
    with _capability_of(chip):
        compiled = jitted.lower(*step.arguments).compile(compiler_options=options)
    seconds = time.monotonic() - began
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    loops = len(re.findall(r"= .* while\(", text))
    # libtpu does not print how often a loop turns; a TPU runs loops by itself in any case.
    known = text.count("known_trip_count") if platform == "gpu" else loops
    state_bytes = step.state_bytes // devices
    return Facts(
        seconds,
        memory.temp_size_in_bytes,
        state_bytes,
        memory.argument_size_in_bytes,
        memory.alias_size_in_bytes >= state_bytes,
        loops,
        loops - known,
        any(call in text for call in FLASH_CALLS),
        text,
    )


@contextmanager
def _capability_of(chip: str) -> Iterator[None]:
    """Let JAX's cuDNN module ask this chip for its compute capability; it would ask the default device, which is a CPU."""
    capability = CHIPS[chip].capability
    if capability is None:
        yield
        return
    module: Any = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    asked = module.check_compute_capability
    module.check_compute_capability = lambda least: capability >= tuple(map(int, least.split(".")))
    try:
        yield
    finally:
        module.check_compute_capability = asked


def _shardings(model: str, step: CompiledFunction, target: Target, mesh: Mesh) -> Any:
    """Return the shardings of a step's arguments: those of the engine on several devices."""
    replicated = mesh_sharding(mesh)
    if target.mesh is None:
        return jax.tree.map(lambda _: replicated, step.arguments)
    architecture = ARCHITECTURES[model]()
    weights = architecture.weight_map()

    def of_argument(argument: Any) -> Any:
        outer: Any
        layers: Any
        if isinstance(argument, Params):
            outer = {name: tensor_shardings(spec, mesh).in_memory for name, spec in weights.outer.items()}
            layers = [
                {name: tensor_shardings(spec, mesh).stacked for name, spec in each.specs.items()}
                for each in weights.stacks
            ]
            return Params(outer, tuple(layers))
        if isinstance(argument, DecoderState):
            sizes = zip(argument.caches, architecture.cache_sizes, strict=True)
            caches = tuple(_of_cache(cache, size, target, mesh) for cache, size in sizes)
            return argument._replace(caches=caches, lengths=replicated)  # type: ignore[arg-type]
        return jax.tree.map(lambda _: replicated, argument)

    return tuple(map(of_argument, step.arguments))


def _of_cache(cache: KVCache, size: CacheSize, target: Target, mesh: Mesh) -> Any:
    heads = (attention_for(target).heads_axis, size.kv_heads)
    shardings: Any = [state_sharding(x.shape, heads, mesh) for x in cache]
    return KVCache(*shardings)
