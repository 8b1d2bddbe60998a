"""Ministral 3: a Mistral whose queries grow with the logarithm of their position, for texts beyond YaRN's original length.

Llama 4 introduced this scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.families.llama import llama


def ministral3(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type ministral3.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    rope, plain = ConfigReader(values).record("rope_parameters"), llama({**values, "model_type": "mistral"})
    growth, length = rope.number("llama_4_scaling_beta"), rope.integer("original_max_position_embeddings")
    require_positive(original_max_position_embeddings=length)
    layers = (
        replace(layer, attention=replace(layer.attention, query_growth=(growth, length, 0))) for layer in plain.layers
    )
    return replace(plain, layers=tuple(layers))
