"""What a model's functions give for a small row, found out while it is loaded: jitted ones are only traced for it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.engine.backend import ExecutionMode
from birdie_zmq.engine.jax.executables import named
from birdie_zmq.engine.model_api import Model
from birdie_zmq.engine.output_checks import check_hidden, vocabulary_of, wrong_score
from birdie_zmq.engine.prefix_cache import capacity_for
from birdie_zmq.errors import ModelLoadError, ModelOutputError


def check_leaves(params: Any) -> None:
    """Hold every leaf of the params against what a compiled function takes: arrays of any dtype, keys, and numbers.

    JAX's own errors name the engine's function instead of the page's leaf.

    Raises:
        ModelLoadError: A leaf is a shape without values, or no array at all; its path is named.
    """
    for path, leaf in jax.tree.leaves_with_path(params):
        where = f"the params that load_model returned hold a {type(leaf).__name__}"
        if path:
            where += f" at {jax.tree_util.keystr(path)}"
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ModelLoadError(f"{where}, which has a shape and no values; restore or initialise the model first")
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise ModelLoadError(
                f"{where}, which is no array; keep it out of the params, as eqx.partition(model, eqx.is_array) does"
            )


def find_vocabulary(model: Model, ability: ExecutionMode, shape: tuple[int, int], *, jit: bool) -> int:
    """The size of the vocabulary, by a row of tokens of this shape.

    Args:
        model: Its functions.
        ability: Which of them are used; not ``pairs``.
        shape: One row, and its length.
        jit: Whether the functions may be traced; a bare callable is called.

    Raises:
        ModelCallError: A function raised.
        ModelOutputError: It returned what has not the right form.
    """
    with named(f"tokens int32{list(shape)}"):
        if jit:
            returned = jax.eval_shape(functools.partial(_logits, model, ability, shape), model.params)
        else:
            assert model.logits is not None
            returned = model.logits(jnp.zeros(shape, jnp.int32))
    return check_logits(returned, shape)


def try_score(model: Model, params: Any, shape: tuple[int, int]) -> None:
    """Look at what the model's own score gives for rows of this shape.

    Raises:
        ModelCallError: It raised.
        ModelOutputError: It returned what has not the right form.
    """
    assert model.score is not None
    ids = jnp.zeros(shape, jnp.int32)
    with named(f"input_ids int32{list(shape)}"):
        returned = jax.eval_shape(model.score, params, ids, ids, ids)
    columns = returned if isinstance(returned, tuple) else (returned,)
    forms = [(getattr(column, "shape", None), getattr(column, "dtype", None)) for column in columns]
    match forms:
        case [(rows, float_dtype), (same_rows, bool_dtype)] if (
            rows == same_rows == shape[:1]
            and float_dtype is not None
            and jnp.issubdtype(float_dtype, jnp.floating)
            and bool_dtype == jnp.bool_
        ):
            return
    raise wrong_score(columns, shape)


def _logits(model: Model, ability: ExecutionMode, shape: tuple[int, int], params: Any) -> Any:
    tokens = jnp.zeros(shape, jnp.int32)
    if ability == "rows" and model.hidden is None:
        assert model.logits is not None
        return model.logits(params, tokens)
    assert model.unembed is not None
    if ability == "rows":
        assert model.hidden is not None
        read = model.hidden(params, tokens)
    else:
        assert model.init_state is not None
        assert model.extend is not None
        state = model.init_state(params, shape[0], capacity_for(shape[1]))
        returned = model.extend(params, tokens, jnp.full(shape[0], shape[1], jnp.int32), state)
        read = _extended(returned, state)
    check_hidden(read, shape)
    return model.unembed(params, read.reshape(-1, read.shape[-1])).reshape(*shape, -1)


def check_logits(returned: Any, shape: tuple[int, ...]) -> int:
    """The last axis of what must be logits for tokens of this shape.

    Raises:
        ModelOutputError: It is not a floating-point array [*shape, vocabulary].
    """
    return vocabulary_of(returned, shape, lambda array: jnp.issubdtype(array.dtype, jnp.floating))


def _extended(returned: Any, state: Any) -> Any:
    """The hidden states that `extend` returned, once its state is seen to be of the form that it was given.

    Raises:
        ModelOutputError: It did not return both, or its state has changed its form.
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ModelOutputError(f"extend must return (hidden, state), but returned a {type(returned).__name__}")
    forms = [
        (jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)])
        for tree in (state, returned[1])
    ]
    if forms[0] != forms[1]:
        raise ModelOutputError(
            f"extend must return a state of the form that it was given, but {forms[0][1]} became {forms[1][1]}"
        )
    return returned[0]
