"""Command R, Command R7B and Command A: parallel sub-layers after one norm, and scaled logits.

The windowed layers of Command R7B and Command A rotate their heads; their other layers have no positions (Yang et al.,
arXiv:2501.18795).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes, read_windows
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import TensorSpec


def cohere(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type cohere or cohere2.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("layer", config.number("layer_norm_eps"))
    has_windows = config.text("model_type") == "cohere2"
    windows = read_windows(config, sizes.n_layers) if has_windows else (None,) * sizes.n_layers
    biased = ("query", "key", "value", "output") if config.flag("attention_bias", False) else ()
    specs = sizes.gated_specs(biased) | sizes.norm_specs(attention_norm="input_layernorm")
    if not has_windows and config.flag("use_qk_norm", False):
        for key, name, heads in (("query_norm", "q_norm", sizes.n_heads), ("key_norm", "k_norm", sizes.n_kv_heads)):
            specs[key] = TensorSpec(f"{LAYER}self_attn.{name}.weight", (heads, sizes.head_width))
    rope = replace(read_rope(config, sizes.head_width), interleaved=True)
    feed_forward = FeedForward(check_activation(config.text("hidden_act")))
    tied = config.flag("tie_word_embeddings", True)

    def layer(window: int | None) -> DecoderLayer:
        rotates = window is not None or not has_windows
        attention = Attention(
            sizes.n_heads,
            sizes.n_kv_heads,
            sizes.head_width,
            rope=rope if rotates else None,
            window=window,
            norm=norm,
        )
        return DecoderLayer(attention, feed_forward, norm, specs, parallel=True)

    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(map(layer, windows)),
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
        logit_scale=config.number("logit_scale"),
    )
