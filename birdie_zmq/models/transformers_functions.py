"""The functions of `birdie_zmq.Model` for a causal language model of transformers: hidden states, head, states and trees.

They hold for models whose code takes what they pass; `birdie_zmq.models.transformers_probe` finds out which of them do.

Shape letters: b rows, t tokens of a row, n keys, d width of a hidden state, q positions, v vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from birdie_zmq.models.transformers_cache import (
    CacheLayout,
    State,
    cache_to_branch,
    cache_to_extend,
    entries_of,
    finish_extension,
)
from birdie_zmq.models.transformers_masks import MaskKinds
from birdie_zmq.models.transformers_shared_prefix import cache_after, shared_attention


def logits(module: Any, tokens: Any) -> Any:
    """Return the logits [b, t, v] of whole rows."""
    return module(tokens, use_cache=False).logits


def hidden(module: Any, tokens: Any) -> Any:
    """Return the hidden states [b, t, d] of whole rows."""
    return backbone(module)(tokens, use_cache=False).last_hidden_state


def backbone(module: Any) -> Any:
    """Return the part of a model that computes hidden states."""
    return getattr(module, _backbone_name(module))


def _backbone_name(module: Any) -> str:
    """Return the name of that part; some classes have another one than their prefix says."""
    name: str = module.base_model_prefix
    return name if hasattr(module, name) else "model"


def unembed(module: Any, hidden_states: Any) -> Any:
    """Return the logits [q, v] of hidden states [q, d], by the head alone."""
    return module.get_output_embeddings()(hidden_states)


def unembed_by_model(module: Any, hidden_states: Any) -> Any:
    """Return the logits [q, v] of hidden states [q, d], by the model's own code around its head, which may scale or cap them."""
    around = copy.copy(module)
    around._modules = module._modules | {_backbone_name(module): _GivenHidden()}
    return around(inputs_embeds=hidden_states[None], use_cache=False).logits[0]


class _Output:
    """An output of a base model that has hidden states, and None for everything else."""

    def __init__(self, hidden_states: Any) -> None:
        self.last_hidden_state = hidden_states

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Any:
        return (self.last_hidden_state,)[index]


