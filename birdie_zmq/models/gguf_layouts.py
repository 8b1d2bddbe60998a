"""How llama.cpp's converter changes tensors, and how the originals are restored.

Shape letters: n query heads, k key/value heads, h width of a head, d width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class HeadCounts(NamedTuple):
    """The numbers of query heads and of key/value heads."""

    query: int
    key_value: int


class TensorLayout(NamedTuple):
    """The change of a tensor in a GGUF file.

    Attributes:
        restore: Returns the original.
        transposed: Whether the original has the two axes of the stored tensor in the other order.
    """

    restore: Callable[[NDArray[Any], HeadCounts], NDArray[Any]]
    transposed: bool = False


Layouts = Mapping[str, TensorLayout]
"""The changed tensors of an architecture, by the last part of their Hugging Face names."""


def find_layout(layouts: Layouts, name: str) -> TensorLayout | None:
    """Return the layout of a tensor with a Hugging Face name; None for one that is stored as it is."""
    return next((layout for ending, layout in layouts.items() if name.endswith(ending)), None)


def _to_rotate_half_order(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows [n * h, ...] for "rotate_half".

    llama.cpp rotates dimension 2i with 2i + 1; Hugging Face rotates dimension i with i + h / 2. So llama.cpp's
    converter reorders the rows of each head; this restores the original order.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _to_groups(weight: NDArray[Any], heads: HeadCounts) -> NDArray[Any]:
    """Reorder rows [(n + 2k) * h, ...]: the queries, the key and the value of each key/value head in turn.

    The converter stores all queries before all keys and all values.
    """
    parts = weight.reshape(heads.query + 2 * heads.key_value, -1, *weight.shape[1:])
    queries, keys, values = np.split(parts, (heads.query, heads.query + heads.key_value))
    grouped = queries.reshape(heads.key_value, -1, *parts.shape[1:])
    return np.concatenate([grouped, keys[:, None], values[:, None]], axis=1).reshape(weight.shape)


def _subtract_one(weight: NDArray[Any], _: HeadCounts) -> NDArray[Any]:
    return weight - np.float32(1)


def _transpose(weight: NDArray[Any], _: HeadCounts) -> NDArray[Any]:
    return weight.T


def _for_endings(layout: TensorLayout, *endings: str) -> dict[str, TensorLayout]:
    return dict.fromkeys(endings, layout)


_QUERY_ROWS = TensorLayout(lambda weight, heads: _to_rotate_half_order(weight, heads.query))
_KEY_ROWS = TensorLayout(lambda weight, heads: _to_rotate_half_order(weight, heads.key_value))

ROTATED_PAIRS = _for_endings(_QUERY_ROWS, "q_proj.weight", "q_proj.bias") | _for_endings(
    _KEY_ROWS, "k_proj.weight", "k_proj.bias"
)
"""Llama's query and key projections."""

NORMS_PLUS_ONE = {"norm.weight": TensorLayout(_subtract_one)}
"""Gemma's norms, which multiply by 1 + weight."""

TRANSPOSED = _for_endings(TensorLayout(_transpose, transposed=True), "c_attn.weight", "c_proj.weight", "c_fc.weight")
"""GPT-2's matrices, [in, out] in Hugging Face's files."""

GROUPED = _for_endings(TensorLayout(_to_groups), "query_key_value.weight", "query_key_value.bias")
"""The fused projections of GPT-NeoX, Bloom and Falcon."""
