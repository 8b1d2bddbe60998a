"""The functions of `birdie_zmq.Model` for a decoder of any family.

Matrices are multiplied in full float32 if the weights are float32: GPUs and TPUs would otherwise round their inputs to
fewer bits (TF32, bfloat16), and scores would differ from those of other machines.

Shape letters: b rows, t position in a row, d width of the residual stream, v vocabulary; those of the KV cache are in
`attention`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from birdie_zmq.engine.jax.fixed_settings import fixed_settings, in_32_bits
from birdie_zmq.engine.jax.sharding import sharded
from birdie_zmq.engine.model_api import Model
from birdie_zmq.models.architecture import Architecture, BackboneOutput, RecurrentStates
from birdie_zmq.models.attention import (
    CPU,
    AttentionMetadata,
    CachedTokens,
    KeysValues,
    KVCache,
    Target,
    attention_for,
)
from birdie_zmq.models.decoder_layer import LayerEntries
from birdie_zmq.models.sharding import divides_vocabulary, recurrent_sharding, state_sharding
from birdie_zmq.models.weight_map import Params

Entries = tuple[LayerEntries, ...]
"""What a state keeps of a step, for each stack of layers."""


class DecoderState(NamedTuple):
    """The tokens that rows have processed.

    Attributes:
        caches: Their keys and values, one KV cache for each of the architecture's `cache_sizes`.
        lengths: int32 [r], the number of filled slots of each row.
        recurrent: The states of recurrences, [r, l, ...].
    """

    caches: tuple[KVCache, ...]
    lengths: jax.Array
    recurrent: RecurrentStates = ()

    def from_position(self, begin: jax.Array | int) -> CachedTokens:
        """Return the tokens, the first of each row at position `begin`."""
        return CachedTokens(self.caches, self.lengths, jnp.asarray(begin, jnp.int32))


def logits(architecture: Architecture, params: Params, tokens: jax.Array, *, target: Target = CPU) -> jax.Array:
    """Compute the logits of the next token at every position.

    Args:
        architecture: Static under `jax.jit`.
        params: All of one floating dtype.
        tokens: Integer [b, t], ids in [0, vocab_size).
        target: The devices that compute it, here and in the functions below. Static under `jax.jit`.

    Returns:
        float32 [b, t, v]; ``[:, i]`` scores the token at position i + 1.

    Raises:
        ValueError: `tokens` is not an integer array of rank 2, or longer than a table of positions.
    """
    return unembed(architecture, params, hidden(architecture, params, tokens, target=target))


def hidden(architecture: Architecture, params: Params, tokens: jax.Array, *, target: Target = CPU) -> jax.Array:
    """Compute final hidden states [b, t, d] of tokens int [b, t]; each row is one sequence from position 0 on.

    Attention is causal, so padding to the right of a sequence does not reach its positions and needs no mask.

    Raises:
        ValueError: As for `logits`.
    """
    return _forward(architecture, params, tokens, AttentionMetadata(_positions(tokens)[None], target=target)).hidden


def unembed(architecture: Architecture, params: Params, hidden: jax.Array, *, target: Target = CPU) -> jax.Array:
    """Compute float32 logits [..., v] of hidden states [..., d]."""
    with jax.default_matmul_precision("highest"):
        return architecture.unembed(params, hidden, by_kernel=target.kernel == "numba")


def unembed_part(
    architecture: Architecture, params: Params, hidden: jax.Array, begin: jax.Array | int, size: int
) -> jax.Array:
    """Compute the logits of the `size` tokens from `begin` on: float32 [..., size]."""
    outer = dict(params.outer)
    if "head_bias" in outer:
        outer["head_bias"] = jax.lax.dynamic_slice_in_dim(outer["head_bias"], begin, size)
    if "head" in outer:
        outer["head"] = jax.lax.dynamic_slice_in_dim(outer["head"], begin, size, axis=1)
    else:
        outer["embedding"] = jax.lax.dynamic_slice_in_dim(outer["embedding"], begin, size)
    return unembed(architecture, params._replace(outer=outer), hidden)


def init_state(
    architecture: Architecture, params: Params, batch: int, capacity: int, *, target: Target = CPU
) -> DecoderState:
    """Create an empty state of `batch` rows with a capacity of `capacity` tokens each."""
    implementation, dtype = attention_for(target), params.outer["embedding"].dtype
    caches = tuple(implementation.create_cache(batch, size, capacity, dtype) for size in architecture.cache_sizes)
    recurrent = architecture.init_states(batch, dtype)
    return _constrain_state(architecture, DecoderState(caches, jnp.zeros(batch, jnp.int32), recurrent), target)


def extend(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    state: DecoderState,
    *,
    target: Target = CPU,
) -> tuple[jax.Array, DecoderState]:
    """Extend each row by tokens int [b, t], of which the first `lengths` int32 [b] are real.

    Returns:
        Hidden states [b, t, d], and the state after the real tokens.

    Raises:
        ValueError: As for `logits`.
    """
    offsets = _positions(tokens)[None]
    metadata = AttentionMetadata(state.lengths[:, None] + offsets, real=offsets < lengths[:, None], target=target)
    output = _forward(architecture, params, tokens, metadata, state.from_position(0), states=state.recurrent)
    after = state._replace(recurrent=output.recurrent)
    return output.hidden, _append(architecture, after, output.own, lengths, target)


def extend_after(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    state: DecoderState,
    prefix: DecoderState,
    *,
    target: Target = CPU,
) -> tuple[jax.Array, DecoderState]:
    """Extend each row as `extend` does, where all rows come after one prefix, the state of one row.

    Raises:
        ValueError: As for `logits`, or the model has a recurrence.
    """
    _check_attention_only(architecture, "rows after a shared prefix")
    begin, offsets = prefix.lengths[0], _positions(tokens)[None]
    positions = begin + state.lengths[:, None] + offsets
    metadata = AttentionMetadata(positions, real=offsets < lengths[:, None], target=target)
    past = prefix.from_position(0), state.from_position(begin)
    output = _forward(architecture, params, tokens, metadata, *past)
    return output.hidden, _append(architecture, state, output.own, lengths, target)


def resize(
    architecture: Architecture, params: Params, state: DecoderState, capacity: int, *, target: Target = CPU
) -> DecoderState:
    """Return a state with another capacity in tokens, which holds all tokens of its rows."""
    del params
    implementation = attention_for(target)
    caches = tuple(implementation.resize_cache(cache, capacity) for cache in state.caches)
    return _constrain_state(architecture, state._replace(caches=caches), target)


def branch(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    depths: jax.Array,
    ends: jax.Array,
    state: DecoderState | None,
    *,
    target: Target = CPU,
) -> jax.Array:
    """Compute hidden states [b, t, d] of trees of sequences, as `birdie_zmq.Model.branch` describes them.

    Raises:
        ValueError: As for `logits`, or the model has a recurrence.
    """
    return prefill(architecture, params, tokens, depths, ends, state, target=target)[0]


def prefill(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    depths: jax.Array,
    ends: jax.Array,
    state: DecoderState | None,
    *,
    target: Target = CPU,
) -> tuple[jax.Array, Entries]:
    """Compute trees of sequences as `branch` does, and return also the keys and values of their tokens.

    Raises:
        ValueError: As for `logits`, or the model has a recurrence.
    """
    _check_attention_only(architecture, "trees of texts")
    _check_tokens(tokens)
    positions = depths if state is None else depths + state.lengths[0]
    real = ~_tree_padding(tokens, depths, ends)
    metadata = AttentionMetadata(positions, ends, rows_sharded=target.mesh is not None, real=real, target=target)
    past = () if state is None else (state.from_position(0),)
    output = _forward(architecture, params, tokens, metadata, *past)
    return output.hidden, output.own


def append(
    architecture: Architecture,
    params: Params,
    state: DecoderState,
    entries: Entries,
    path: jax.Array,
    length: jax.Array,
    *,
    target: Target = CPU,
) -> DecoderState:
    """Append the first `length` int32 [] tokens of a path int32 [n] through the trees of `prefill` to a state of one row."""
    del params

    def take(x: jax.Array) -> jax.Array:
        row, position = jnp.divmod(path, x.shape[3])
        return x[:, row, :, position].transpose(1, 2, 0, 3)[:, None]  # [l, b, k, t, h] -> [l, 1, k, n, h]

    own = tuple(
        LayerEntries(None if each.keys_values is None else KeysValues(*map(take, each.keys_values))) for each in entries
    )
    return _append(architecture, state, own, length[None], target)


def _append(
    architecture: Architecture, state: DecoderState, entries: Entries, lengths: jax.Array, target: Target
) -> DecoderState:
    """Append tokens to each row; the first `lengths` int32 [r] of them are real.

    Each cache is written once, when all layers have read it: a write before another layer reads would copy the cache.
    """
    caches, append_tokens = [], attention_for(target).append_tokens
    stacks = [stack for segment in architecture.stacks for stack in segment]
    for number, cache in enumerate(state.caches):
        written = {
            stack.offset: own.keys_values
            for stack, own in zip(stacks, entries, strict=True)
            if own.keys_values is not None and stack.cache == number
        }
        parts = [written[offset] for offset in sorted(written)]  # in the order of the layers in the cache
        new = parts[0] if len(parts) == 1 else KeysValues(*map(jnp.concatenate, zip(*parts, strict=True)))
        caches.append(append_tokens(cache, 0, new, state.lengths))
    appended = DecoderState(tuple(caches), state.lengths + lengths, state.recurrent)
    return _constrain_state(architecture, appended, target)


def build_model(architecture: Architecture, params: Params, target: Target = CPU) -> Model:
    """Build the `Model` that engines run; `target` is the devices that hold the params.

    A model with a recurrence has no functions of trees: a state that texts continue is then extended in copies.
    """

    def bind(function: Any, **keywords: Any) -> Any:
        def call(*arguments: Any) -> Any:
            with fixed_settings(), in_32_bits():
                return function(architecture, *arguments, **keywords)

        return call

    limits = [limit for limit in (architecture.max_length, architecture.position_limit) if limit is not None]
    # A slice of a sharded vocabulary would first be gathered from all devices.
    slices_vocabulary = target.mesh is None or not divides_vocabulary(architecture.vocab_size, target.mesh)
    of_trees = {"branch": branch, "prefill": prefill, "append": append, "extend_after": extend_after}
    if architecture.has_recurrence:
        of_trees = {}

    return Model(
        params=params,
        logits=bind(logits, target=target),
        hidden=bind(hidden, target=target),
        unembed=bind(unembed, target=target),
        unembed_part=bind(unembed_part) if slices_vocabulary else None,
        init_state=bind(init_state, target=target),
        extend=bind(extend, target=target),
        resize=bind(resize, target=target),
        max_length=min(limits, default=None),
        vocab_size=architecture.vocab_size,
        **{name: bind(function, target=target) for name, function in of_trees.items()},
    )


def _constrain_state(architecture: Architecture, state: DecoderState, target: Target) -> DecoderState:
    """Shard a state by rows, and by heads like the matrices that compute it."""
    if target.mesh is None:
        return state
    caches, heads_axis = [], attention_for(target).heads_axis
    for size, cache in zip(architecture.cache_sizes, state.caches, strict=True):
        sharding = state_sharding(cache.keys.shape, (heads_axis, size.kv_heads), target.mesh)
        caches.append(KVCache(*(sharded(x, sharding) for x in cache)))
    stacks = [stack for segment in architecture.stacks for stack in segment]
    recurrent = tuple(
        tuple(
            sharded(array, recurrent_sharding(array.shape, spec.shard, target.mesh))
            for spec, array in zip(stack.layer.states, arrays, strict=True)
        )
        for stack, arrays in zip(stacks, state.recurrent, strict=True)
    )
    return state._replace(caches=tuple(caches), recurrent=recurrent)


def _tree_padding(tokens: jax.Array, depths: jax.Array, ends: jax.Array) -> jax.Array:
    """Return which tokens of trees are padding, bool [b, t].

    Padding is token 0 at depth 0, and attends only to itself; so does a tree of one token 0. A row may end with one such
    tree, so the first of the tokens at the end of a row that look like padding does not count as padding.
    """
    is_alone = ends == _positions(tokens)[None] + 1
    looks = (tokens == 0) & (depths == 0) & is_alone
    until_end = jnp.flip(jnp.cumprod(jnp.flip(looks, axis=1).astype(jnp.int32), axis=1), axis=1).astype(bool)
    return until_end & jnp.pad(until_end, ((0, 0), (1, 0)))[:, :-1]


def _positions(tokens: jax.Array) -> jax.Array:
    return jnp.arange(tokens.shape[-1], dtype=jnp.int32)


def _check_attention_only(architecture: Architecture, what: str) -> None:
    if architecture.has_recurrence:
        raise ValueError(f"a model with a recurrence has no {what}; extend copies of its state")


def _check_tokens(tokens: jax.Array) -> None:
    if tokens.ndim != 2:
        raise ValueError(f"tokens must have the shape [batch, length], not {list(tokens.shape)}")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, not {tokens.dtype}")


def _forward(
    architecture: Architecture,
    params: Params,
    tokens: jax.Array,
    metadata: AttentionMetadata,
    *past: CachedTokens,
    states: RecurrentStates | None = None,
) -> BackboneOutput:
    _check_tokens(tokens)
    with jax.default_matmul_precision("highest"):
        return architecture.backbone(params, tokens, metadata, past, states)
