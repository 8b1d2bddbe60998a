"""The supported model families, by the model_type of their ``config.json``.

A family is listed here only once tests/parity shows that it agrees with transformers on the same weights.
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
    "gemma3": lambda config: Gemma.from_hugging_face(_text_config(config)),
    "gpt2": Gpt2.from_hugging_face,
    "gpt_neox": GptNeoX.from_hugging_face,
}


def build_architecture(config: Mapping[str, Any], source: str) -> Architecture:
    """Build the decoder that a ``config.json`` describes.

    Args:
        config: The keys of the file.
        source: The path that error messages name.

    Raises:
        ValueError: The model_type is unknown, the weights are quantised, or the config requests an unsupported variant.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"{source}: the model_type {model_type!r} is not known; supported: {', '.join(sorted(FAMILIES))}. For "
            "another architecture, write an api.py whose load_model returns the model"
        )
    if config.get("quantization_config") is not None:
        raise ValueError(f"{source}: quantised weights (quantization_config) are not supported")
    try:
        return FAMILIES[model_type](config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the text decoder of a multimodal Gemma 3.

    As in transformers, the outer config says whether the head is tied, by default that it is, and the logits are not
    capped.
    """
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise ValueError(f"text_config must be an object, not {text!r}")
    tied = config.get("tie_word_embeddings", True)
    changes = {"model_type": "gemma3_text", "tie_word_embeddings": tied, "final_logit_softcapping": None}
    return {**text, **changes}
