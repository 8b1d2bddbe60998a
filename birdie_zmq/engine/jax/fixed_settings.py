"""Fixed values of JAX's global settings, under which this package's own functions run: some settings change results or raise.

The environment or a user module may set them for another purpose, such as training. The engine enters `fixed_settings`
before it traces or runs anything, and calls the functions of a user's model under `users_settings`, since those may rely
on what their author has set. The built-in models are this package's own functions.

Not fixed: ``jax_enable_x64``, since logits and states of the user's model may have 64 bits, and
``jax_default_matmul_precision``. The engine names its dtypes and multiplies no matrices; the built-in models are computed
`in_32_bits` and name the precision of each product.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import jax
import jax.experimental

_FIXED: Mapping[str, tuple[Callable[[Any], Any], object]] = {
    "jax_check_tracer_leaks": (jax.check_tracer_leaks, False),
    "jax_debug_infs": (jax.debug_infs, False),
    "jax_debug_key_reuse": (jax.debug_key_reuse, False),
    "jax_debug_nans": (jax.debug_nans, False),  # padding may be NaN, and the engine reports NaN that matters
    "jax_disable_jit": (jax.disable_jit, False),
    "jax_numpy_dtype_promotion": (jax.numpy_dtype_promotion, "standard"),
    "jax_numpy_rank_promotion": (jax.numpy_rank_promotion, "allow"),
    "jax_threefry_partitionable": (jax.threefry_partitionable, True),
    "jax_transfer_guard_device_to_device": (jax.transfer_guard_device_to_device, "allow"),
    "jax_transfer_guard_device_to_host": (jax.transfer_guard_device_to_host, "allow"),
    "jax_transfer_guard_host_to_device": (jax.transfer_guard_host_to_device, "allow"),
}
"""The settings by their names in `jax.config`, each with its context manager and its fixed value."""


_enable_x64: Callable[[bool], AbstractContextManager[None]] = (
    jax if hasattr(jax, "enable_x64") else jax.experimental
).enable_x64
"""Is in `jax.experimental` before jax 0.8."""


class _Replaced(threading.local):
    """The values that `fixed_settings` has replaced in this thread; None outside of it."""

    values: Mapping[str, object] | None = None


_replaced = _Replaced()


@contextmanager
def fixed_settings() -> Iterator[None]:
    """Run a block under the fixed values."""
    if _replaced.values is not None:
        yield
        return
    found = {name: _current(name) for name in _FIXED}
    differing = {name: value for name, value in found.items() if value not in (None, _FIXED[name][1])}
    with _applied({name: _FIXED[name][1] for name in differing}):
        _replaced.values = differing
        try:
            yield
        finally:
            _replaced.values = None


def in_32_bits() -> AbstractContextManager[None]:
    """Return a context in which numbers have 32 bits unless their dtype says otherwise, as in JAX by default."""
    return _enable_x64(False) if _current("jax_enable_x64") else nullcontext()


@contextmanager
def users_settings() -> Iterator[None]:
    """Run a block under the values that `fixed_settings` has replaced."""
    values = _replaced.values
    if values is None:
        yield
        return
    with _applied(values):
        _replaced.values = None
        try:
            yield
        finally:
            _replaced.values = values


def _current(name: str) -> object:
    """Return the value of a setting in this thread; None for JAX's default."""
    value = getattr(jax.config, name)
    return getattr(value, "value", value)  # of an enum


@contextmanager
def _applied(values: Mapping[str, object]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(_FIXED[name][0](value))
        yield
