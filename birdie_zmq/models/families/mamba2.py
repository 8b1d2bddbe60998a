"""Mamba 2: recurrences whose heads have one decay each (Dao and Gu, 2024, arXiv:2405.21060)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.families.mamba_layers import MIXER, mamba_architecture
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.mamba2_mixer import Mamba2Mixer


def mamba2(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type mamba2.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    config.require("rms_norm", (True,))
    width = config.integer("hidden_size")
    low, high = config.numbers("time_step_limit", 2)
    mixer = Mamba2Mixer(
        heads=config.integer("num_heads"),
        head_width=config.integer("head_dim"),
        groups=config.integer("n_groups"),
        key_width=config.integer("state_size"),
        taps=config.integer("conv_kernel"),
        activation=check_activation(config.text("hidden_act")),
        norm=Norm("rms", config.number("layer_norm_epsilon")),
        time_step_limit=(low, high),
    )
    if mixer.inner != int(config.number("expand") * width):
        raise ValueError(
            f"num_heads {mixer.heads} times head_dim {mixer.head_width} is not expand {config.number('expand'):g} times "
            f"hidden_size {width}"
        )
    bias = config.flag("use_bias", False)
    specs = mixer.specs(MIXER, width, bias=bias, output_bias=bias, convolution_bias=config.flag("use_conv_bias", True))
    return mamba_architecture(config, mixer, specs)
