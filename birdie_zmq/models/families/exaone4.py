"""EXAONE 4: norms after the sub-layers instead of before them, and of queries and keys (LG AI Research, arXiv:2507.11407).

A model with sliding-window layers has no positions in its full-attention layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes, read_windows
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import norm_specs


def exaone4(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type exaone4.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("rms", config.number("rms_norm_eps"))
    specs = sizes.gated_specs() | sizes.norm_specs(
        after_attention_norm="post_attention_layernorm", after_feed_forward_norm="post_feedforward_layernorm"
    )
    specs |= norm_specs(LAYER + "self_attn.q_norm", sizes.head_width, key="query_norm")
    specs |= norm_specs(LAYER + "self_attn.k_norm", sizes.head_width, key="key_norm")
    rope, feed_forward = read_rope(config, sizes.head_width), FeedForward(check_activation(config.text("hidden_act")))
    # This key decides, even if layer_types has no sliding-window layer.
    is_hybrid = config.optional_integer("sliding_window") is not None
    tied = config.flag("tie_word_embeddings", False)

    def layer(window: int | None) -> DecoderLayer:
        attention = Attention(
            sizes.n_heads,
            sizes.n_kv_heads,
            sizes.head_width,
            rope=None if is_hybrid and window is None else rope,
            window=window,
            norm=norm,
        )
        return DecoderLayer(attention, feed_forward, norm, specs)

    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(map(layer, read_windows(config, sizes.n_layers))),
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )
