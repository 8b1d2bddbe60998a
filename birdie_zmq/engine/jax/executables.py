"""Compiled executables in JAX, and their errors.

Every function is compiled ahead of its call, once for each shape, and on several devices once for each sharding of its
arguments. The seconds of tracing and compilation are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from birdie_zmq.engine import model_errors
from birdie_zmq.engine.jax.compiler_options import compiler_options
from birdie_zmq.engine.jax.dispatch import Dispatch
from birdie_zmq.engine.jax.fixed_settings import fixed_settings
from birdie_zmq.engine.jax.sharding import MeshSharding, argument_shardings

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")
"""Fragments of out-of-memory errors. On a CPU, an executable that uses a failed result has the status INTERNAL."""

Compiled = Callable[..., Any]


class Executables:
    """The compiled executables of one model.

    Args:
        sharding: How arguments are sharded over devices; None for the default device.
        dispatch: How they are called.

    Attributes:
        dispatch: How they are called.
        compile_seconds: Seconds of compilation.
        tracing_seconds: Seconds of tracing and lowering the Python functions.
    """

    def __init__(self, sharding: MeshSharding | None = None, dispatch: Dispatch | None = None) -> None:
        self.sharding = sharding or MeshSharding(None)
        self.dispatch = dispatch or Dispatch()
        self._executables: dict[Any, Compiled] = {}
        self.compile_seconds = 0.0
        self.tracing_seconds = 0.0

    def get(self, key: Any, function: Any, *arguments: Any, donated: int | None = None) -> Compiled:
        """Return the executable for arguments of these shapes, identified by the key; it may overwrite the donated argument."""
        if self.sharding.mesh is not None:
            # On several devices an executable accepts only one sharding of its arguments.
            key = (key, argument_shardings(arguments))
        executable = self._executables.get(key)
        if executable is None:
            began = time.monotonic()
            with fixed_settings():
                lowered = jax.jit(function, donate_argnums=() if donated is None else donated).lower(*arguments)
                traced = time.monotonic()
                executable = self._executables[key] = lowered.compile(compiler_options=compiler_options())
            self.compile_seconds += time.monotonic() - traced
            self.tracing_seconds += traced - began
        return executable

    def clear(self) -> None:
        """Drop all executables, so that they are compiled again."""
        self._executables.clear()

    def run(self, key: Any, function: Any, *arguments: Any, donated: int | None = None) -> Any:
        """Call the executable; compile it first if it is new."""
        return self.dispatch.call(self.get(key, function, *arguments, donated=donated), arguments)


@contextmanager
def model_call(what: str) -> Iterator[None]:
    """Fix JAX's settings, and name the input in errors of the model's own function.

    Raises:
        OutOfDeviceMemory, ModelCallError: As `birdie_zmq.engine.model_errors.model_call`.
    """
    with fixed_settings(), model_errors.model_call(what, _is_out_of_memory):
        yield


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError) and any(fragment in str(error) for fragment in _OUT_OF_MEMORY)
