"""The steps that are compiled: functions of the built-in models and of the engine, and the shapes of their arguments."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from birdie_zmq.engine.jax import lm_head
from birdie_zmq.models import decoder
from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.attention import Target

TOKENS_PER_CALL = 8
"""Number of tokens that one call decodes for each row, as in the budget of accelerators."""


@dataclass(frozen=True)
class StepShape:
    """The shape of a step, written as ``extend:1x1024@8192``: kind, rows, tokens of a row, and capacity of a state.

    The kinds are ``texts`` (rows of one text each), ``trees``, ``extend``, ``decode`` (`TOKENS_PER_CALL` tokens of each
    row) and ``head`` (the scores of tokens at as many positions as there are rows).
    """

    kind: str
    rows: int
    length: int = 1
    capacity: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a shape.

        Raises:
            ValueError: It is not one.
        """
        found = re.fullmatch(r"(texts|trees|extend|decode|head):(\d+)(?:x(\d+))?(?:@(\d+))?", text)
        if found is None:
            raise ValueError(f"{text!r} is not the shape of a step; write for example extend:1x1024@8192")
        kind, rows, length, capacity = found.groups()
        return cls(kind, int(rows), int(length or 1), int(capacity or 0))

    def __str__(self) -> str:
        length = f"x{self.length}" if self.length > 1 else ""
        return f"{self.kind}:{self.rows}{length}" + (f"@{self.capacity}" if self.capacity else "")


@dataclass(frozen=True)
class CompiledFunction:
    """A function, the shapes of its arguments, and the index of the state that it overwrites, if any."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: int | None = None

    @property
    def state_bytes(self) -> int:
        """The size of that state."""
        if self.donated is None:
            return 0
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.arguments[self.donated]))


def build(architecture: Architecture, dtype: str, shape: StepShape, target: Target) -> CompiledFunction:
    """Return the function of a step of a model."""
    params = jax.eval_shape(lambda key: architecture.init_params(key, dtype), jax.random.key(0))
    rows = _integers(shape.rows, shape.length)
    function: Any

    def state(rows: int) -> Any:
        return jax.eval_shape(
            lambda params: decoder.init_state(
                architecture, params, rows, shape.capacity, target=target._replace(mesh=None)
            ),
            params,
        )

    match shape.kind:
        case "texts":
            return CompiledFunction(lambda p, x: decoder.hidden(architecture, p, x, target=target), (params, rows))
        case "trees":
            function = functools.partial(decoder.branch, architecture, target=target)
            return CompiledFunction(function, (params, rows, rows, rows, state(1) if shape.capacity else None))
        case "extend":
            function = functools.partial(decoder.extend, architecture, target=target)
            return CompiledFunction(function, (params, rows, _integers(shape.rows), state(shape.rows)), 3)
        case "decode":
            decode = functools.partial(_decode, architecture, target)
            arguments = (params, state(shape.rows), _integers(shape.rows), _integers(shape.rows))
            return CompiledFunction(decode, arguments, 1)
    hidden = jax.ShapeDtypeStruct((shape.rows, params.outer["embedding"].shape[1]), dtype)  # type: ignore[no-untyped-call]
    return CompiledFunction(functools.partial(_score, architecture), (params, hidden, _integers(shape.rows)))


def _decode(architecture: Architecture, target: Target, params: Any, state: Any, last: Any, active: Any) -> Any:
    """Decode some tokens of each row, as `birdie_zmq.engine.jax.decoding` does."""

    def step(carry: tuple[Any, jax.Array], _: Any) -> tuple[tuple[Any, jax.Array], jax.Array]:
        state, last = carry
        hidden, state = decoder.extend(architecture, params, last[:, None], active, state, target=target)
        token = lm_head.greedy_tokens(decoder.unembed(architecture, params, hidden[:, 0]))[0]
        return (state, token), token

    result: Any = jax.lax.scan(step, (state, last), None, length=TOKENS_PER_CALL)
    (state, _), tokens = result
    return state, tokens


def _score(architecture: Architecture, params: Any, hidden: jax.Array, targets: jax.Array) -> Any:
    return lm_head.score(decoder.unembed(architecture, params, hidden), targets)


def _integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)  # type: ignore[no-untyped-call]
