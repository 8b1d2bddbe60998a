"""Products of tokens with the weights of the experts that they are routed to: each token meets only its own experts.

Tokens are sorted by expert, so that each expert has a range of rows. `jax.lax.ragged_dot` computes the product of such
ranges, but only TPUs have an operation for it: elsewhere XLA multiplies all rows by all experts. There the ranges are
computed in blocks of rows, each by one expert. A CPU visits the experts that have tokens and their blocks in loops of
unknown length; a GPU would wait for the host before every turn of those, so its loop has as many turns as there can be
blocks.

Shape letters: n tokens, k experts of a token, m = n * k rows (one for each token and each of its experts), d width of a
token, l layers, e experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

Product = Callable[[jax.Array, str], jax.Array]
"""``product(x [rows, in], name) -> [rows, out]``: x times a matrix of its expert, plus the bias if there is one."""

Expert = Callable[[jax.Array, Product], jax.Array]
"""What one expert computes: ``expert(x [rows, d], product) -> [rows, d]``."""

MAX_CPU_BLOCK = 32
"""Rows of a block on a CPU. Larger blocks are hardly faster per row, and the last block of each expert is half empty."""

MAX_BLOCK = 512
"""Rows of a block elsewhere."""


class ExpertWeights(NamedTuple):
    """The weights of the experts of all layers of a stack, [l, e, ...] each, and the index int32 [] of a layer.

    A layer's part is not sliced out, since a step may need few of its experts.
    """

    arrays: Mapping[str, jax.Array]
    layer: jax.Array

    def of(self, name: str, expert: jax.Array) -> jax.Array:
        """Return the weight of one expert int32 []."""
        array = self.arrays[name]
        rest = array.shape[2:]
        start: list[jax.Array | int] = [self.layer, expert, *(0 for _ in rest)]
        return jax.lax.dynamic_slice(array, start, (1, 1, *rest))[0, 0]

    @property
    def experts(self) -> int:
        """The number of experts."""
        return next(iter(self.arrays.values())).shape[1]


class Groups(NamedTuple):
    """Rows sorted by expert.

    Attributes:
        order: int32 [m], the number of each row before it was sorted; rows of no expert come last.
        counts: int32 [e], the number of rows of each expert.
    """

    order: jax.Array
    counts: jax.Array

    @property
    def starts(self) -> jax.Array:
        """The first row of each expert, int32 [e]."""
        return jnp.cumsum(self.counts) - self.counts


def group_by_expert(experts: jax.Array, count: int) -> Groups:
    """Sort rows by their experts int32 [m]; the number `count` stands for no expert."""
    order = jnp.argsort(experts, stable=True).astype(jnp.int32)
    return Groups(order, jnp.bincount(experts, length=count + 1)[:count].astype(jnp.int32))


class GroupedProducts(NamedTuple):
    """The experts of a layer.

    Attributes:
        weights: Their weights.
        expert: What one expert computes.
        platform: The platform that computes it: cpu, cuda, rocm or tpu.
    """

    weights: ExpertWeights
    expert: Expert
    platform: str

    def __call__(self, x: jax.Array, experts: jax.Array) -> jax.Array:
        """Apply to each token the experts that it is routed to.

        Args:
            x: The input of each token, [n, 1, d], or of each of its experts, [n, k, d].
            experts: int32 [n, k]; the number of experts stands for none, and gives zeros.

        Returns:
            [n, k, d].
        """
        tokens, chosen = experts.shape
        groups = group_by_expert(experts.reshape(-1), self.weights.experts)
        index = groups.order // chosen if x.shape[1] == 1 else groups.order
        rows = x.reshape(-1, x.shape[-1])[index]
        compute = {"cpu": visit_experts, "tpu": multiply_ragged}.get(self.platform, scan_blocks)
        results = compute(rows, groups, self.weights, self.expert)
        place = jnp.zeros_like(groups.order).at[groups.order].set(jnp.arange(tokens * chosen, dtype=jnp.int32))
        result: jax.Array = results[place].reshape(tokens, chosen, -1)
        return jnp.where((experts < self.weights.experts)[..., None], result, 0)


def visit_experts(rows: jax.Array, groups: Groups, weights: ExpertWeights, expert: Expert) -> jax.Array:
    """Apply experts to sorted rows [m, d]: one after another those that have rows, in loops of unknown length.

    A block may reach into the rows of the next expert, which then overwrites them.
    """
    size = _block_size(len(rows), weights.experts, MAX_CPU_BLOCK)
    padded = jnp.pad(rows, ((0, size), (0, 0)))
    starts, used = groups.starts, jnp.argsort(groups.counts == 0, stable=True)

    def visit(number: jax.Array, results: jax.Array) -> jax.Array:
        index = used[number]
        own = {name: weights.of(name, index) for name in weights.arrays}

        def block(number: jax.Array, results: jax.Array) -> jax.Array:
            start = starts[index] + number * size
            x = jax.lax.dynamic_slice_in_dim(padded, start, size)
            return jax.lax.dynamic_update_slice_in_dim(results, expert(x, _product(own)), start, 0)

        blocks = (groups.counts[index] + size - 1) // size
        result: jax.Array = jax.lax.fori_loop(0, blocks, block, results)
        return result

    results: jax.Array = jax.lax.fori_loop(0, (groups.counts > 0).sum(), visit, jnp.zeros_like(padded))
    return results[: len(rows)]


def scan_blocks(rows: jax.Array, groups: Groups, weights: ExpertWeights, expert: Expert) -> jax.Array:
    """Apply experts to sorted rows [m, d]: block by block, in a loop of known length."""
    size = _block_size(len(rows), weights.experts, MAX_BLOCK)
    padded = jnp.pad(rows, ((0, size), (0, 0)))
    blocks = (groups.counts + size - 1) // size
    ends = jnp.cumsum(blocks)
    starts = groups.starts - (ends - blocks) * size  # of the block 0, if it belonged to the expert

    def block(number: jax.Array, results: jax.Array) -> jax.Array:
        index = jnp.minimum(jnp.searchsorted(ends, number, side="right"), weights.experts - 1).astype(jnp.int32)
        own = {name: weights.of(name, index) for name in weights.arrays}
        start = jnp.where(
            number < ends[-1], starts[index] + number * size, len(rows)
        )  # surplus blocks write to padding
        x = jax.lax.dynamic_slice_in_dim(padded, start, size)
        return jax.lax.dynamic_update_slice_in_dim(results, expert(x, _product(own)), start, 0)

    most = len(rows) // size + min(weights.experts, len(rows))
    results: jax.Array = jax.lax.fori_loop(0, most, block, jnp.zeros_like(padded))
    return results[: len(rows)]


def multiply_ragged(rows: jax.Array, groups: Groups, weights: ExpertWeights, expert: Expert) -> jax.Array:
    """Apply experts to sorted rows [m, d] by ragged products."""
    ends = jnp.cumsum(groups.counts)
    index = jnp.searchsorted(ends, jnp.arange(len(rows), dtype=jnp.int32), side="right")
    index = jnp.minimum(index, weights.experts - 1)
    arrays = {
        name: jax.lax.dynamic_index_in_dim(array, weights.layer, keepdims=False)
        for name, array in weights.arrays.items()
    }

    # Products of 16-bit numbers are exact in either precision, and the compiler of the kernel rejects the highest one.
    precision = jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    def product(x: jax.Array, name: str) -> jax.Array:
        y = jax.lax.ragged_dot(x, arrays[name], groups.counts, precision=precision)
        bias = arrays.get(f"{name}_bias")
        return y if bias is None else y + bias[index]

    return expert(rows, product)


def _product(weights: Mapping[str, jax.Array]) -> Product:
    """Return the products with the weights of one expert."""

    def product(x: jax.Array, name: str) -> jax.Array:
        y = x @ weights[name]
        bias = weights.get(f"{name}_bias")
        return y if bias is None else y + bias[None]

    return product


def _block_size(rows: int, experts: int, most: int) -> int:
    """Return the rows of a block: a power of two of about half of an expert's share, at least 8."""
    share = rows // (2 * experts)
    return min(most, max(8, 1 << max(share - 1, 1).bit_length()))
