"""Dispatch of compiled executables on a CPU, so that consecutive steps overlap.

XLA's CPU client runs what one thread dispatches one execution after another. Each has parts that run on one core, while
the others idle. Executions that two threads dispatch run at the same time if neither needs a result of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from birdie_zmq.engine.jax.fixed_settings import fixed_settings


class Dispatch:
    """Calls executables in the thread of the caller."""

    def call(self, executable: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call an executable; return when it is dispatched, with results that may still be computed."""
        return executable(*arguments)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Dispatch the calls in this context as those of one step."""
        yield


class AlternatingDispatch(Dispatch):
    """Calls the executables of every other step in a second thread, so that consecutive steps overlap.

    The caller waits for each dispatch, so no two calls of Python code ever run at the same time.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "birdie-dispatch")
        self._is_second = False
        self._in_thread = False

    def call(self, executable: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call an executable in the thread of the current step."""
        if not self._in_thread:
            return executable(*arguments)
        return self._thread.submit(_call_with_fixed_settings, executable, arguments).result()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Dispatch the calls in this context in the thread that did not dispatch the step before."""
        self._in_thread = self._is_second = not self._is_second
        try:
            yield
        finally:
            self._in_thread = False


def _call_with_fixed_settings(executable: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call an executable under the settings of the engine, which hold in one thread only."""
    with fixed_settings():
        return executable(*arguments)
