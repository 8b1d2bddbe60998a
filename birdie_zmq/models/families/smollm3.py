"""SmolLM3: a Llama in which every fourth layer has no positions (Yang et al., 2025, arXiv:2501.18795)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import DecoderLayer
from birdie_zmq.models.families.common import read_windows
from birdie_zmq.models.families.llama import llama


def smollm3(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type smollm3.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them. ``no_rope_layers`` has 0 for a layer without
            positions, and 1 for one with them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config, plain = ConfigReader(values), llama({**values, "model_type": "llama"})
    count = len(plain.layers)

    def layer_of(layer: DecoderLayer, has_rope: float, window: int | None) -> DecoderLayer:
        attention = replace(layer.attention, rope=layer.attention.rope if has_rope else None, window=window)
        return replace(layer, attention=attention)

    layers = map(layer_of, plain.layers, config.numbers("no_rope_layers", count), read_windows(config, count))
    return replace(plain, layers=tuple(layers))
