"""The supported model families, by the model_type of their ``config.json``.

A family is listed here only once tests/parity shows that it agrees with transformers on the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import UnsupportedValueError
from birdie_zmq.models.families.bloom import bloom
from birdie_zmq.models.families.cohere import cohere
from birdie_zmq.models.families.deepseek import deepseek_v3
from birdie_zmq.models.families.exaone4 import exaone4
from birdie_zmq.models.families.falcon import falcon
from birdie_zmq.models.families.falcon_h1 import falcon_h1
from birdie_zmq.models.families.gemma import gemma, gemma2
from birdie_zmq.models.families.gemma3n import gemma3n
from birdie_zmq.models.families.gemma4 import gemma4
from birdie_zmq.models.families.glm import glm
from birdie_zmq.models.families.gpt2 import gpt2
from birdie_zmq.models.families.gpt_neox import gpt_neox
from birdie_zmq.models.families.gpt_oss import gpt_oss
from birdie_zmq.models.families.gptj import gptj
from birdie_zmq.models.families.granite import granite
from birdie_zmq.models.families.lfm2 import lfm2
from birdie_zmq.models.families.llama import llama
from birdie_zmq.models.families.llama4 import llama4
from birdie_zmq.models.families.mamba import mamba
from birdie_zmq.models.families.mamba2 import mamba2
from birdie_zmq.models.families.ministral3 import ministral3
from birdie_zmq.models.families.mixtral import mixtral, olmoe
from birdie_zmq.models.families.olmo2 import olmo2
from birdie_zmq.models.families.opt import opt
from birdie_zmq.models.families.phi import phi
from birdie_zmq.models.families.phi3 import phi3
from birdie_zmq.models.families.qwen3_next import qwen3_5, qwen3_5_moe, qwen3_next
from birdie_zmq.models.families.qwen_moe import qwen_moe
from birdie_zmq.models.families.recurrent_gemma import recurrent_gemma
from birdie_zmq.models.families.smollm3 import smollm3
from birdie_zmq.models.families.stablelm import stablelm
from birdie_zmq.models.families.starcoder2 import starcoder2
from birdie_zmq.models.nearest_family import describe_unknown
from birdie_zmq.models.quantised_source import read_scheme

FAMILIES: dict[str, Callable[[Mapping[str, Any]], Architecture]] = {
    "bloom": bloom,
    "cohere": cohere,
    "cohere2": cohere,
    "deepseek_v3": deepseek_v3,
    "exaone4": exaone4,
    "falcon": falcon,
    "falcon_h1": falcon_h1,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma2,
    "gemma3n_text": gemma3n,
    "gemma4_text": gemma4,
    "glm": glm,
    "glm4": glm,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "gptj": gptj,
    "granite": granite,
    "lfm2": lfm2,
    "llama": llama,
    "llama4_text": llama4,
    "mamba": mamba,
    "mamba2": mamba2,
    "ministral": llama,
    "ministral3": ministral3,
    "mistral": llama,
    "mixtral": mixtral,
    "olmo2": olmo2,
    "olmo3": olmo2,
    "olmoe": olmoe,
    "opt": opt,
    "phi": phi,
    "phi3": phi3,
    "qwen2": llama,
    "qwen2_moe": qwen_moe,
    "qwen3": llama,
    "qwen3_5_moe_text": qwen3_5_moe,
    "qwen3_5_text": qwen3_5,
    "qwen3_moe": qwen_moe,
    "qwen3_next": qwen3_next,
    "recurrent_gemma": recurrent_gemma,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}

WITH_TEXT_CONFIG = ("gemma3", "gemma3n", "gemma4", "llama4", "mistral3", "qwen3_5", "qwen3_5_moe")
"""Values of model_type of models with more parts than a language model, whose text part is one of `FAMILIES`."""

_OTHER_ENGINE = "engine=torch in model_args loads any causal model of transformers (pip install 'birdie-zmq[torch]')"


def check_model_type(model_type: object, source: str) -> None:
    """Check that a family with a model_type is supported.

    Args:
        model_type: The value in the ``config.json``.
        source: The path that error messages name.

    Raises:
        ValueError: The model_type is not supported. The message names the supported family that is most like it.
    """
    if model_type in FAMILIES or model_type in WITH_TEXT_CONFIG:
        return
    if not isinstance(model_type, str):
        raise ValueError(f"{source}: model_type must be a string, not {model_type!r}")
    supported = ", ".join(sorted({*FAMILIES, *WITH_TEXT_CONFIG}))
    raise ValueError(
        f"{source}: the model_type {model_type!r} is not supported by the engine jax; "
        f"{describe_unknown(model_type, FAMILIES)}. {_OTHER_ENGINE}. Supported: {supported}. For another architecture in "
        "JAX, write an api.py whose load_model returns the model"
    )


def build_architecture(config: Mapping[str, Any], source: str) -> Architecture:
    """Build the decoder that a configuration describes.

    Args:
        config: All keys, as `birdie_zmq.models.config` returns them.
        source: The path that error messages name.

    Raises:
        ValueError: The model_type is unknown, or the config requests an unsupported variant or quantisation.
    """
    model_type = config.get("model_type")
    check_model_type(model_type, source)
    try:
        if config.get("quantization_config") is not None:
            read_scheme(config["quantization_config"])  # before any weight is read
        return FAMILIES[str(model_type)](config)
    except UnsupportedValueError as error:
        raise ValueError(f"{source}: {error}. {_OTHER_ENGINE}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
