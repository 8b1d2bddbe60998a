"""Quantised checkpoints in PyTorch: transformers loads them with the package of their method, and computes with it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

_PACKAGES = {"gptq": "optimum and gptqmodel", "awq": "gptqmodel"}
"""The packages of methods for which transformers asks for a GPU instead, where these are not installed."""


def describe_method(directory: Path) -> str:
    """Return the end of an error: the method by which a checkpoint is quantised; empty if it is not quantised."""
    try:
        method = str(json.loads((directory / "config.json").read_text())["quantization_config"]["quant_method"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    packages = _PACKAGES.get(method)
    needed = f"; without a GPU, transformers needs the packages {packages} for it" if packages else ""
    return f"; its weights are quantised by {method}{needed}"


def prepare(module: Any) -> None:
    """Call a quantised model once: compressed-tensors unpacks weights at the first call of the whole model."""
    if not is_quantised(module):
        return
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_Once())
    device: torch.device = next(module.parameters()).device
    with torch.inference_mode():
        module(torch.zeros((1, 2), dtype=torch.int64, device=device), use_cache=False)


def is_quantised(module: Any) -> bool:
    """Return whether transformers has loaded a model with quantised weights."""
    return bool(getattr(module, "is_quantized", False))


def check_mergeable(module: Any) -> None:
    """Check that an adapter can be added to the weights of a model.

    Raises:
        ValueError: They are quantised.
    """
    if is_quantised(module):
        method = module.config.quantization_config.quant_method
        name = getattr(method, "value", method)
        raise ValueError(
            f"an adapter cannot be merged into weights that are quantised by {name}; merge it into the model before "
            "it is quantised"
        )


class _Once(logging.Filter):
    """Lets each message pass once: bitsandbytes warns at each product of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a message is new."""
        text = record.getMessage()
        is_new = text not in self._seen
        self._seen.add(text)
        return is_new
