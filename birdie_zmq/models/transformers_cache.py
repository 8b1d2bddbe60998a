"""The cache of a transformers model as tensors whose first axis is the row, and as the cache layers that its code calls.

A row's key for position p is stored in slot p, so rows of different lengths lie side by side, and what padding has written
after the end of a row is overwritten by the row's next tokens. All layers keep all positions; a sliding window or a chunk
is the business of the mask. Recurrent layers keep the tensors that their own cache layer of transformers has.

Shape letters: b rows, h heads, t tokens of a row, n slots, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

_KNOWN_LAYERS = (
    *(DynamicLayer, DynamicSlidingWindowLayer, DummyLayer, LinearAttentionLayer),
    *(LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer),
)

State = dict[str, Any]
"""``lengths`` int64[b], the number of tokens of each row, and ``layers``: for each layer its tensors, by name."""

_Form = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class CacheLayout:
    """The tensors that each layer of a model keeps.

    Attributes:
        attention: For each layer, the shapes [h, d] and the dtypes of its keys and values; None without attention.
        recurrent: For each layer, the shapes without the batch and the dtypes of its recurrent tensors, by name.
    """

    attention: tuple[tuple[_Form, _Form] | None, ...]
    recurrent: tuple[dict[tuple[str, int], _Form], ...]

    @property
    def is_recurrent(self) -> bool:
        """Whether a layer's tensors depend on each token that was read, so that padding would change them."""
        return any(self.recurrent)

    def create(self, batch: int, capacity: int, device: torch.device) -> State:
        """Create the state of empty rows with `capacity` slots each."""
        layers = []
        for attention, recurrent in zip(self.attention, self.recurrent, strict=True):
            tensors: dict[Any, torch.Tensor] = {
                name: torch.zeros((batch, *shape), dtype=dtype, device=device)
                for name, (shape, dtype) in recurrent.items()
            }
            if attention is not None:
                for name, ((heads, width), dtype) in zip(("keys", "values"), attention, strict=True):
                    tensors[name] = torch.zeros((batch, heads, capacity, width), dtype=dtype, device=device)
            layers.append(tensors)
        return {"lengths": torch.zeros(batch, dtype=torch.int64, device=device), "layers": layers}


def layout_of(cache: Any) -> CacheLayout:
    """Return the layout of a cache that a model has filled with one row.

    Raises:
        ValueError: A layer keeps something else than keys and values of each token, or recurrent tensors.
    """
    attention: list[Any] = []
    recurrent: list[dict[tuple[str, int], _Form]] = []
    for layer in cache.layers:
        if type(layer) not in _KNOWN_LAYERS:
            raise ValueError(f"its cache has a layer of the class {type(layer).__name__}")
        tensors: list[Any] = [
            x for x in (getattr(layer, "keys", None), getattr(layer, "values", None)) if x is not None
        ]
        if any(x.ndim != 4 for x in tensors):
            raise ValueError(f"its cached keys have the shape {list(tensors[0].shape)}")
        attention.append(tuple(((x.shape[1], x.shape[3]), x.dtype) for x in tensors) or None)
        recurrent.append({name: (tuple(x.shape[1:]), x.dtype) for name, x in _recurrent_tensors(layer).items()})
    if not any(attention) and not any(recurrent):
        raise ValueError("it leaves its cache empty")
    return CacheLayout(tuple(attention), tuple(recurrent))


def empty_cache(config: Any) -> Any:
    """Return the cache that transformers makes for a model."""
    return DynamicCache(config=config)


def _recurrent_tensors(layer: Any) -> dict[tuple[str, int], torch.Tensor]:
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return {}
    return {
        (name, number): tensor
        for name in ("conv_states", "recurrent_states")
        for number, tensor in getattr(layer, name).items()
        if tensor is not None
    }


