"""The supported model families, by the model_type of their ``config.json``.

A family is listed here only once tests/parity shows that it agrees with transformers on the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.families.exaone4 import exaone4
from birdie_zmq.models.families.gemma import gemma, gemma2
from birdie_zmq.models.families.gpt2 import gpt2
from birdie_zmq.models.families.gpt_neox import gpt_neox
from birdie_zmq.models.families.granite import granite
from birdie_zmq.models.families.llama import llama
from birdie_zmq.models.families.ministral3 import ministral3
from birdie_zmq.models.families.olmo2 import olmo2
from birdie_zmq.models.families.smollm3 import smollm3

FAMILIES: dict[str, Callable[[Mapping[str, Any]], Architecture]] = {
    "llama": llama,
    "mistral": llama,
    "ministral": llama,
    "ministral3": ministral3,
    "qwen2": llama,
    "qwen3": llama,
    "smollm3": smollm3,
    "granite": granite,
    "olmo2": olmo2,
    "olmo3": olmo2,
    "exaone4": exaone4,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma2,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
}

WITH_TEXT_CONFIG = ("gemma3", "mistral3")
"""Values of model_type of models with more parts than a language model, whose text part is one of `FAMILIES`."""


def check_model_type(model_type: object, source: str) -> None:
    """Check that a family with a model_type is supported.

    Args:
        model_type: The value in the ``config.json``.
        source: The path that error messages name.

    Raises:
        ValueError: The model_type is not supported.
    """
    if model_type not in FAMILIES and model_type not in WITH_TEXT_CONFIG:
        supported = ", ".join(sorted({*FAMILIES, *WITH_TEXT_CONFIG}))
        raise ValueError(
            f"{source}: the model_type {model_type!r} is not known; supported: {supported}. For "
            "another architecture, write an api.py whose load_model returns the model"
        )


def build_architecture(config: Mapping[str, Any], source: str) -> Architecture:
    """Build the decoder that a configuration describes.

    Args:
        config: All keys, as `birdie_zmq.models.config` returns them.
        source: The path that error messages name.

    Raises:
        ValueError: The model_type is unknown, the weights are quantised, or the config requests an unsupported variant.
    """
    model_type = config.get("model_type")
    check_model_type(model_type, source)
    if config.get("quantization_config") is not None:
        raise ValueError(f"{source}: quantised weights (quantization_config) are not supported")
    try:
        return FAMILIES[str(model_type)](config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
