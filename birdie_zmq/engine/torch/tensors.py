"""Nested containers of tensors and modules: params and states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


def map_tensors(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Apply a function to each tensor of a state, together with those at the same places of other states."""
    if isinstance(value, torch.Tensor):
        return function(value, *others)
    if isinstance(value, dict):
        return {name: map_tensors(function, item, *(other[name] for other in others)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [map_tensors(function, item, *(other[i] for other in others)) for i, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def state_tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors of a state, of any dtype."""
    found: list[torch.Tensor] = []
    map_tensors(found.append, value)
    return found


def to_device(value: Any, device: torch.device) -> Any:
    """Move tensors and modules from the CPU to a device, within nested containers, and put modules into evaluation mode."""
    if isinstance(value, torch.nn.Module):
        on_cpu = all(tensor.device.type == "cpu" for tensor in weights_of(value))
        return (value.to(device) if on_cpu else value).eval()
    if isinstance(value, torch.Tensor):
        return value.to(device) if value.device.type == "cpu" else value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).to(device)
    if isinstance(value, dict):
        return {name: to_device(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [to_device(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def weights_of(value: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors of a module or of nested containers."""
    if isinstance(value, torch.nn.Module):
        yield from value.parameters()
    elif isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from weights_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from weights_of(item)
