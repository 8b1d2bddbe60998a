"""Probes of a model's functions with a small row while it is loaded; jitted functions are only traced."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.engine.jax.executables import model_call
from birdie_zmq.engine.model_api import Model
from birdie_zmq.engine.output_checks import check_hidden, logits_vocab_size, score_output_error
from birdie_zmq.engine.prefix_cache import capacity_for
from birdie_zmq.errors import ModelLoadError, ModelOutputError


def check_params(params: Any) -> None:
    """Check that every leaf of the params is a valid argument of a jitted function: an array, a random key or a number.

    JAX's own errors would name the engine's function instead of the user module's leaf.

    Raises:
        ModelLoadError: A leaf is a shape without values, or not an array. The message names its path.
    """
    for path, leaf in jax.tree.leaves_with_path(params):
        where = f"the params that load_model returned contain a {type(leaf).__name__}"
        if path:
            where += f" at {jax.tree_util.keystr(path)}"
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ModelLoadError(f"{where}, which has a shape but no values; restore or initialise the model first")
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise ModelLoadError(
                f"{where}, which is not an array; keep it out of the params, as eqx.partition(model, eqx.is_array) does"
            )


def probe_vocabulary(model: Model, shape: tuple[int, int], *, jit: bool) -> int:
    """Return the size of the vocabulary, from the model's output for one row of tokens.

    Args:
        model: The model's functions; those that compute texts are probed.
        shape: (1, length) of the row.
        jit: Whether the functions may be traced; a bare callable is called.

    Raises:
        ModelCallError: A function raised.
        ModelOutputError: A function returned a value of the wrong shape or dtype.
    """
    with model_call(f"tokens int32{list(shape)}"):
        if jit:
            returned = jax.eval_shape(functools.partial(_logits, model, shape), model.params)
        else:
            assert model.logits is not None
            returned = model.logits(jnp.zeros(shape, jnp.int32))
    return check_logits(returned, shape)


def probe_score(model: Model, params: Any, shape: tuple[int, int]) -> None:
    """Check what the model's own `score` returns for rows of this shape.

    Raises:
        ModelCallError: It raised.
        ModelOutputError: It returned values of the wrong shape or dtype.
    """
    assert model.score is not None
    ids = jnp.zeros(shape, jnp.int32)
    with model_call(f"input_ids int32{list(shape)}"):
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
    raise score_output_error(columns, shape)


def _logits(model: Model, shape: tuple[int, int], params: Any) -> Any:
    tokens = jnp.zeros(shape, jnp.int32)
    if model.extend is not None:
        assert model.init_state is not None
        state = model.init_state(params, shape[0], capacity_for(shape[1]))
        returned = model.extend(params, tokens, jnp.full(shape[0], shape[1], jnp.int32), state)
        read = _check_extended(returned, state)
    elif model.hidden is not None:
        read = model.hidden(params, tokens)
    else:
        assert model.logits is not None
        return model.logits(params, tokens)
    assert model.unembed is not None
    check_hidden(read, shape)
    return model.unembed(params, read.reshape(-1, read.shape[-1])).reshape(*shape, -1)


def check_logits(returned: Any, shape: tuple[int, ...]) -> int:
    """Return the size of the last axis of logits for tokens of this shape.

    Raises:
        ModelOutputError: The value is not a floating-point array [*shape, vocabulary].
    """
    return logits_vocab_size(returned, shape, lambda array: jnp.issubdtype(array.dtype, jnp.floating))


def _check_extended(returned: Any, state: Any) -> Any:
    """Return the hidden states of `extend`, after checking that its new state matches the one it was given.

    Raises:
        ModelOutputError: It did not return both, or the state's tree, shapes or dtypes have changed.
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ModelOutputError(f"extend must return (hidden, state), but returned a {type(returned).__name__}")
    forms = [
        (jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)])
        for tree in (state, returned[1])
    ]
    if forms[0] != forms[1]:
        raise ModelOutputError(
            f"extend must return a state of the same tree, shapes and dtypes as its argument, but {forms[0][1]} became "
            f"{forms[1][1]}"
        )
    return returned[0]
