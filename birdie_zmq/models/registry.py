"""The families that checkpoints may belong to, by the model_type of their ``config.json``.

A family stands here once it agrees with transformers on the same weights (tests/parity), and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from birdie_zmq.models.gemma import Gemma
from birdie_zmq.models.gpt2 import Gpt2
from birdie_zmq.models.gpt_neox import GptNeoX
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.weight_map import Architecture

FAMILIES: dict[str, Callable[[Mapping[str, Any]], Architecture]] = {
    "llama": Llama.from_hugging_face,
    "mistral": Llama.from_hugging_face,
    "qwen2": Llama.from_hugging_face,
    "qwen3": Llama.from_hugging_face,
    "gemma2": Gemma.from_hugging_face,
    "gemma3_text": Gemma.from_hugging_face,
    "gpt2": Gpt2.from_hugging_face,
    "gpt_neox": GptNeoX.from_hugging_face,
}


def architecture_of(config: Mapping[str, Any], where: str) -> Architecture:
    """The decoder that a ``config.json`` describes.

    Raises:
        ValueError: Its model_type is not known, it is quantised, or it asks for a variant that is not computed. The
            message says `where`.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{where}: the model_type {kind!r} is not known; known are {', '.join(sorted(FAMILIES))}. Another "
            "architecture needs an api.py of its own, whose load_model returns its function"
        )
    if config.get("quantization_config") is not None:
        raise ValueError(f"{where}: the weights are quantised (quantization_config), which is not read")
    try:
        return FAMILIES[kind](config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
