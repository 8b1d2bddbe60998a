"""What ``load_model`` may return, and how it is told apart.

A callable gives logits. A pair is ``(apply, params)``. Everything that needs more words is a `Model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from birdie_zmq.errors import ModelLoadError

Logits = Callable[..., Any]
"""``(params, tokens int32[b, t]) -> float[b, t, v]``, or without params."""


@dataclass(frozen=True)
class Model:
    """A language model given by named parts.

    Attributes:
        logits: ``logits(params, tokens) -> scores`` with tokens int32[b, t] and scores float[b, t, v], the scores at
            position i being for the token after i. It is jitted by the engine. Rows are padded on the right, so a
            causal model needs no mask.
        params: The first argument of `logits`, any pytree of arrays.
        max_length: The most tokens of a row, if the model has such a bound.
        vocab_size: The size of v, if it is known without a call.
    """

    logits: Logits
    params: Any = None
    max_length: int | None = None
    vocab_size: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model in the one form that engines take.

    ``jit`` is whether the engine may trace `logits` together with its params. A bare callable is not traced: weights
    closed over would become constants of the program, and it may not be traceable at all.
    """

    logits: Logits
    params: Any
    jit: bool
    max_length: int | None = None
    vocab_size: int | None = None


def resolve(returned: object) -> LoadedModel:
    """Bring what ``load_model`` returned into one form.

    Raises:
        ModelLoadError: It is none of a callable, a pair and a Model.
    """
    if isinstance(returned, Model):
        return LoadedModel(returned.logits, returned.params, True, returned.max_length, returned.vocab_size)
    if isinstance(returned, tuple) and len(returned) == 2 and callable(returned[0]):
        return LoadedModel(returned[0], returned[1], True)
    if callable(returned):
        return LoadedModel(returned, None, False)
    raise ModelLoadError(
        f"load_model returned {_describe(returned)}; it must return a callable from tokens to logits, a pair "
        "(apply, params) with apply(params, tokens), or a birdie_zmq.Model"
    )


def _describe(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of ({', '.join(type(item).__name__ for item in value)})"
    return "None" if value is None else f"a {type(value).__name__}"
