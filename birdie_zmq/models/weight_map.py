"""Which tensors a checkpoint of a family holds, and the pytree that they become.

Weights of equal layers are stacked on a leading axis for `jax.lax.scan`, so that a deep model compiles as fast as a
shallow one. Matrices are applied as ``x @ w``: those that PyTorch's ``Linear`` stores as [out, in] are transposed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import jax

from birdie_zmq.models.attention import Reading


class Params(NamedTuple):
    """All weights of a model, a pytree of dicts from our names to arrays; those of `layers` are stacked, [l, ...]."""

    outer: dict[str, jax.Array]
    layers: dict[str, jax.Array]


class ShardSpec(NamedTuple):
    """How a tensor may be divided among devices: an axis, in memory, and into how many parts at most.

    A matrix of queries may be cut between heads, never within one: then each device has whole heads of its own.
    """

    axis: int
    parts: int


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as it lies in a checkpoint.

    Attributes:
        name: Its name in the file, with ``{}`` for the number of the layer.
        shape: Its shape in the file.
        transposed: Whether its two axes are swapped when it is loaded.
        cut: How it may be divided among devices; None where each has all of it.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    cut: ShardSpec | None = None

    @property
    def loaded_shape(self) -> tuple[int, ...]:
        """Its shape in memory."""
        return self.shape[::-1] if self.transposed else self.shape


def linear(name: str, inputs: int, outputs: int, cut: ShardSpec | None = None) -> TensorSpec:
    """The weight of a PyTorch ``Linear``: [outputs, inputs] in the file, [inputs, outputs] in memory."""
    return TensorSpec(name, (outputs, inputs), transposed=True, cut=cut)


def by_inputs(parts: int) -> ShardSpec:
    """A matrix [inputs, outputs] whose inputs are divided; what devices make of their own is then added up.

    With `by_outputs` before it, one sum among the devices is all there is for attention, and one for the feed-forward
    (Shoeybi et al., 2019, arXiv:1909.08053).
    """
    return ShardSpec(0, parts)


def by_outputs(parts: int) -> ShardSpec:
    """A matrix [inputs, outputs] whose outputs are divided, and with them its bias."""
    return ShardSpec(1, parts)


def bias_of(name: str, outputs: int, cut: ShardSpec | None) -> TensorSpec:
    """The bias [outputs] of a matrix that is cut so: divided as its outputs are."""
    return TensorSpec(name, (outputs,), cut=ShardSpec(0, cut.parts) if cut is not None and cut.axis == 1 else None)


def embedding_of(name: str, vocab_size: int, width: int) -> TensorSpec:
    """An embedding [v, d], which may be divided between tokens."""
    return TensorSpec(name, (vocab_size, width), cut=ShardSpec(0, vocab_size))


def head_of(name: str, vocab_size: int, width: int) -> TensorSpec:
    """The weight of an output layer, [v, d] in the file and [d, v] in memory, which may be divided between tokens."""
    return linear(name, width, vocab_size, by_outputs(vocab_size))


def gated_layer(
    prefix: str, width: int, heads: tuple[int, int], head_width: int, inner: int, biased: Collection[str] = ()
) -> dict[str, TensorSpec]:
    """The matrices of a layer with grouped-query attention and a gated feed-forward, by Llama's names.

    Args:
        prefix: What stands before the names, with ``{}`` for the number of the layer.
        width: The residual stream's.
        heads: How many query heads there are, and how many key heads, or value heads.
        head_width: The width of each.
        inner: The feed-forward layer's.
        biased: Our names of the matrices that have a bias.
    """
    queries, groups = (count * head_width for count in heads)
    of_queries, of_groups = (by_outputs(count) for count in heads)
    matrices = {
        "query": linear(prefix + "self_attn.q_proj.weight", width, queries, of_queries),
        "key": linear(prefix + "self_attn.k_proj.weight", width, groups, of_groups),
        "value": linear(prefix + "self_attn.v_proj.weight", width, groups, of_groups),
        "output": linear(prefix + "self_attn.o_proj.weight", queries, width, by_inputs(heads[0])),
        "gate": linear(prefix + "mlp.gate_proj.weight", width, inner, by_outputs(inner)),
        "up": linear(prefix + "mlp.up_proj.weight", width, inner, by_outputs(inner)),
        "down": linear(prefix + "mlp.down_proj.weight", inner, width, by_inputs(inner)),
    }
    biases = {
        f"{key}_bias": bias_of(matrix.name.removesuffix("weight") + "bias", matrix.shape[0], matrix.cut)
        for key, matrix in matrices.items()
        if key in biased
    }
    return matrices | biases


class Read(NamedTuple):
    """What a step of tokens [b, t] gives.

    ``hidden`` [b, t, d] is in the dtype of the params; ``keys`` and ``values`` are [l, b, k, t, h].
    """

    hidden: jax.Array
    keys: jax.Array
    values: jax.Array


class Place(NamedTuple):
    """Where a tensor goes: a key of `Params.outer`, or a key of `Params.layers` and the number of the layer."""

    key: str
    layer: int | None
    stored: TensorSpec


@dataclass(frozen=True)
class Layout:
    """The tensors of one model.

    Attributes:
        outer: Our names of the tensors outside the layers.
        layers: Our names of the tensors of each layer.
        n_layers: How many layers there are.
        base: The prefix that all names but the head's have, and that files of a bare trunk leave out.
        redundant: Ends of names which may stand in a file although they say nothing new: buffers of old versions.
    """

    outer: Mapping[str, TensorSpec]
    layers: Mapping[str, TensorSpec]
    n_layers: int
    base: str
    redundant: tuple[str, ...] = field(default=())

    def places(self) -> Iterator[tuple[str, Place]]:
        """Each tensor's name in the file, and where it goes."""
        for key, stored in self.outer.items():
            yield stored.name, Place(key, None, stored)
        for key, stored in self.layers.items():
            for layer in range(self.n_layers):
                yield stored.name.format(layer), Place(key, layer, stored)


class Architecture(Protocol):
    """A family's decoder of certain sizes: hashable, and static under `jax.jit`.

    Shape letters: b batch, t position, d width of the residual stream, v vocabulary.
    """

    @property
    def vocab_size(self) -> int:
        """The size of v."""
        ...

    @property
    def max_length(self) -> int:
        """The most tokens of a row that the model was made for."""
        ...

    def layout(self) -> Layout:
        """Its tensors."""
        ...

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Layers, key/value heads and the width of a head, of which a state is made."""
        ...

    def backbone(self, params: Params, tokens: jax.Array, reading: Reading) -> Read:
        """Normalised final hidden states of int [b, t], and the keys and values of every layer."""
        ...

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., v] of hidden states [..., d]."""
        ...
