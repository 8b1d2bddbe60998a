"""The attention masks of a transformers model, made from positions instead of from places in a row.

A row of trees, or a state whose rows have different lengths, needs a mask for each row. transformers takes one with four
axes as it is; a model whose layers differ takes a dictionary of them by the type of a layer
(``create_causal_mask`` in ``transformers/masking_utils.py``).

Shape letters: b rows, t tokens of a row, n keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_FULL, _SLIDING, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

LIMITED = frozenset({_SLIDING, _CHUNKED})
"""The kinds of masks that limit attention."""

_WINDOW, _CHUNK = "sliding_window", "attention_chunk_size"

_LIMITING = re.compile(r"window|chunk|local|sliding|sparse|stride|block_size|floor_scale|compress|index_topk")
"""Names in configurations of limits on what a token attends to, or of positions at which something changes."""

_HARMLESS = frozenset(
    {
        *(_WINDOW, _CHUNK),
        # which layers have a window
        *("use_sliding_window", "sliding_window_pattern", "_sliding_window_pattern", "max_window_layers"),
        *("chunk_size_feed_forward", "chunk_size", "mamba_chunk_size"),  # how a computation is split
        *("decoder_sparse_step", "num_local_experts"),  # experts
    }
)
"""Those among them whose meaning is known here, or that do not limit anything."""

_SWITCHING_ROPES = ("dynamic", "longrope")
"""Kinds of RoPE whose frequencies depend on the length of the whole call."""


@dataclass(frozen=True)
class MaskKinds:
    """The masks that a model's layers take.

    Attributes:
        kinds: The types of its attention layers. With several, its code takes a dictionary of masks.
        others: The types of its other layers, which take no mask.
    """

    kinds: tuple[str, ...]
    others: tuple[str, ...]

    def masks(self, config: Any, allowed: Any, queries: Any, keys: Any, dtype: torch.dtype) -> Any:
        """Return what a model takes as ``attention_mask``.

        Args:
            config: The configuration of its text model, which has the window and the chunk.
            allowed: bool[b, t, n], whether a layer without a limit attends to a key.
            queries: int64[b, t], the positions of the queries.
            keys: int64[b or 1, n], the positions of the keys.
            dtype: The dtype of the model's hidden states.
        """
        made = {kind: _additive(_limited(config, kind, allowed, queries, keys), dtype) for kind in self.kinds}
        if len(made) == 1:
            return next(iter(made.values()))
        return made | dict.fromkeys(self.others)


def mask_kinds(config: Any) -> MaskKinds:
    """Return the kinds of masks of the layers of a text model's configuration.

    Raises:
        ValueError: The configuration has a layer type, or a limit on attention, whose meaning is not known here.
    """
    unknown = unknown_limits(config)
    if unknown:
        raise ValueError(f"its configuration has {', '.join(unknown)}, whose masks are not known here")
    types = getattr(config, "layer_types", None)
    if not types:
        window = getattr(config, _WINDOW, None)
        kind = _SLIDING if window else _CHUNKED if getattr(config, _CHUNK, None) else _FULL
        return MaskKinds((kind,), ())
    kinds = tuple(kind for kind in (_FULL, _SLIDING, _CHUNKED) if kind in types)
    return MaskKinds(kinds or (_FULL,), tuple(sorted(set(types) - set(kinds))))


def limits(config: Any) -> dict[str, int]:
    """Return the window and the chunk of a configuration, by name."""
    found = {name: getattr(config, name, None) for name in (_WINDOW, _CHUNK)}
    return {name: value for name, value in found.items() if isinstance(value, int) and value > 0}


def unknown_limits(config: Any) -> list[str]:
    """Return the fields of a configuration that may limit attention in a way that is not known here."""
    fields: Mapping[str, Any] = config.to_dict()
    return [
        f"{name}={value}"
        for name, value in fields.items()
        if _LIMITING.search(name)
        and name not in _HARMLESS
        and (isinstance(value, list | dict) or (isinstance(value, int) and not isinstance(value, bool) and value > 0))
        and value
    ]


def rope_switch(config: Any) -> int | None:
    """Return the length in tokens beyond which RoPE computes earlier positions in another way; None if there is none."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    switches = []
    for each in nested:
        switching = each.get("rope_type") in _SWITCHING_ROPES or each.get("llama_4_scaling_beta")
        if switching:
            original = each.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            switches.append(int(original or config.max_position_embeddings))
    return min(switches, default=None)


def _limited(config: Any, kind: str, allowed: Any, queries: Any, keys: Any) -> Any:
    if kind == _SLIDING:
        return allowed & (queries[:, :, None] - keys[:, None, :] < getattr(config, _WINDOW))
    if kind == _CHUNKED:
        chunk = getattr(config, _CHUNK)
        return allowed & (queries[:, :, None] // chunk == keys[:, None, :] // chunk)
    return allowed


def _additive(allowed: Any, dtype: torch.dtype) -> Any:
    """Return a mask [b, 1, t, n] that is added to attention scores: 0 where attention is allowed, else the least number."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