class _GivenHidden(torch.nn.Module):
    """A base model that returns its embeddings as hidden states."""

    def forward(self, *args: Any, inputs_embeds: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Return the embeddings."""
        return _Output(inputs_embeds)


@dataclass(frozen=True)
class StateFunctions:
    """Functions of a model with a state; all take the module first.

    Attributes:
        layout: What a state holds.
        kinds: The masks that the model takes, with explicit positions. None computes rows of different lengths in
            separate calls without a mask, for models that find positions by themselves.
    """

    layout: CacheLayout
    kinds: MaskKinds | None

    def init_state(self, module: Any, batch: int, capacity: int) -> State:
        """Return the state of empty rows with a capacity in tokens."""
        return self.layout.create(batch, capacity, _device(module))

    def extend(self, module: Any, tokens: Any, lengths: Any, state: State) -> tuple[Any, State]:
        """Extend each row of a state, which is changed, by the first ``lengths`` int64[b] of its tokens int64[b, t].

        Returns:
            The hidden states [b, t, d], and the state.
        """
        if self.kinds is not None:
            return self._extend_masked(module, tokens, lengths, state)
        found = None
        for rows, begin, count in self._groups(lengths, state):
            group = _rows_of(state, rows)
            slots = torch.arange(begin, begin + count, device=tokens.device).expand(len(rows), -1)
            cache = cache_to_extend(self.layout, group, slots, begin, begin + count)
            given = tokens[rows][:, :count]
            output = backbone(module)(given, cache=cache, use_cache=True).last_hidden_state
            finish_extension(self.layout, group, cache)
            if group is not state:
                _put_rows(state, rows, group)
            if found is None:
                found = output.new_zeros((*tokens.shape, output.shape[-1]))
            found[rows, :count] = output
        if found is None:  # no row has tokens
            width = module.config.get_text_config().hidden_size
            found = torch.zeros((*tokens.shape, width), device=tokens.device, dtype=_dtype(module))
        state["lengths"] += lengths
        return found, state

    def _groups(self, lengths: Any, state: State) -> Iterator[tuple[Any, int, int]]:
        """Yield rows that can be computed in one call without a mask: the rows, their length, and the number of tokens.

        Padding at the end of a row does not reach its tokens by causal attention, but it changes a recurrent state.
        """
        befores, counts = state["lengths"].tolist(), lengths.tolist()
        groups: dict[tuple[int, int], list[int]] = {}
        for row, (before, count) in enumerate(zip(befores, counts, strict=True)):
            if count:
                groups.setdefault((before, count if self.layout.is_recurrent else 0), []).append(row)
        for (before, _), rows in groups.items():
            yield torch.tensor(rows, device=lengths.device), before, max(counts[row] for row in rows)

    def _extend_masked(
        self, module: Any, tokens: Any, lengths: Any, state: State, prefix: State | None = None
    ) -> tuple[Any, State]:
        count = tokens.shape[1]
        befores = state["lengths"].tolist()
        used = max(befores) + count
        begin = befores[0] if min(befores) == max(befores) else None
        base = 0 if prefix is None else int(prefix["lengths"][0])
        slots = state["lengths"][:, None] + torch.arange(count, device=tokens.device)
        # Padding gets the position of a row's last token, as the model may have no embedding for a later one.
        positions = base + slots.minimum((state["lengths"] + lengths - 1).clamp(min=0)[:, None])
        if prefix is None and (begin == 0 or (begin is not None and count == 1)):
            cache = cache_to_extend(self.layout, state, slots, begin, used)
            output = self._call_unmasked(module, tokens, slots, cache)
            state["lengths"] += lengths
            return output, state
        keys = torch.arange(base + used, device=tokens.device)[None]
        allowed = keys[:, None, :] <= positions[:, :, None]
        if prefix is None:
            cache = cache_to_extend(self.layout, state, slots, begin, used)
            output = self._call(module, tokens, positions, keys, allowed, cache)
        else:
            cache = cache_after(self.layout, state, prefix, slots, begin, used)
            with shared_attention(module.config, backbone(module).config, module.config.get_text_config()):
                output = self._call(module, tokens, positions, keys, allowed, cache)
        state["lengths"] += lengths
        return output, state

    def extend_after(self, module: Any, tokens: Any, lengths: Any, state: State, prefix: State) -> tuple[Any, State]:
        """Extend each row of a state as `extend` does; all rows come after a prefix, which is not changed."""
        return self._extend_masked(module, tokens, lengths, state, prefix)

    def branch(self, module: Any, tokens: Any, depths: Any, ends: Any, state: State | None) -> Any:
        """Return the hidden states [b, t, d] of trees; see `birdie_zmq.Model`."""
        return self.prefill(module, tokens, depths, ends, state)[0]

    def prefill(self, module: Any, tokens: Any, depths: Any, ends: Any, state: State | None) -> tuple[Any, Any]:
        """Return the hidden states [b, t, d] of trees, and for each layer the keys and values of their tokens."""
        if state is None and _are_whole_texts(depths, ends):
            cache = cache_to_branch(self.layout, None)
            return self._call_unmasked(module, tokens, depths, cache), entries_of(cache)
        rows, count = tokens.shape
        places = torch.arange(count, device=tokens.device)
        allowed = (places[:, None] >= places) & (places[:, None] < ends[:, None, :])
        base = 0 if state is None else int(state["lengths"][0])
        positions = base + depths
        before = torch.arange(base, device=tokens.device)
        keys = torch.cat([before.expand(rows, -1), positions], dim=1)
        allowed = torch.cat([allowed.new_ones((rows, count, base)), allowed], dim=2)
        cache = cache_to_branch(self.layout, state)
        output = self._call(module, tokens, positions, keys, allowed, cache)
        return output, entries_of(cache)

    def append(self, module: Any, state: State, entries: Any, path: Any, length: Any) -> State:  # noqa: ARG002
        """Append the first ``length`` tokens of a path int64[n] through the trees of a `prefill` to a state of one row."""
        count, begin = int(length), int(state["lengths"][0])
        path = path[:count]
        for tensors, entry in zip(state["layers"], entries, strict=True):
            if entry is None:
                continue
            for name, new in zip(("keys", "values"), entry, strict=True):
                rows, columns = path // new.shape[2], path % new.shape[2]
                tensors[name][0, :, begin : begin + count] = new[rows, :, columns].transpose(0, 1)
        state["lengths"] += count
        return state

    @staticmethod
    def _call_unmasked(module: Any, tokens: Any, positions: Any, cache: Any) -> Any:
        """Compute rows whose tokens attend to all tokens before them: without a mask, attention computes half as much."""
        return backbone(module)(tokens, position_ids=positions, cache=cache, use_cache=True).last_hidden_state

    def _call(self, module: Any, tokens: Any, positions: Any, keys: Any, allowed: Any, cache: Any) -> Any:
        assert self.kinds is not None
        config = module.config.get_text_config()
        mask = self.kinds.masks(config, allowed, positions, keys, _dtype(module))
        return backbone(module)(
            tokens, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True
        ).last_hidden_state


def _are_whole_texts(depths: Any, ends: Any) -> bool:
    """Return whether each row of trees is one text without padding."""
    count = depths.shape[1]
    return bool((ends == count).all()) and bool((depths == torch.arange(count, device=depths.device)).all())


def _rows_of(state: State, rows: Any) -> State:
    """Return some rows of a state: the state itself if they are all of them, else a copy."""
    if len(rows) == len(state["lengths"]):
        return state
    layers = [{name: tensor[rows] for name, tensor in tensors.items()} for tensors in state["layers"]]
    return {"lengths": state["lengths"][rows], "layers": layers}


def _put_rows(state: State, rows: Any, group: State) -> None:
    for tensors, found in zip(state["layers"], group["layers"], strict=True):
        for name, tensor in tensors.items():
            tensor[rows] = found[name]


def _device(module: Any) -> torch.device:
    device: torch.device = next(module.parameters()).device
    return device


def _dtype(module: Any) -> torch.dtype:
    """Return the dtype of the model's hidden states, which is that of its embedding."""
    embedding = module.get_input_embeddings().weight
    return embedding.dtype if embedding.is_floating_point() else torch.get_default_dtype()
