"""Whether a model is of the framework that an engine computes in, told without importing any.

A module of PyTorch is a callable like any other, and would fail in JAX by an error that says nothing of the cause.
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
"""The engine that computes what a package's types are of."""

_NAMES = {"torch": "PyTorch", "jax": "JAX"}


@contextmanager
def only_framework(model: LoadedModel, engine: str) -> Iterator[None]:
    """Entered around the making of a backend: refuse a model of another framework, and say so where it is likely.

    Args:
        model: What load_model returned, resolved.
        engine: The engine's name.

    Raises:
        ModelLoadError: The model is of another framework.
        ModelCallError, ModelOutputError: As raised inside, with what to do if the model is of another framework.
    """
    parts = model.parts
    functions = [parts.logits, parts.hidden, parts.unembed, parts.extend]
    for value in _seen([*functions, parts.params]):
        other = _engine_of(value)
        if other is not None and other != engine:
            raise ModelLoadError(
                f"load_model returned a model of {_NAMES[other]} ({type(value).__name__}), and the engine of this worker "
                f"is {engine}; {_advice(other)}"
            )
    try:
        yield
    except (ModelCallError, ModelOutputError) as error:
        others = sorted({_ENGINES[name] for name in _ENGINES if name in sys.modules} - {engine})
        if not others:
            raise
        hints = [f"if it is a model of {_NAMES[other]}, {_advice(other)}" for other in others]
        text = f"{error.message} (the engine is {engine}; {'; '.join(hints)})"
        raise type(error)(text, remote_traceback=error.remote_traceback) from (error.__cause__ or error)


def _advice(engine: str) -> str:
    return f"say engine={engine} in model_args, or start the worker with --engine {engine} (python -m workers.{engine}_worker)"


def _engine_of(value: object) -> str | None:
    """The engine that a value's type belongs to, by the package of any of its bases."""
    packages = (base.__module__.partition(".")[0] for base in type(value).__mro__)
    return next((_ENGINES[package] for package in packages if package in _ENGINES), None)


def _seen(values: Any) -> Iterator[object]:
    """The leaves of nested containers, and what methods are bound to."""
    for value in values:
        if isinstance(value, Mapping):
            yield from _seen(value.values())
        elif isinstance(value, list | tuple):
            yield from _seen(value)
        elif isinstance(value, functools.partial):
            yield from _seen([value.func, value.args, value.keywords])
        elif value is not None:
            yield value
            yield getattr(value, "__self__", None)
