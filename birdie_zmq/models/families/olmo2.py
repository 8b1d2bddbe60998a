"""OLMo 2 and OLMo 3: norms after the sub-layers instead of before them, and of all heads of queries and keys at once.

OLMo 3 has sliding-window layers beside full-attention layers, and RoPE scaling in the latter only. OLMo Team, 2025,
arXiv:2501.00656 and arXiv:2512.13961.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import FULL, HEAD, LAYER, WINDOWED, Sizes, read_windows
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import norm_specs


def olmo2(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type olmo2 or olmo3.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    is_olmo3, sizes = config.text("model_type") == "olmo3", Sizes.read(config)
    norm = Norm("rms_float32", config.number("rms_norm_eps"))
    biased = ("query", "key", "value", "output") if config.flag("attention_bias", False) else ()
    specs = sizes.gated_specs(biased) | sizes.norm_specs(
        after_attention_norm="post_attention_layernorm", after_feed_forward_norm="post_feedforward_layernorm"
    )
    specs |= norm_specs(LAYER + "self_attn.q_norm", sizes.n_heads * sizes.head_width, key="query_norm")
    specs |= norm_specs(LAYER + "self_attn.k_norm", sizes.n_kv_heads * sizes.head_width, key="key_norm")
    windows = read_windows(config, sizes.n_layers) if is_olmo3 else (None,) * sizes.n_layers
    feed_forward = FeedForward(check_activation(config.text("hidden_act")))
    tied = config.flag("tie_word_embeddings", False)

    def layer(window: int | None) -> DecoderLayer:
        section = (FULL if window is None else WINDOWED) if is_olmo3 else None
        attention = Attention(
            sizes.n_heads,
            sizes.n_kv_heads,
            sizes.head_width,
            rope=read_rope(config, sizes.head_width, section=section),
            window=window,
            norm=norm,
        )
        return DecoderLayer(attention, feed_forward, norm, specs)

    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(map(layer, windows)),
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )
