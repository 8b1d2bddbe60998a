"""Find the tensors of a decoder in a checkpoint, whatever stands before their names.

The same decoder is stored under several names: with its base prefix (``model.layers.0…``), without it, or as the text
part of a multimodal model (``language_model.model.layers.0…`` as Gemma 3 was published,
``model.language_model.layers.0…`` as transformers 5 writes it).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from birdie_zmq.models.tensor_source import TensorHeader
from birdie_zmq.models.weight_map import ParamSlot, WeightMap

_WRAPPERS = ("", "language_model.", "model.language_model.", "text_model.", "model.text_model.")
"""What precedes a decoder's own names; the last four, where it is a part of a multimodal model."""

_MAX_LISTED = 3


@dataclass(frozen=True)
class MatchedTensors:
    """The tensors of a checkpoint, matched to a weight map.

    Attributes:
        slots: The destination of each stored tensor that is loaded.
        stored: The stored name of each of these tensors, by its name in the weight map.
        unused: Stored tensors outside of the decoder, which are not loaded.
        other_head: The stored head of a tied model that also has the embedding; None if it has only one of the two.
    """

    slots: Mapping[str, ParamSlot]
    stored: Mapping[str, str]
    unused: tuple[str, ...]
    other_head: str | None


def match_tensors(weight_map: WeightMap, headers: Mapping[str, TensorHeader], location: str) -> MatchedTensors:
    """Match the tensors of a checkpoint to a weight map.

    Args:
        weight_map: The tensors that the model needs.
        headers: The stored tensors.
        location: The path that error messages name.

    Raises:
        ValueError: The checkpoint lacks a tensor, has one in the decoder that the model does not use, or has one of
            another shape or of a quantised type. The message names the checkpoint and the tensor.
    """
    prefix = _stored_prefix(weight_map, headers)
    slots: dict[str, ParamSlot] = {}
    stored: dict[str, str] = {}
    head = None if weight_map.tied_head is None else _find(weight_map.tied_head, "", headers)
    for name, slot in weight_map.tensors():
        found = _find(name, weight_map.base, headers, prefix)
        if found is None and slot.key == "embedding" and head is not None:
            found, head = head, None  # the one matrix of a tied model is stored under the head's name
        if found is None:
            raise ValueError(f"{location} lacks the tensor {name}")
        _check(found, headers[found], slot, location)
        slots[found], stored[name] = slot, found
    unused = tuple(
        name for name in headers if name not in slots and name != head and not _is_redundant(name, weight_map)
    )
    inside = _layers_prefix(weight_map, prefix)
    modules = {name.rpartition(".")[0] for name in slots}
    for name in unused:
        if name.startswith(inside) or name.rpartition(".")[0] in modules:
            raise ValueError(f"{location} has the tensor {name}, which this architecture does not use")
    return MatchedTensors(slots, stored, unused, head)


def name_variants(name: str, base: str) -> Iterator[str]:
    """Yield a tensor's name, and its other names under the known prefixes; `base` is the decoder's base prefix."""
    yield name
    prefixes = _prefixes(base)
    for removed in sorted(prefixes, key=len, reverse=True):
        if name.startswith(removed):
            yield from (prefix + name.removeprefix(removed) for prefix in prefixes)


def abbreviate(names: Collection[str]) -> str:
    """Return the first names of a collection, and the number of the others."""
    listed = sorted(names)
    rest = len(listed) - _MAX_LISTED
    return ", ".join(listed[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _prefixes(base: str) -> list[str]:
    return list(dict.fromkeys(wrapper + own for own in (base, "") for wrapper in _WRAPPERS))


def _stored_prefix(weight_map: WeightMap, headers: Mapping[str, TensorHeader]) -> str:
    """Return what the checkpoint has instead of the base prefix: the prefix under which most tensors are found."""
    names = [name.removeprefix(weight_map.base) for name, _ in weight_map.tensors() if name.startswith(weight_map.base)]
    return max(_prefixes(weight_map.base), key=lambda prefix: sum(prefix + name in headers for name in names))


def _find(name: str, base: str, headers: Mapping[str, TensorHeader], prefix: str = "") -> str | None:
    """Return the stored name of a tensor; the head, which has no base prefix, may be inside of a wrapper.

    A tensor of a multimodal model outside of its decoder has its own name.
    """
    if base and name.startswith(base):
        return next((stored for stored in (prefix + name.removeprefix(base), name) if stored in headers), None)
    return next((wrapper + name for wrapper in _WRAPPERS if wrapper + name in headers), None)


def _layers_prefix(weight_map: WeightMap, prefix: str) -> str:
    """Return the beginning of the stored names of all tensors in layers, such as ``model.layers.``."""
    spec = next(iter(weight_map.stacks[0].specs.values()))
    return prefix + spec.name.partition("{}")[0].removeprefix(weight_map.base)


def _is_redundant(name: str, weight_map: WeightMap) -> bool:
    return f".{name}".endswith(tuple(f".{end.lstrip('.')}" for end in weight_map.redundant))


def _check(name: str, header: TensorHeader, slot: ParamSlot, location: str) -> None:
    if not header.floating:
        raise ValueError(f"{location}: the tensor {name} is {header.dtype}; quantised weights are not supported")
    if header.shape != slot.spec.shape:
        raise ValueError(
            f"{location}: the tensor {name} has the shape {header.shape}, but the config requires {slot.spec.shape}"
        )
