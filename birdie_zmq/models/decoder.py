"""The functions of `birdie_zmq.Model` for a decoder of any family.

Matrices are multiplied in full float32 if the weights are float32: GPUs and TPUs would otherwise round their inputs to
fewer bits (TF32, bfloat16), and scores would differ from those of other machines.

Shape letters: b rows, t position in a row, d width of the residual stream, v vocabulary; those of the KV cache are in
`attention`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from birdie_zmq.engine.jax.fixed_settings import fixed_settings, in_32_bits
from birdie_zmq.engine.jax.sharding import sharded
from birdie_zmq.engine.model_api import Model
from birdie_zmq.models.attention import AttentionMetadata, KVCache, append_tokens, round_up_to_blocks
from birdie_zmq.models.sharding import divides_vocabulary, state_sharding
from birdie_zmq.models.weight_map import Architecture, BackboneOutput, Params


def logits(architecture: Architecture, params: Params, tokens: jax.Array) -> jax.Array:
    """Compute the logits of the next token at every position.

    Args:
        architecture: Static under `jax.jit`.
        params: All of one floating dtype.
        tokens: Integer [b, t], ids in [0, vocab_size).

    Returns:
        float32 [b, t, v]; ``[:, i]`` scores the token at position i + 1.

    Raises:
        ValueError: `tokens` is not an integer array of rank 2, or longer than a table of positions.
    """
    return unembed(architecture, params, hidden(architecture, params, tokens))


def hidden(architecture: Architecture, params: Params, tokens: jax.Array) -> jax.Array:
    """Compute final hidden states [b, t, d] of tokens int [b, t]; each row is one sequence from position 0 on.

    Attention is causal, so padding to the right of a sequence does not reach its positions and needs no mask.

    Raises:
        ValueError: As for `logits`.
    """
    return _forward(architecture, params, tokens, AttentionMetadata(_positions(tokens)[None])).hidden


def unembed(architecture: Architecture, params: Params, hidden: jax.Array) -> jax.Array:
    """Compute float32 logits [..., v] of hidden states [..., d]."""
    with jax.default_matmul_precision("highest"):
        return architecture.unembed(params, hidden)


def unembed_part(
    architecture: Architecture, params: Params, hidden: jax.Array, begin: jax.Array | int, size: int
) -> jax.Array:
    """Compute the logits of the `size` tokens from `begin` on: float32 [..., size]."""
    outer = dict(params.outer)
    if "head" in outer:
        outer["head"] = jax.lax.dynamic_slice_in_dim(outer["head"], begin, size, axis=1)
    else:
        outer["embedding"] = jax.lax.dynamic_slice_in_dim(outer["embedding"], begin, size)
    return unembed(architecture, params._replace(outer=outer), hidden)


def init_state(
    architecture: Architecture, params: Params, batch: int, capacity: int, *, mesh: Mesh | None = None
) -> KVCache:
    """Create an empty KV cache of `batch` rows with a capacity of `capacity` tokens each."""
    layers, groups, width = architecture.state_shape
    shape, dtype = (batch, layers, groups, round_up_to_blocks(capacity), width), params.outer["embedding"].dtype
    state = KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))
    return _constrain_state(state, mesh)


def extend(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    state: KVCache,
    *,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, KVCache]:
    """Extend each row by tokens int [b, t], of which the first `lengths` int32 [b] are real.

    Returns:
        Hidden states [b, t, d], and the state after the real tokens.

    Raises:
        ValueError: As for `logits`.
    """
    metadata = AttentionMetadata(state.lengths[:, None] + _positions(tokens)[None], state=state)
    output = _forward(architecture, params, tokens, metadata)
    return output.hidden, _constrain_state(append_tokens(state, output.keys, output.values, lengths), mesh)


def branch(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    depths: jax.Array,
    ends: jax.Array,
    state: KVCache | None,
    *,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Compute hidden states [b, t, d] of trees of sequences, as `birdie_zmq.Model.branch` describes them.

    Raises:
        ValueError: As for `logits`.
    """
    prefix_length = 0 if state is None else state.lengths[0]
    metadata = AttentionMetadata(depths + prefix_length, ends, state, rows_sharded=mesh is not None)
    return _forward(architecture, params, tokens, metadata).hidden


def build_model(architecture: Architecture, params: Params, mesh: Mesh | None = None) -> Model:
    """Build the `Model` that engines run; `mesh` is the mesh that holds the params, if any."""

    def bind(function: Any, **keywords: Any) -> Any:
        def call(*arguments: Any) -> Any:
            with fixed_settings(), in_32_bits():
                return function(architecture, *arguments, **keywords)

        return call

    # A slice of a sharded vocabulary would first be gathered from all devices.
    slices_vocabulary = mesh is None or not divides_vocabulary(architecture.vocab_size, mesh)

    return Model(
        params=params,
        logits=bind(logits),
        hidden=bind(hidden),
        unembed=bind(unembed),
        unembed_part=bind(unembed_part) if slices_vocabulary else None,
        init_state=bind(init_state, mesh=mesh),
        extend=bind(extend, mesh=mesh),
        branch=bind(branch, mesh=mesh),
        max_length=min(architecture.max_length, architecture.position_limit or architecture.max_length),
        vocab_size=architecture.vocab_size,
    )


def _constrain_state(state: KVCache, mesh: Mesh | None) -> KVCache:
    """Shard a state by rows, and by heads like the matrices that compute its keys and values."""
    if mesh is None:
        return state
    sharding = state_sharding(state.keys.shape[0], state.keys.shape[2], mesh)
    keys, values = (sharded(x, sharding) for x in (state.keys, state.values))
    return state._replace(keys=keys, values=values)


def _positions(tokens: jax.Array) -> jax.Array:
    return jnp.arange(tokens.shape[-1], dtype=jnp.int32)


def _forward(
    architecture: Architecture, params: Params, tokens: jax.Array, metadata: AttentionMetadata
) -> BackboneOutput:
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have the shape [batch, length], not {list(tokens.shape)}")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, not {tokens.dtype}")
    with jax.default_matmul_precision("highest"):
        return architecture.backbone(params, tokens, metadata)
