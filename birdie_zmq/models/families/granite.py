"""Granite 3: a Llama whose embedding, scores, sub-layers and logits are scaled by constants of the configuration.

The constants let a small model's learning rate be used for a large one (Yang et al., 2022, arXiv:2203.03466).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import DecoderLayer
from birdie_zmq.models.families.llama import llama


def granite(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type granite.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config, plain = ConfigReader(values), llama({**values, "model_type": "llama"})
    score_scale, residual_scale = config.number("attention_multiplier"), config.number("residual_multiplier")
    logit_divisor = config.number("logits_scaling")
    if logit_divisor == 0:
        raise ValueError("logits_scaling must not be 0")

    def scaled(layer: DecoderLayer) -> DecoderLayer:
        attention = replace(layer.attention, scale=score_scale)
        return replace(layer, attention=attention, residual_scale=residual_scale)

    return replace(
        plain,
        layers=tuple(map(scaled, plain.layers)),
        embedding_scale=config.number("embedding_multiplier"),
        logit_scale=1 / logit_divisor,
    )
