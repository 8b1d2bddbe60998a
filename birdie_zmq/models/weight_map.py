"""How the tensors of a checkpoint map to the parameters of a model.

Weights of equal layers are stacked on a leading axis for `jax.lax.scan`, so that a deep model compiles as fast as a
shallow one. Matrices are applied as ``x @ w``: matrices that PyTorch's ``Linear`` stores as [out, in] are transposed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import jax

from birdie_zmq.models.attention import AttentionMetadata


class Params(NamedTuple):
    """All weights of a model: a pytree of dicts from parameter names to arrays; the arrays of `layers` are stacked, [l, ...]."""

    outer: dict[str, jax.Array]
    layers: dict[str, jax.Array]


class ShardSpec(NamedTuple):
    """How a tensor may be sharded: the axis, counted in memory, and the maximum number of parts.

    A query matrix may be split between heads, never within one, so that each device has whole heads.
    """

    axis: int
    parts: int


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a checkpoint.

    Attributes:
        name: Its name in the file, with ``{}`` for the number of the layer.
        shape: Its shape in the file.
        transposed: Whether its two axes are swapped on loading.
        shard: How it may be sharded; None if it is replicated on every device.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    shard: ShardSpec | None = None

    @property
    def loaded_shape(self) -> tuple[int, ...]:
        """The shape in memory."""
        return self.shape[::-1] if self.transposed else self.shape


def linear_spec(name: str, inputs: int, outputs: int, shard: ShardSpec | None = None) -> TensorSpec:
    """Return the spec of a PyTorch ``Linear`` weight: [outputs, inputs] in the file, [inputs, outputs] in memory."""
    return TensorSpec(name, (outputs, inputs), transposed=True, shard=shard)


def row_parallel(parts: int) -> ShardSpec:
    """Shard a matrix [inputs, outputs] along its inputs; the devices' partial results are summed.

    After a `column_parallel` matrix, attention needs one sum across devices, and so does the feed-forward layer
    (Shoeybi et al., 2019, arXiv:1909.08053).
    """
    return ShardSpec(0, parts)


def column_parallel(parts: int) -> ShardSpec:
    """Shard a matrix [inputs, outputs] along its outputs, and with them its bias."""
    return ShardSpec(1, parts)


def bias_spec(name: str, outputs: int, shard: ShardSpec | None) -> TensorSpec:
    """Return the spec of a bias [outputs], which is sharded like the outputs of a matrix with the spec `shard`."""
    bias_shard = ShardSpec(0, shard.parts) if shard is not None and shard.axis == 1 else None
    return TensorSpec(name, (outputs,), shard=bias_shard)


def embedding_spec(name: str, vocab_size: int, width: int) -> TensorSpec:
    """Return the spec of an embedding [v, d], which may be sharded along the vocabulary."""
    return TensorSpec(name, (vocab_size, width), shard=ShardSpec(0, vocab_size))


def head_spec(name: str, vocab_size: int, width: int) -> TensorSpec:
    """Return the spec of an LM head, [v, d] in the file and [d, v] in memory, which may be sharded along the vocabulary."""
    return linear_spec(name, width, vocab_size, column_parallel(vocab_size))


def gated_layer_specs(
    prefix: str, width: int, heads: tuple[int, int], head_width: int, inner: int, biased: Collection[str] = ()
) -> dict[str, TensorSpec]:
    """Return the matrices of a layer with grouped-query attention and a gated feed-forward layer, with Llama's names.

    Args:
        prefix: Precedes the names in the file, with ``{}`` for the number of the layer.
        width: Width of the residual stream.
        heads: Number of query heads, and number of key/value heads.
        head_width: Width of a head.
        inner: Width of the feed-forward layer.
        biased: Parameter names of the matrices that have a bias.
    """
    queries, groups = (count * head_width for count in heads)
    by_query_head, by_kv_head = (column_parallel(count) for count in heads)
    matrices = {
        "query": linear_spec(prefix + "self_attn.q_proj.weight", width, queries, by_query_head),
        "key": linear_spec(prefix + "self_attn.k_proj.weight", width, groups, by_kv_head),
        "value": linear_spec(prefix + "self_attn.v_proj.weight", width, groups, by_kv_head),
        "output": linear_spec(prefix + "self_attn.o_proj.weight", queries, width, row_parallel(heads[0])),
        "gate": linear_spec(prefix + "mlp.gate_proj.weight", width, inner, column_parallel(inner)),
        "up": linear_spec(prefix + "mlp.up_proj.weight", width, inner, column_parallel(inner)),
        "down": linear_spec(prefix + "mlp.down_proj.weight", inner, width, row_parallel(inner)),
    }
    biases = {
        f"{key}_bias": bias_spec(matrix.name.removesuffix("weight") + "bias", matrix.shape[0], matrix.shard)
        for key, matrix in matrices.items()
        if key in biased
    }
    return matrices | biases


class BackboneOutput(NamedTuple):
    """The output of the backbone for a step of tokens [b, t].

    ``hidden`` [b, t, d] has the dtype of the params; ``keys`` and ``values`` are [l, b, k, t, h].
    """

    hidden: jax.Array
    keys: jax.Array
    values: jax.Array


class ParamSlot(NamedTuple):
    """The destination of a tensor: a key of `Params.outer`, or a key of `Params.layers` and the number of the layer."""

    key: str
    layer: int | None
    spec: TensorSpec


@dataclass(frozen=True)
class WeightMap:
    """The tensors of one model.

    Attributes:
        outer: Specs of the tensors outside the layers, by parameter name.
        layers: Specs of the tensors of each layer, by parameter name.
        n_layers: Number of layers.
        base: The prefix of all names but the head's. Files of a backbone without its head omit it.
        redundant: Suffixes of tensor names that a file may contain and that are ignored, such as buffers of old
            versions.
        tied_head: The name of the head of a tied model, whose one matrix a file may store under this name, under the
            embedding's, or under both; None if the head has a matrix of its own.
    """

    outer: Mapping[str, TensorSpec]
    layers: Mapping[str, TensorSpec]
    n_layers: int
    base: str
    redundant: tuple[str, ...] = field(default=())
    tied_head: str | None = None

    def tensors(self) -> Iterator[tuple[str, ParamSlot]]:
        """Yield each tensor's name in the file, and its destination."""
        for key, spec in self.outer.items():
            yield spec.name, ParamSlot(key, None, spec)
        for key, spec in self.layers.items():
            for layer in range(self.n_layers):
                yield spec.name.format(layer), ParamSlot(key, layer, spec)


class Architecture(Protocol):
    """A decoder of a model family with given sizes: hashable, and static under `jax.jit`.

    Shape letters: b batch, t position, d width of the residual stream, v vocabulary.
    """

    @property
    def vocab_size(self) -> int:
        """The size of v."""
        ...

    @property
    def max_length(self) -> int:
        """The maximum length of a row in tokens that the model was trained for."""
        ...

    @property
    def position_limit(self) -> int | None:
        """The number of positions that the model has, and so the longest possible row; None if there is no such limit."""
        ...

    def weight_map(self) -> WeightMap:
        """Return the tensors of its checkpoints."""
        ...

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Number of layers, number of key/value heads and width of a head: the sizes of the KV cache."""
        ...

    def backbone(self, params: Params, tokens: jax.Array, metadata: AttentionMetadata) -> BackboneOutput:
        """Compute normalised final hidden states of int [b, t], and the keys and values of every layer."""
        ...

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Compute float32 logits [..., v] of hidden states [..., d]."""
        ...
