"""Check that a model belongs to the framework of the engine, without importing any framework.

A PyTorch module is a callable like any other, and would fail in JAX with an error that does not name the cause.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from birdie_zmq.engine.model_api import LoadedModel
from birdie_zmq.errors import ModelCallError, ModelLoadError, ModelOutputError

_ENGINES = {"torch": "torch", "jax": "jax", "jaxlib": "jax", "flax": "jax"}
"""The engine that computes values of a package's types, by the name of the package."""

_NAMES = {"torch": "PyTorch", "jax": "JAX"}


@contextmanager
def only_framework(loaded: LoadedModel, engine: str) -> Iterator[None]:
    """Reject a model of another framework; entered around the construction of a backend.

    Args:
        loaded: The resolved return value of load_model.
        engine: The engine's name.

    Raises:
        ModelLoadError: The model belongs to another framework.
        ModelCallError, ModelOutputError: As raised within the context, with advice in case the model belongs to another
            framework that is imported.
    """
    functions = [loaded.model.logits, loaded.model.hidden, loaded.model.unembed, loaded.model.extend]
    for value in _leaves([*functions, loaded.model.params]):
        other = _engine_of(value)
        if other is not None and other != engine:
            raise ModelLoadError(
                f"load_model returned a {_NAMES[other]} model ({type(value).__name__}), but the engine of this worker is "
                f"{engine}; {_advice(other)}"
            )
    try:
        yield
    except (ModelCallError, ModelOutputError) as error:
        others = sorted({_ENGINES[name] for name in _ENGINES if name in sys.modules} - {engine})
        if not others:
            raise
        hints = [f"if this is a {_NAMES[other]} model, {_advice(other)}" for other in others]
        text = f"{error.message} (the engine is {engine}; {'; '.join(hints)})"
        raise type(error)(text, remote_traceback=error.remote_traceback) from (error.__cause__ or error)


def _advice(engine: str) -> str:
    return f"set engine={engine} in model_args, or start the worker with --engine {engine} (python -m workers.{engine}_worker)"


def _engine_of(value: object) -> str | None:
    """Return the engine for a value, by the package of its type or of any base; None if there is none."""
    packages = (base.__module__.partition(".")[0] for base in type(value).__mro__)
    return next((_ENGINES[package] for package in packages if package in _ENGINES), None)


def _leaves(values: Any) -> Iterator[object]:
    """Yield the leaves of nested containers, and the objects that methods are bound to."""
    for value in values:
        if isinstance(value, Mapping):
            yield from _leaves(value.values())
        elif isinstance(value, list | tuple):
            yield from _leaves(value)
        elif isinstance(value, functools.partial):
            yield from _leaves([value.func, value.args, value.keywords])
        elif value is not None:
            yield value
            yield getattr(value, "__self__", None)
