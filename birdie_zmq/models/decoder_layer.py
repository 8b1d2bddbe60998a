"""A layer of a decoder: attention and a feed-forward layer around a residual stream, in the forms that families use.

What a layer has follows from its weights: a norm, a bias or a gate is applied if there is a weight for it. The names of
the weights are those of `DecoderLayer`.

Shape letters: b batch, t position, d width of the residual stream, n query heads, k key/value heads, h width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from birdie_zmq.models.alibi import Alibi
from birdie_zmq.models.attention import (
    AttentionMetadata,
    AttentionOptions,
    CachedLayer,
    KeysValues,
    attention_for,
)
from birdie_zmq.models.layers import ACTIVATIONS, Norm, Weights, linear, split_heads
from birdie_zmq.models.layouts import apart
from birdie_zmq.models.recurrence import StateSpec
from birdie_zmq.models.rope import Rope, rotate
from birdie_zmq.models.weight_map import TensorSpec


class LayerStep(NamedTuple):
    """What a layer needs of a step beside its input and its weights.

    Attributes:
        metadata: Which tokens each token attends to.
        tables: cos and sin of the positions, for each rotary embedding of the model.
        number: int32 [], the number of the layer.
        place: int32 [], the index of the layer in its stack.
        past: The layer of the KV caches that it reads; empty without tokens before the step.
        shared: The keys and values of the same tokens from the layer named by `Attention.keys_of`; None if it has its own.
        layer_input: The layer's own input [b, t, p], in models with per-layer embeddings.
        states: The arrays [b, ...] of the state of the layer's recurrence before the step; empty if it has none.
    """

    metadata: AttentionMetadata
    tables: Mapping[Rope, tuple[jax.Array, jax.Array]]
    number: jax.Array
    place: jax.Array
    past: tuple[CachedLayer, ...] = ()
    shared: KeysValues | None = None
    layer_input: jax.Array | None = None
    states: tuple[jax.Array, ...] = ()


class LayerEntries(NamedTuple):
    """What a state keeps of a step in a layer.

    Attributes:
        keys_values: The keys and values [b, k, t, h] of the tokens; None for a layer without its own.
        states: The arrays [b, ...] of the state of its recurrence after the last real token of each row.
    """

    keys_values: KeysValues | None
    states: tuple[jax.Array, ...] = ()


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention.

    Its weights are ``query``, ``key``, ``value`` and ``output``, or ``query_key_value`` in place of the first three.
    ``query_norm`` and ``key_norm`` [h] or [heads, h] normalise each head; [heads * h] all heads at once. ``sinks`` [n] are
    scores that every query has in addition to its keys.

    Attributes:
        heads: Number of query heads; 0 in a layer that has a recurrence and no attention.
        kv_heads: Number of key/value heads; 0 if there is no attention.
        head_width: Width of a head.
        scale: The factor of the scores; None for 1 / sqrt(head_width).
        rope: The rotary embedding; None for no positions.
        window: A position attends to itself and the ``window - 1`` before it; None for all before it.
        softcap: Bound of the scores; None for none.
        alibi: The bias of the scores by distance, if the family has one.
        fused: How the outputs of ``query_key_value`` are ordered: all queries, all keys and all values, or ``by_group``,
            the queries, the key and the value of each key/value head in turn.
        norm: The norm of queries and keys, where they have weights.
        value_norm: The norm of values, which has no weight; None for none.
        scale_by_layer: Whether scores are also divided by the layer's number, counted from 1.
        query_growth: Queries are multiplied by 1 + g * log(1 + floor((position + offset) / length)), given as (g, length,
            offset).
        keys_of: The number of the layer whose keys and values are used; None if the layer has its own.
    """

    heads: int
    kv_heads: int
    head_width: int
    scale: float | None = None
    rope: Rope | None = None
    window: int | None = None
    softcap: float | None = None
    alibi: Alibi | None = None
    fused: Literal["in_turn", "by_group"] = "in_turn"
    norm: Norm | None = None
    value_norm: Norm | None = None
    scale_by_layer: bool = False
    query_growth: tuple[float, int, int] | None = None
    keys_of: int | None = None

    def __post_init__(self) -> None:
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} attention heads are not a multiple of {self.kv_heads} key/value heads")

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, KeysValues | None]:
        """Attend from x [b, t, d]; return [b, t, d], and the layer's own keys and values if it has any."""
        query, own = self._project(x, weights, step)
        return linear(self._attend(query, own, weights, step), weights, "output"), own

    def _attend(self, query: jax.Array, own: KeysValues | None, weights: Weights, step: LayerStep) -> jax.Array:
        """Attend from rotated queries [b, t, n, h]; return [b, t, n * h]."""
        if self.query_growth is not None:
            growth, length, offset = self.query_growth
            positions = (step.metadata.positions + offset).astype(jnp.float32)
            steps = jnp.log1p(jnp.floor(positions / length))
            query = query * (1.0 + growth * steps)[..., None, None].astype(query.dtype)
        scale: float | jax.Array = self.head_width**-0.5 if self.scale is None else self.scale
        if self.scale_by_layer:
            scale = scale / (step.number + 1).astype(jnp.float32)
        options = AttentionOptions(scale, self.window, self.softcap, self.alibi, weights.get("sinks"))
        keys_values = own if own is not None else step.shared
        assert keys_values is not None
        attend = attention_for(step.metadata.target).attend
        return attend(query, keys_values, step.past, step.metadata, options)

    def _project(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, KeysValues | None]:
        """Return rotated queries [b, t, n, h], and keys and values [b, k, t, h]."""
        if "query_key_value" in weights:
            query, key, value = self._split(linear(x, weights, "query_key_value"))
            return self._heads_of_queries(query, weights, step), self._heads_of_keys(key, value, weights, step)
        query = self._heads_of_queries(linear(x, weights, "query"), weights, step)
        return query, self._keys_values(x, weights, step) if self.keys_of is None else None

    def _keys_values(self, x: jax.Array, weights: Weights, step: LayerStep) -> KeysValues:
        """Return keys and values [b, k, t, h] of x [b, t, d]."""
        key = linear(x, weights, "key")
        return self._heads_of_keys(key, linear(x, weights, "value") if "value" in weights else key, weights, step)

    def _heads_of_queries(self, query: jax.Array, weights: Weights, step: LayerStep) -> jax.Array:
        """Return normalised and rotated queries [b, t, n, h] of projected ones [b, t, n * h]."""
        query = apart(query, step.metadata.target.platform)
        return self._rotate(self._norm_heads(query, weights, "query_norm", self.heads), step)

    def _heads_of_keys(self, key: jax.Array, value: jax.Array, weights: Weights, step: LayerStep) -> KeysValues:
        """Return normalised and rotated keys, and values, [b, k, t, h] of projected ones [b, t, k * h]."""
        key = apart(key, step.metadata.target.platform)
        key = self._rotate(self._norm_heads(key, weights, "key_norm", self.kv_heads), step)
        value = split_heads(value, self.kv_heads)
        if self.value_norm is not None:
            value = self.value_norm.normalise(value).astype(value.dtype)
        return KeysValues(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))

    def _split(self, fused: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Split [b, t, (n + 2k) * h] into queries, keys and values [b, t, heads * h]."""
        if self.fused == "in_turn":
            ends = (self.heads * self.head_width, (self.heads + self.kv_heads) * self.head_width)
            query, key, value = jnp.split(fused, ends, axis=-1)
            return query, key, value
        shared = self.heads // self.kv_heads
        groups = fused.reshape(*fused.shape[:2], self.kv_heads, shared + 2, self.head_width)
        parts = groups[..., :shared, :], groups[..., shared, :], groups[..., shared + 1, :]
        query, key, value = (part.reshape(*fused.shape[:2], -1) for part in parts)
        return query, key, value

    def _norm_heads(self, x: jax.Array, weights: Weights, name: str, heads: int) -> jax.Array:
        """Split [b, t, heads * h] into heads, and normalise them if there is a weight for it."""
        if self.norm is None or name not in weights:
            x = split_heads(x, heads)
            return x if self.norm is None else self.norm(x, weights, name)
        if weights[name].shape[-1] == self.head_width:
            return self.norm(split_heads(x, heads), weights, name)
        return split_heads(self.norm(x, weights, name), heads)

    def _rotate(self, x: jax.Array, step: LayerStep) -> jax.Array:
        return x if self.rope is None else rotate(x, step.tables[self.rope], interleaved=self.rope.interleaved)


NO_ATTENTION = Attention(0, 0, 0)
"""The attention of a layer that has none."""


class Recurrence(Protocol):
    """A recurrence over the tokens of a text; hashable, and static under `jax.jit`."""

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """The arrays of its state, all zero before the first token of a text."""
        ...

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Compute the tokens of a step.

        Args:
            x: [b, t, d].
            weights: The weights of the layer.
            step: The step. ``step.states`` holds the arrays [b, ...] of the state before it. Where
                ``step.metadata.real`` is false, a token is padding behind the row's real tokens.

        Returns:
            The outputs [b, t, d], and the arrays [b, ...] of the state after the last real token of each row. A row
            without real tokens keeps its state to the bit.
        """
        ...


class FeedForwardLayer(Protocol):
    """The part of a layer that computes each token by itself; hashable."""

    @property
    def activation(self) -> str:
        """The name of its activation."""
        ...

    @property
    def unsliced(self) -> frozenset[str]:
        """The names of the weights that it takes for all layers of its stack, [l, ...], rather than for one."""
        ...

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> jax.Array:
        """Apply the layer, [b, t, d] -> [b, t, d]."""
        ...


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward layer of the weights ``up`` and ``down``, gated if there is ``gate`` (Shazeer, arXiv:2002.05202).

    ``gate_up`` has the outputs of ``gate`` and ``up``, in this order.
    """

    activation: str

    @property
    def unsliced(self) -> frozenset[str]:
        """The names of the weights that it takes for all layers of its stack: none."""
        return frozenset()

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> jax.Array:
        """Apply the layer, [b, t, d] -> [b, t, d]."""
        del step
        activate = ACTIVATIONS[self.activation]
        if "gate_up" in weights:
            gate, up = jnp.split(linear(x, weights, "gate_up"), 2, axis=-1)
            inner = activate(gate) * up
        elif "gate" in weights:
            inner = activate(linear(x, weights, "gate")) * linear(x, weights, "up")
        else:
            inner = activate(linear(x, weights, "up"))
        return linear(inner, weights, "down")


@dataclass(frozen=True)
class DecoderLayer:
    """A layer; layers that are equal compute the same function of their weights and share one compilation.

    Each of the norms ``attention_norm``, ``after_attention_norm``, ``feed_forward_norm`` and ``after_feed_forward_norm``
    is applied if there is a weight for it, before and after a sub-layer.

    Attributes:
        attention: The attention; `NO_ATTENTION` if the layer only has a recurrence.
        feed_forward: The feed-forward layer.
        norm: The norms of the residual stream.
        specs: The tensors of a layer, by parameter name.
        parallel: Whether both sub-layers take the layer's input. Without ``feed_forward_norm``, the feed-forward layer
            takes the input of the attention.
        residual_scale: The factor of what each sub-layer adds.
        norm_after_sum: Whether ``attention_norm`` and ``feed_forward_norm`` are applied to the sums of the residual
            stream instead of to the inputs of the sub-layers.
        recurrence: The recurrence, whose output is added to that of the attention if there are both.
    """

    attention: Attention
    feed_forward: FeedForwardLayer
    norm: Norm
    specs: Mapping[str, TensorSpec] = field(hash=False)
    parallel: bool = False
    residual_scale: float = 1.0
    norm_after_sum: bool = False
    recurrence: Recurrence | None = None

    @property
    def cached_heads(self) -> tuple[int, int] | None:
        """The number and the width of the key/value heads that the layer reads; None without attention."""
        return (self.attention.kv_heads, self.attention.head_width) if self.attention.heads else None

    @property
    def writes(self) -> bool:
        """Whether the layer has keys and values of its own."""
        return self.attention.heads > 0 and self.attention.keys_of is None

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """The arrays of the state of its recurrence."""
        return () if self.recurrence is None else self.recurrence.states

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, LayerEntries]:
        """Apply the layer to the residual stream x [b, t, d]; also return what a state keeps of the step."""
        if self.norm_after_sum:
            y, own = self.mix(x, weights, step)
            x = self.norm(x + y, weights, "attention_norm")
            return self.norm(x + self.feed_forward(x, weights, step), weights, "feed_forward_norm"), own
        attended = self.norm(x, weights, "attention_norm")
        y, own = self.mix(attended, weights, step)
        y = self._scale(self.norm(y, weights, "after_attention_norm"))
        fed = x + y
        if not self.parallel:
            inner = self.norm(fed, weights, "feed_forward_norm")
        else:
            inner = self.norm(x, weights, "feed_forward_norm") if "feed_forward_norm" in weights else attended
        z = self.norm(self.feed_forward(inner, weights, step), weights, "after_feed_forward_norm")
        return fed + self._scale(z), own

    def mix(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, LayerEntries]:
        """Let tokens read earlier ones, by attention and recurrence: [b, t, d] -> [b, t, d]."""
        if self.recurrence is None:
            y, own = self.attention(x, weights, step)
            return y, LayerEntries(own)
        z, states = self.recurrence(x, weights, step)
        if not self.attention.heads:
            return z, LayerEntries(None, states)
        y, own = self.attention(x, weights, step)
        return y + z, LayerEntries(own, states)

    def _scale(self, x: jax.Array) -> jax.Array:
        if self.residual_scale == 1.0:
            return x
        return (x.astype(jnp.float32) * self.residual_scale).astype(x.dtype)  # as PyTorch multiplies by a number
