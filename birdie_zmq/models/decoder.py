"""The functions of `birdie_zmq.Model`, for a decoder of any family.

Matrices are multiplied in full float32 where the weights are float32: GPUs and TPUs would otherwise round their inputs
to fewer bits (TF32, bfloat16), and scores would differ from those of other machines.

Shape letters: b rows, t position in a row, d width of the residual stream, v vocabulary; those of a state are in
`attention`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from birdie_zmq.engine.jax.sharding import lying
from birdie_zmq.engine.model_api import Model
from birdie_zmq.models.attention import Reading, State, whole_blocks, written
from birdie_zmq.models.sharding import divides_vocabulary, state_sharding
from birdie_zmq.models.weight_map import Architecture, Params, Read


def logits(architecture: Architecture, params: Params, tokens: jax.Array) -> jax.Array:
    """The logits of the next token at every position.

    Args:
        architecture: static under `jax.jit`.
        params: all of one floating dtype.
        tokens: integer [b, t], ids in [0, vocab_size).

    Returns:
        float32 [b, t, v]; ``[:, i]`` scores the token at position i + 1.

    Raises:
        ValueError: `tokens` is not an integer array of rank 2, or longer than a table of positions.
    """
    return unembed(architecture, params, hidden(architecture, params, tokens))


def hidden(architecture: Architecture, params: Params, tokens: jax.Array) -> jax.Array:
    """Final hidden states [b, t, d] of int [b, t], each row a text from its first position on.

    Attention is causal, so what stands to the right of a row's end cannot reach the positions before it: padding there
    needs no mask.

    Raises:
        ValueError: As for `logits`.
    """
    return _read(architecture, params, tokens, Reading(_positions(tokens)[None])).hidden


def unembed(architecture: Architecture, params: Params, hidden: jax.Array) -> jax.Array:
    """Float32 logits [..., v] of hidden states [..., d]."""
    with jax.default_matmul_precision("highest"):
        return architecture.unembed(params, hidden)


def unembed_part(
    architecture: Architecture, params: Params, hidden: jax.Array, begin: jax.Array | int, size: int
) -> jax.Array:
    """As `unembed`, for the `size` tokens from `begin` on: float32 [..., size]."""
    outer = dict(params.outer)
    if "head" in outer:
        outer["head"] = jax.lax.dynamic_slice_in_dim(outer["head"], begin, size, axis=1)
    else:
        outer["embedding"] = jax.lax.dynamic_slice_in_dim(outer["embedding"], begin, size)
    return unembed(architecture, params._replace(outer=outer), hidden)


def init_state(
    architecture: Architecture, params: Params, batch: int, capacity: int, *, mesh: Mesh | None = None
) -> State:
    """The state of rows that have read nothing, with room for `capacity` tokens each."""
    layers, groups, width = architecture.state_shape
    shape, dtype = (batch, layers, groups, whole_blocks(capacity), width), params.outer["embedding"].dtype
    state = State(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))
    return _spread(state, mesh)


def extend(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    state: State,
    *,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, State]:
    """Let each row read on: hidden states [b, t, d] of int [b, t], and the state after `lengths` int32 [b] of them.

    Raises:
        ValueError: As for `logits`.
    """
    reading = Reading(state.lengths[:, None] + _positions(tokens)[None], state=state)
    read = _read(architecture, params, tokens, reading)
    return read.hidden, _spread(written(state, read.keys, read.values, lengths), mesh)


def branch(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    depths: jax.Array,
    ends: jax.Array,
    state: State | None,
    *,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Hidden states [b, t, d] of trees of texts, as `birdie_zmq.Model.branch` describes them.

    Raises:
        ValueError: As for `logits`.
    """
    before = 0 if state is None else state.lengths[0]
    reading = Reading(depths + before, ends, state, are_dealt_out=mesh is not None)
    return _read(architecture, params, tokens, reading).hidden


def model_of(architecture: Architecture, params: Params, mesh: Mesh | None = None) -> Model:
    """The model in the form that engines take; over a mesh, where its params lie on one."""

    def bound(function: Any, **keywords: Any) -> Any:
        def call(*arguments: Any) -> Any:
            return function(architecture, *arguments, **keywords)

        return call

    # A part of a vocabulary that is divided already would be gathered from all devices first.
    in_parts = mesh is None or not divides_vocabulary(architecture.vocab_size, mesh)

    return Model(
        params=params,
        logits=bound(logits),
        hidden=bound(hidden),
        unembed=bound(unembed),
        unembed_part=bound(unembed_part) if in_parts else None,
        init_state=bound(init_state, mesh=mesh),
        extend=bound(extend, mesh=mesh),
        branch=bound(branch, mesh=mesh),
        max_length=architecture.max_length,
        vocab_size=architecture.vocab_size,
    )


def _spread(state: State, mesh: Mesh | None) -> State:
    """A state whose heads lie where the matrices that make their keys and values do."""
    if mesh is None:
        return state
    where = state_sharding(state.keys.shape[0], state.keys.shape[2], mesh)
    keys, values = (lying(x, where) for x in (state.keys, state.values))
    return state._replace(keys=keys, values=values)


def _positions(tokens: jax.Array) -> jax.Array:
    return jnp.arange(tokens.shape[-1], dtype=jnp.int32)


def _read(architecture: Architecture, params: Params, tokens: jax.Array, reading: Reading) -> Read:
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have the shape [batch, length], not {list(tokens.shape)}")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, not {tokens.dtype}")
    with jax.default_matmul_precision("highest"):
        return architecture.backbone(params, tokens, reading)