class Slots(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of a state, to which a call of the model appends.

    Args:
        keys: [b, h, n, d], written in place.
        values: [b, h, n, d], written in place.
        slots: int64[b, t], the slots of the tokens that are appended.
        begin: The first slot, if it is the same for all rows; else None.
        used: The number of slots that are in use after the call.
    """

    is_sliding = False

    def __init__(self, keys: Any, values: Any, slots: Any, begin: int | None, used: int) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True
        self._slots, self._begin, self._used = slots, begin, used

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Do nothing: the tensors exist."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:  # noqa: ARG002
        """Write the keys and values of the new tokens, and return those of all slots in use."""
        for stored, new in ((self.keys, key_states), (self.values, value_states)):
            if self._begin is not None:
                stored[:, :, self._begin : self._begin + new.shape[2]] = new
            else:
                rows = torch.arange(len(stored), device=stored.device)[:, None]
                stored.transpose(1, 2)[rows, self._slots] = new.transpose(1, 2)
        return self.keys[:, :, : self._used], self.values[:, :, : self._used]

    def get_seq_length(self) -> int:
        """Return the number of tokens before the new ones, of the longest row."""
        return self._used - int(self._slots.shape[1])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """Return the number of keys, and the position of the first."""
        return self._used, 0

    def get_max_length(self) -> int:
        """Return -1, for no limit."""
        return -1


class _RecurrentSlots(LinearAttentionLayer, Slots):  # type: ignore[misc]
    """A layer with attention beside a recurrence."""

    def __init__(self, numbers: int, *slots: Any) -> None:
        LinearAttentionLayer.__init__(self, number_of_states=numbers)
        Slots.__init__(self, *slots)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Create the recurrent tensors; keys and values exist."""
        if not args:
            LinearAttentionLayer.lazy_initialization(self, **kwargs)


class _Branches(Slots):
    """Keys and values of one row, which is not changed, followed by those of the new tokens of each of b rows.

    Args:
        prefix: The keys and the values [1, h, n, d]; None for no tokens.
        base: The number of slots in use.
    """

    def __init__(self, prefix: tuple[Any, Any] | None, base: int) -> None:
        CacheLayerMixin.__init__(self)
        self.is_initialized = True
        self._prefix, self._base = prefix, base
        self.entries: tuple[Any, Any] | None = None

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:  # noqa: ARG002
        """Keep the keys and values of the new tokens, and return them after those of the prefix."""
        self.entries = (key_states, value_states)
        if self._prefix is None:
            return self.entries
        keys, values = (
            torch.cat([stored[:, :, : self._base].expand(len(new), -1, -1, -1), new], dim=2)
            for stored, new in zip(self._prefix, self.entries, strict=True)
        )
        return keys, values

    def get_seq_length(self) -> int:
        """Return the number of tokens of the prefix."""
        return self._base

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys, and the position of the first."""
        return self._base + query_length, 0


def cache_to_extend(layout: CacheLayout, state: State, slots: Any, begin: int | None, used: int) -> Any:
    """Return a cache over a state, which the model's call changes; `finish_extension` must follow it.

    Args:
        layout: The layout of the state.
        state: The state.
        slots: int64[b, t], the slots of the new tokens.
        begin: The first of them, if it is the same for all rows. Recurrent layers need it.
        used: The number of slots that are in use after the call.
    """
    layers = []
    for attention, recurrent, tensors in zip(layout.attention, layout.recurrent, state["layers"], strict=True):
        numbers = len({number for _, number in recurrent})
        arguments = () if attention is None else (tensors["keys"], tensors["values"], slots, begin, used)
        if attention is None:
            layer = LinearAttentionLayer(numbers) if recurrent else DummyLayer()
        else:
            layer = _RecurrentSlots(numbers, *arguments) if recurrent else Slots(*arguments)
        if recurrent and begin:
            _restore(layer, recurrent, tensors)
        layers.append(layer)
    return Cache(layers=layers)


def _restore(layer: Any, recurrent: dict[tuple[str, int], _Form], tensors: dict[Any, Any]) -> None:
    """Give a recurrent layer the tensors of a state that has read tokens."""
    for name, number in recurrent:
        tensor = tensors[name, number]
        getattr(layer, name)[number] = tensor
        getattr(layer, f"is_{name}_initialized")[number] = True
        layer.has_previous_state[number] = True
        layer.device, layer.dtype = tensor.device, tensor.dtype
        if name == "conv_states":
            layer.conv_kernel_size[number] = tensor.shape[-1]


def finish_extension(layout: CacheLayout, state: State, cache: Any) -> None:
    """Copy the recurrent tensors of a cache of `cache_to_extend` back into its state."""
    for recurrent, tensors, layer in zip(layout.recurrent, state["layers"], cache.layers, strict=True):
        for (name, number), tensor in _recurrent_tensors(layer).items():
            if (name, number) in recurrent and tensor is not tensors[name, number]:
                tensors[name, number].copy_(tensor)


def cache_to_branch(layout: CacheLayout, state: State | None) -> Any:
    """Return a cache whose layers keep the new tokens of trees after a state of one row, which is not changed."""
    base = 0 if state is None else int(state["lengths"][0])
    layers = []
    for number, attention in enumerate(layout.attention):
        if attention is None:
            layers.append(DummyLayer())
            continue
        tensors = None if state is None else state["layers"][number]
        prefix = None if tensors is None else (tensors["keys"], tensors["values"])
        layers.append(_Branches(prefix, base))
    return Cache(layers=layers)


def entries_of(cache: Any) -> list[tuple[Any, Any] | None]:
    """Return the keys and values [b, h, t, d] of the new tokens, for each layer of a cache of `cache_to_branch`."""
    return [layer.entries if isinstance(layer, _Branches) else None for layer in cache.layers]
