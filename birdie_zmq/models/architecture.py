"""A decoder: a stack of layers between an embedding and a head.

A family reads its configuration into an `Architecture`. Layers that differ are different `DecoderLayer` values; equal
layers are stacked and scanned (`layer_stack`).

Shape letters: b rows, t position in a row, d width of the residual stream, v vocabulary, l layers of a stack; those of
the KV cache are in `attention`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from birdie_zmq.models import layers as blocks
from birdie_zmq.models.attention import AttentionMetadata, CachedTokens, CacheSize, KeysValues
from birdie_zmq.models.config_fields import require_positive
from birdie_zmq.models.cpu_kernels.layer_weights import LayerWeights
from birdie_zmq.models.decoder_layer import DecoderLayer, LayerEntries, LayerStep
from birdie_zmq.models.layer_stack import Segment, find_segments, scan_segment, scan_slices
from birdie_zmq.models.layers import Norm
from birdie_zmq.models.layouts import state_in_order
from birdie_zmq.models.weight_map import Params, StackSpecs, TensorSpec, WeightMap


class Scanned(NamedTuple):
    """What differs between the layers of a stack, each [l, ...].

    It is the weights, the layer's number, its indices in the stack and in the KV cache, and its own input.
    """

    weights: dict[str, jax.Array]
    number: jax.Array
    place: jax.Array
    cached_layer: jax.Array
    input: jax.Array | None


class Stack(NamedTuple):
    """Equal layers whose weights are stacked.

    Attributes:
        layer: What each of them computes.
        numbers: Their numbers, in the order of the stack.
        cache: The index of the KV cache that they read; None without attention.
        offset: The index in that cache of their first layer. Layers without keys and values of their own have that of the
            layer whose keys and values they use.
    """

    layer: DecoderLayer
    numbers: tuple[int, ...]
    cache: int | None
    offset: int

    def scanned(self, weights: dict[str, jax.Array], inputs: jax.Array | None) -> Scanned:
        """Return what differs between the layers: their weights, and their part of the inputs of all layers."""
        unsliced, numbers = self.layer.feed_forward.unsliced, np.array(self.numbers, np.int32)
        index = np.arange(len(numbers), dtype=np.int32)
        return Scanned(
            {name: array for name, array in weights.items() if name not in unsliced},
            jnp.asarray(numbers),
            jnp.asarray(index),
            jnp.asarray(self.offset + index * self.layer.writes),
            None if inputs is None else inputs[numbers],
        )


RecurrentStates = tuple[tuple[jax.Array, ...], ...]
"""The arrays [b, l, ...] of the states of recurrences, for each stack of layers; none for a stack without a recurrence."""


class BackboneOutput(NamedTuple):
    """The output of the backbone for a step of tokens [b, t].

    ``hidden`` [b, t, d] has the dtype of the params; ``own`` holds for each stack the keys and values [l, b, k, t, h] that a
    state keeps of the step; ``recurrent`` are the states of recurrences after it.
    """

    hidden: jax.Array
    own: tuple[LayerEntries, ...]
    recurrent: RecurrentStates


@dataclass(frozen=True)
class Architecture:
    """A decoder of a model family with given sizes: hashable, and static under `jax.jit`.

    The tensors outside of the layers are ``embedding`` and ``final_norm``, and where a family has them ``head`` (else the
    embedding is the head), ``head_bias``, ``positions``, ``embedding_norm``, ``project_in`` and ``project_out``.

    Attributes:
        vocab_size: The size of v.
        max_length: The maximum length of a row in tokens that the model was trained for; None if its config names none.
        layers: The layers, in order.
        outer: The tensors outside of the layers, by parameter name.
        norm: The norm after the last layer, and of the embedding.
        base: The prefix of all tensor names but the head's.
        redundant: Suffixes of tensors that a file may contain and that are ignored.
        tied_head: The name of the head of a tied model; None if the head has a matrix of its own.
        embedding_scale: The factor of the embedding.
        position_offset: The row of ``positions`` of a text's first token.
        logit_scale: The factor of the logits.
        logit_cap: Bound of the logits; None for none.

    Raises:
        ValueError: A size is below 1.
    """

    vocab_size: int
    max_length: int | None
    layers: tuple[DecoderLayer, ...]
    outer: Mapping[str, TensorSpec] = field(hash=False)
    norm: Norm
    base: str = "model."
    redundant: tuple[str, ...] = (".rotary_emb.inv_freq",)
    tied_head: str | None = None
    embedding_scale: float = 1.0
    position_offset: int = 0
    logit_scale: float = 1.0
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        require_positive(vocab_size=self.vocab_size, layers=len(self.layers))
        if self.max_length is not None:
            require_positive(max_length=self.max_length)

    @functools.cached_property
    def stacks(self) -> tuple[tuple[Stack, ...], ...]:
        """The stacks of each segment, in the order of its period."""
        caches = [(size.kv_heads, size.head_width) for size in self.cache_sizes]
        filled = [0] * len(caches)
        places: dict[int, int] = {}  # the index of each layer in its cache
        segments = []
        for segment in self._segments:
            stacks = []
            for run in range(len(segment.runs)):
                numbers = segment.layers(run)
                layer = self.layers[numbers[0]]
                if layer.cached_heads is None:
                    stacks.append(Stack(layer, numbers, None, 0))
                    continue
                cache, keys_of = caches.index(layer.cached_heads), layer.attention.keys_of
                if keys_of is None:
                    places |= {number: filled[cache] + index for index, number in enumerate(numbers)}
                    filled[cache] += len(numbers)
                stacks.append(Stack(layer, numbers, cache, places[numbers[0] if keys_of is None else keys_of]))
            segments.append(tuple(stacks))
        return tuple(segments)

    @property
    def cache_sizes(self) -> tuple[CacheSize, ...]:
        """The sizes of the KV caches, one for each size of heads."""
        sizes = [layer.cached_heads for layer in self.layers if layer.writes and layer.cached_heads is not None]
        return tuple(CacheSize(sizes.count(size), *size) for size in dict.fromkeys(sizes))

    @property
    def has_recurrence(self) -> bool:
        """Whether some layers have a state of fixed size, so that the model cannot compute trees of texts."""
        return any(layer.recurrence is not None for layer in self.layers)

    @property
    def position_limit(self) -> int | None:
        """The number of positions that the model has, and so the longest possible row; None if there is no such limit."""
        ropes = {layer.attention.rope for layer in self.layers}
        limits = [rope.position_limit for rope in ropes if rope is not None and rope.position_limit is not None]
        if "positions" in self.outer:
            limits.append(self.outer["positions"].shape[0] - self.position_offset)
        return min(limits, default=None)

    def weight_map(self) -> WeightMap:
        """Return the tensors of its checkpoints."""
        stacks = tuple(StackSpecs(stack.layer.specs, stack.numbers) for segment in self.stacks for stack in segment)
        return WeightMap(self.outer, stacks, self.base, self.redundant, self.tied_head)

    def backbone(
        self,
        params: Params,
        tokens: jax.Array,
        metadata: AttentionMetadata,
        past: Sequence[CachedTokens] = (),
        states: RecurrentStates | None = None,
    ) -> BackboneOutput:
        """Compute normalised final hidden states of int [b, t], and what a state keeps of the step in every layer.

        Args:
            params: The weights.
            tokens: int [b, t].
            metadata: Which tokens each token attends to.
            past: The tokens before, one after another.
            states: The states of recurrences after them; None at the first token of all texts.

        Raises:
            ValueError: A row has more tokens than there are learned positions.
        """
        x, inputs = self.embed(params, tokens, metadata)
        if states is None:
            states = self.init_states(len(tokens), params.outer["embedding"].dtype)
        x, own, states = self._apply_layers(params, x, inputs, metadata, (past, states))
        return BackboneOutput(self.finish(params, x), own, states)

    def init_states(self, rows: int, dtype: DTypeLike) -> RecurrentStates:
        """Create the states of recurrences before the first token of a text, in the dtype of the params."""
        return tuple(
            tuple(
                jnp.zeros((rows, len(stack.numbers), *spec.shape), spec.dtype or dtype) for spec in stack.layer.states
            )
            for segment in self.stacks
            for stack in segment
        )

    def embed(
        self, params: Params, tokens: jax.Array, metadata: AttentionMetadata
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return the residual stream [b, t, d] of tokens before the first layer, and the inputs [l, b, t, p] of all layers."""
        outer = params.outer
        x = outer["embedding"][tokens]
        if self.embedding_scale != 1.0:
            # The factor is rounded to the dtype of the weights, as the models were trained with it.
            x = x * jnp.asarray(self.embedding_scale, x.dtype)
        if "project_in" in outer:
            x = blocks.linear(x, outer, "project_in")
        if "positions" in outer:
            limit = self.position_limit
            if metadata.ends is None and limit is not None and tokens.shape[1] > limit:
                raise ValueError(
                    f"{tokens.shape[1]} tokens exceed the {limit} learned positions of this model; lower max_length"
                )
            x = x + outer["positions"][metadata.positions + self.position_offset]
        return self.norm(x, outer, "embedding_norm"), None

    def finish(self, params: Params, x: jax.Array) -> jax.Array:
        """Return the hidden states [b, t, d] that the head takes, from the residual stream after the last layer."""
        x = self.norm(x, params.outer, "final_norm")
        return blocks.linear(x, params.outer, "project_out") if "project_out" in params.outer else x

    def unembed(self, params: Params, hidden: jax.Array, *, by_kernel: bool = False) -> jax.Array:
        """Compute float32 logits [..., v] of hidden states [..., d], as `layers.unembed` does."""
        logits = blocks.unembed(hidden, params.outer, by_kernel=by_kernel)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        return logits if self.logit_cap is None else jnp.tanh(logits / self.logit_cap) * self.logit_cap

    def init_params(self, key: jax.Array, dtype: DTypeLike = "float32") -> Params:
        """Initialise random weights.

        Matrices are normal with the standard deviation of a variance-preserving map, 1 / sqrt(in). Matrices that write
        into the residual stream are smaller by 1 / sqrt(2 * layers), as in GPT-2 (Radford et al., 2019). Norms start at
        one, biases at zero.

        Args:
            key: A JAX random key; the same key gives the same weights.
            dtype: Floating dtype of every array.
        """
        weight_map = self.weight_map()
        keys = iter(jax.random.split(key, sum(len(spec.shape) > 1 for spec in weight_map.specs())))

        def initialise(name: str, spec: TensorSpec, stack: tuple[int, ...] = ()) -> jax.Array:
            shape = (*stack, *spec.loaded_shape)
            if len(spec.shape) == 1 or name.endswith("_norm"):  # norms of heads may have an axis of heads
                return jnp.full(shape, 0.0 if name.endswith("_bias") else 1.0, spec.dtype or dtype)
            deviation = shape[-1 if name == "embedding" else -2] ** -0.5
            if name in ("output", "down"):
                deviation *= (2 * len(self.layers)) ** -0.5
            random: jax.Array = jax.random.normal(next(keys), shape) * deviation
            return random.astype(spec.dtype or dtype)

        return Params(
            {name: initialise(name, spec) for name, spec in weight_map.outer.items()},
            tuple(
                {name: initialise(name, spec, (len(stack.layers),)) for name, spec in stack.specs.items()}
                for stack in weight_map.stacks
            ),
        )

    @functools.cached_property
    def _segments(self) -> tuple[Segment, ...]:
        """The segments; layers with keys and values of other layers begin a new one, for which those are computed."""
        shares = [layer.attention.keys_of is not None for layer in self.layers]
        first = shares.index(True) if True in shares else len(shares)
        return find_segments(self.layers[:first]) + find_segments(self.layers[first:], first)

    def _apply_layers(
        self,
        params: Params,
        x: jax.Array,
        inputs: jax.Array | None,
        metadata: AttentionMetadata,
        before: tuple[Sequence[CachedTokens], RecurrentStates],
    ) -> tuple[jax.Array, tuple[LayerEntries, ...], RecurrentStates]:
        """Apply all layers to the residual stream; return it, what a state keeps of the step, and recurrences after it."""
        past, states = before
        ropes = {layer.attention.rope for layer in self.layers}
        tables = {rope: rope.tables(metadata.positions) for rope in ropes if rope is not None}
        shared: dict[int | None, KeysValues] = {}  # by the number of the layer

        def apply(
            run: int,
            stack: Stack,
            whole: dict[str, jax.Array],
            carry: tuple[jax.Array, RecurrentStates],
            scanned: Scanned,
        ) -> tuple[tuple[jax.Array, RecurrentStates], LayerEntries]:
            x, states = carry
            layers = (
                () if stack.cache is None else tuple(each.layer(stack.cache, scanned.cached_layer) for each in past)
            )
            # Read and written by its index, so that the states of all layers are updated in place.
            own = tuple(
                state_in_order(
                    jax.lax.dynamic_index_in_dim(array, scanned.place, 1, keepdims=False), metadata.target.platform
                )
                for array in states[run]
            )
            keys_of = stack.layer.attention.keys_of
            step = LayerStep(
                metadata, tables, scanned.number, scanned.place, layers, shared.get(keys_of), scanned.input, own
            )
            weights = whole | scanned.weights
            if metadata.target.kernel == "numba":
                weights = LayerWeights(weights, whole, scanned.place)
            x, entries = stack.layer(x, weights, step)
            after = tuple(
                jax.lax.dynamic_update_index_in_dim(array, new, scanned.place, 1)
                for array, new in zip(states[run], entries.states, strict=True)
            )
            return (x, (*states[:run], after, *states[run + 1 :])), entries._replace(states=())

        entries: list[LayerEntries] = []
        recurrent: list[tuple[jax.Array, ...]] = []
        weights, remaining = iter(params.layers), iter(states)
        needed = {layer.attention.keys_of for layer in self.layers}
        for segment, stacks in zip(self._segments, self.stacks, strict=True):
            arrays = [next(weights) for _ in stacks]
            functions = [
                functools.partial(apply, run, stack, own_weights)
                for run, (stack, own_weights) in enumerate(zip(stacks, arrays, strict=True))
            ]
            before_segment = tuple(next(remaining) for _ in stacks)
            scanned = [stack.scanned(own_weights, inputs) for stack, own_weights in zip(stacks, arrays, strict=True)]
            scan = scan_segment if metadata.target.platform == "cpu" else scan_slices
            (x, after_segment), produced = scan(segment, functions, (x, before_segment), scanned)
            entries += produced
            recurrent += after_segment
            for stack, of_stack in zip(stacks, produced, strict=True):
                for index, number in enumerate(stack.numbers):
                    if number in needed:
                        shared[number] = jax.tree.map(lambda array, index=index: array[index], of_stack.keys_values)
        return x, tuple(entries), tuple(recurrent)
