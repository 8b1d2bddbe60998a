"""Attention of rows that come after one prefix, whose keys and values are held once, for a transformers model.

A step that decodes many rows multiplies the queries of all rows by the keys of the prefix at once, and those of each row by
the row's own keys; the softmax is over both. This is the first level of cascade attention (FlashInfer; Ye et al., 2025,
arXiv:2501.01005), without its kernels.

A model's code passes the keys that its cache returns to an attention function of its configuration's name
(`transformers.AttentionInterface`). The cache layer attaches the prefix to these keys, and the function registered here reads
it there. If the code changes the keys in between, or has another attention, the function raises or the shapes do not fit,
and the probe leaves the mode off.

Shape letters: b rows, h query heads, g key heads, t tokens of a row, n keys of a row, p tokens of the prefix, d width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DummyLayer
from transformers.masking_utils import sdpa_mask

from birdie_zmq.models.transformers_cache import CacheLayout, Slots, State

_NAME = "birdie_zmq_shared_prefix"

_UNKNOWN = ("s_aux", "sinks", "position_bias")
"""Arguments that change attention in a way that is not computed here."""


class _SlotsAfterPrefix(Slots):
    """Keys and values of rows that come after a prefix.

    Args:
        prefix: The keys and the values [1, g, p, d] of the prefix.
        slots: What `Slots` takes.
    """

    def __init__(self, prefix: tuple[Any, Any], *slots: Any) -> None:
        super().__init__(*slots)
        self._prefix = prefix

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Write the keys and values of the new tokens; return those of the rows, and with the keys the prefix."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        keys.shared_prefix = self._prefix
        return keys, values

    def get_seq_length(self) -> int:
        """Return the number of tokens before the new ones, of the longest row."""
        return super().get_seq_length() + int(self._prefix[0].shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys, and the position of the first."""
        return super().get_mask_sizes(query_length)[0] + int(self._prefix[0].shape[2]), 0


def cache_after(layout: CacheLayout, state: State, prefix: State, slots: Any, begin: int | None, used: int) -> Any:
    """Return a cache over a state whose rows come after a prefix; a call of the model changes only the state.

    Args:
        layout: The layout of both, without recurrent layers.
        state: The state of the rows.
        prefix: The state of the prefix, with one row.
        slots: int64[b, t], the slots of the new tokens.
        begin: The first of them, if it is the same for all rows.
        used: The number of slots of a row that are in use after the call.
    """
    length = int(prefix["lengths"][0])
    layers: list[Any] = []
    for attention, own, shared in zip(layout.attention, state["layers"], prefix["layers"], strict=True):
        if attention is None:
            layers.append(DummyLayer())
            continue
        held = (shared["keys"][:, :, :length], shared["values"][:, :, :length])
        layers.append(_SlotsAfterPrefix(held, own["keys"], own["values"], slots, begin, used))
    return Cache(layers=layers)


@contextlib.contextmanager
def shared_attention(*configs: Any) -> Iterator[None]:
    """Let models of these configurations use `attend` for as long as the context lasts."""
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    distinct = list({id(config): config for config in configs}.values())
    before = [config._attn_implementation_internal for config in distinct]
    try:
        for config in distinct:
            config._attn_implementation_internal = _NAME
        yield
    finally:
        for config, name in zip(distinct, before, strict=True):
            config._attn_implementation_internal = name


def attend(
    module: Any,  # noqa: ARG001
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Any, None]:
    """Compute the attention of rows to a prefix and to themselves.

    Args:
        module: The attention layer, which is not used.
        query: [b, h, t, d].
        key: [b, g, n, d], to which the cache has attached the keys [1, g, p, d] and the values of the prefix.
        value: [b, g, n, d].
        attention_mask: [b, 1, t, p + n], is added to the scores.
        scaling: The factor of the scores; None for the inverse square root of d.
        others: What the model's code passes besides.

    Returns:
        [b, t, h, d], and no weights.

    Raises:
        ValueError: The code has changed the keys, or its attention is of another kind.
    """
    prefix = getattr(key, "shared_prefix", None)
    unknown = [name for name in _UNKNOWN if others.get(name) is not None]
    if prefix is None or unknown or attention_mask is None or attention_mask.shape[1] != 1:
        raise ValueError(f"its attention takes {', '.join(unknown) or 'other keys than its cache returns'}")
    rows, heads, count, width = query.shape
    groups, length = key.shape[1], prefix[0].shape[2]
    repeats = heads // groups
    grouped = query.reshape(rows, groups, repeats * count, width) * (scaling or width**-0.5)
    # Of the prefix: the queries of all rows in one product for each key head.
    packed = grouped.transpose(0, 1).reshape(groups, -1, width)
    before = (packed @ prefix[0][0].transpose(1, 2)).view(groups, rows, -1, length).transpose(0, 1)
    scores = torch.cat([before, grouped @ key.transpose(2, 3)], dim=-1).view(rows, groups, repeats, count, -1)
    if others.get("softcap") is not None:
        scores = torch.tanh(scores / others["softcap"]) * others["softcap"]
    weights = torch.softmax(scores + attention_mask[:, :, None], dim=-1, dtype=torch.float32).to(value.dtype)
    weights = weights.view(rows, groups, repeats * count, -1)
    of_prefix = weights[..., :length].transpose(0, 1).reshape(groups, -1, length) @ prefix[1][0]
    output = of_prefix.view(groups, rows, repeats * count, -1).transpose(0, 1) + weights[..., length:] @ value
    return output.reshape(rows, heads, count, -1).transpose(1, 2).contiguous(), None
