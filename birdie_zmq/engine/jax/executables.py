"""Compiled programs in JAX, and what goes wrong in them.

Every program is compiled before it is called, once for each shape (and on several devices for each way in which its
arguments lie on them), and the seconds are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

from birdie_zmq.engine import model_errors
from birdie_zmq.engine.jax.compiler_options import compiler_options
from birdie_zmq.engine.jax.sharding import Placement, places

_NO_ROOM = ("RESOURCE_EXHAUSTED", "Out of memory")
"""What runtimes say; the CPU's calls it INTERNAL where a later program meets what could not be computed."""

Compiled = Callable[..., Any]


class Executables:
    """The programs of one model.

    Args:
        placement: Over which devices their arguments are spread.

    Attributes:
        seconds: How long compiling took.
        tracing_seconds: How long the Python functions took to become what is compiled.
    """

    def __init__(self, placement: Placement | None = None) -> None:
        self.placement = placement or Placement(None)
        self._programs: dict[Any, Compiled] = {}
        self.seconds = 0.0
        self.tracing_seconds = 0.0

    def get(self, key: Any, function: Any, *arguments: Any, donated: int | None = None) -> Compiled:
        """The program for arguments of these shapes, which the key tells apart; it may overwrite the donated one."""
        if self.placement.mesh is not None:
            key = (key, places(arguments))  # on several devices a program is one for where its arguments lie
        program = self._programs.get(key)
        if program is None:
            began = time.monotonic()
            lowered = jax.jit(function, donate_argnums=() if donated is None else donated).lower(*arguments)
            traced = time.monotonic()
            program = self._programs[key] = lowered.compile(compiler_options=compiler_options())
            self.seconds += time.monotonic() - traced
            self.tracing_seconds += traced - began
        return program

    def forget(self) -> None:
        """Compile all anew."""
        self._programs.clear()

    def run(self, key: Any, function: Any, *arguments: Any, donated: int | None = None) -> Any:
        """Call the program."""
        return self.get(key, function, *arguments, donated=donated)(*arguments)


def named(what: str) -> AbstractContextManager[None]:
    """Say of an error of the model's own function what it was called with, as `birdie_zmq.engine.model_errors.named`."""
    return model_errors.named(what, _has_no_room)


def _has_no_room(error: Exception) -> bool:
    return isinstance(error, jax.errors.JaxRuntimeError) and any(words in str(error) for words in _NO_ROOM)
