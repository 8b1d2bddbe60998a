"""How the tensors of a checkpoint map to the parameters of a model.

Weights of equal layers are stacked on a leading axis for `jax.lax.scan`. Matrices are applied as ``x @ w``: matrices that PyTorch's ``Linear`` stores as [out, in] are transposed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax


class Params(NamedTuple):
    """All weights of a model: a pytree of dicts from parameter names to arrays.

    `layers` has one dict for each stack of equal layers; its arrays are stacked, [l, ...].
    """

    outer: dict[str, jax.Array]
    layers: tuple[dict[str, jax.Array], ...]

    @property
    def float32_bytes(self) -> int:
        """The bytes of all float32 arrays."""
        arrays = [array for each in (self.outer, *self.layers) for array in each.values()]
        return sum(array.nbytes for array in arrays if array.dtype == "float32")


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
        members: Number of tensors of this shape that become one on loading, stacked on a leading axis; their names have
            ``{member}`` for their number. None for a single tensor.
        dtype: Its dtype in memory, if it has that of no other tensor; None for that of the model.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    shard: ShardSpec | None = None
    members: int | None = None
    dtype: str | None = None

    @property
    def member_shape(self) -> tuple[int, ...]:
        """The shape in memory of the tensor, or of one member."""
        return self.shape[::-1] if self.transposed else self.shape

    @property
    def loaded_shape(self) -> tuple[int, ...]:
        """The shape in memory."""
        return self.member_shape if self.members is None else (self.members, *self.member_shape)


def linear_spec(name: str, inputs: int, outputs: int, shard: ShardSpec | None = None) -> TensorSpec:
    """Return the spec of a PyTorch ``Linear`` weight: [outputs, inputs] in the file, [inputs, outputs] in memory."""
    return TensorSpec(name, (outputs, inputs), transposed=True, shard=shard)


def norm_specs(name: str, width: int, *, bias: bool = False, key: str) -> dict[str, TensorSpec]:
    """Return the specs of a norm: its weight [width] under `key`, and its bias if it has one.

    Args:
        name: The name in the file, without ``.weight``.
        width: The size of the normalised axis.
        bias: Whether it has a bias.
        key: The parameter name.
    """
    specs = {key: TensorSpec(f"{name}.weight", (width,))}
    return specs | {f"{key}_bias": TensorSpec(f"{name}.bias", (width,))} if bias else specs


def linear_specs(
    name: str, inputs: int, outputs: int, shard: ShardSpec | None = None, *, bias: bool = False, key: str
) -> dict[str, TensorSpec]:
    """Return the specs of a PyTorch ``Linear``: its weight under `key`, and its bias if it has one.

    Args:
        name: The name in the file, without ``.weight``.
        inputs: The size of the input.
        outputs: The size of the output.
        shard: How the weight may be sharded.
        bias: Whether it has a bias.
        key: The parameter name.
    """
    specs = {key: linear_spec(f"{name}.weight", inputs, outputs, shard)}
    return specs | {f"{key}_bias": bias_spec(f"{name}.bias", outputs, shard)} if bias else specs


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


class ParamSlot(NamedTuple):
    """The destination of a tensor.

    Attributes:
        key: A key of `Params.outer`, or of a dict of `Params.layers`.
        stack: The index of that dict in `Params.layers`; None for an outer tensor.
        indices: Where the tensor goes along the leading axes: the index of its layer in the stack, and the number of the
            member if the spec has several; empty if the tensor is the whole array.
        spec: The spec of the tensor.
    """

    key: str
    stack: int | None
    indices: tuple[int, ...]
    spec: TensorSpec


@dataclass(frozen=True)
class StackSpecs:
    """The tensors of layers that are stacked.

    Attributes:
        specs: Specs by parameter name.
        layers: The numbers of the layers, in the order of the stack.
    """

    specs: Mapping[str, TensorSpec]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class WeightMap:
    """The tensors of one model.

    Attributes:
        outer: Specs of the tensors outside the layers, by parameter name.
        stacks: The tensors of the layers.
        base: The prefix of all names but the head's. Files of a backbone without its head omit it.
        redundant: Suffixes of tensor names that a file may contain and that are ignored, such as buffers of old
            versions.
        tied_head: The name of the head of a tied model, whose one matrix a file may store under this name, under the
            embedding's, or under both; None if the head has a matrix of its own.
    """

    outer: Mapping[str, TensorSpec]
    stacks: tuple[StackSpecs, ...]
    base: str
    redundant: tuple[str, ...] = field(default=())
    tied_head: str | None = None

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return sum(len(stack.layers) for stack in self.stacks)

    def tensors(self) -> Iterator[tuple[str, ParamSlot]]:
        """Yield each tensor's name in the file, and its destination."""
        for key, spec in self.outer.items():
            yield spec.name, ParamSlot(key, None, (), spec)
        for number, stack in enumerate(self.stacks):
            for key, spec in stack.specs.items():
                for index, layer in enumerate(stack.layers):
                    if spec.members is None:
                        yield spec.name.format(layer), ParamSlot(key, number, (index,), spec)
                        continue
                    for member in range(spec.members):
                        name = spec.name.format(layer, member=member)
                        yield name, ParamSlot(key, number, (index, member), spec)

    def specs(self) -> Iterator[TensorSpec]:
        """Yield the spec of each tensor, those of a stack once."""
        yield from self.outer.values()
        for stack in self.stacks:
            yield from stack.specs.values()
