"""GLM-4: heads of which the first half is rotated in neighbouring pairs, fused gates, and in GLM-4-0414 sandwich norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD, Sizes
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope


def glm(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type glm or glm4.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("rms", config.number("rms_norm_eps"))
    specs = sizes.attention_specs(("query", "key", "value") if config.flag("attention_bias", True) else ())
    specs |= sizes.fused_gate_specs()
    specs |= sizes.norm_specs(attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm")
    if config.text("model_type") == "glm4":
        specs |= sizes.norm_specs(
            after_attention_norm="post_self_attn_layernorm", after_feed_forward_norm="post_mlp_layernorm"
        )
    rope = replace(read_rope(config, sizes.head_width, partial=True), interleaved=True)
    attention = Attention(sizes.n_heads, sizes.n_kv_heads, sizes.head_width, rope=rope)
    feed_forward = FeedForward(check_activation(config.text("hidden_act")))
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=(DecoderLayer(attention, feed_forward, norm, specs),) * sizes.n_layers,
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )
