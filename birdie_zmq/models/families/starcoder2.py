"""StarCoder 2: layer norms, biases, a plain feed-forward layer and windows (Lozhkov et al., arXiv:2402.19173)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD, Sizes
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope


def starcoder2(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type starcoder2.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("layer", config.number("norm_epsilon"))
    bias = config.flag("use_bias", True)
    specs = sizes.attention_specs(("query", "key", "value", "output") if bias else ())
    specs |= sizes.up_down_specs("c_fc", "c_proj", bias=bias)
    specs |= sizes.norm_specs(bias=True, attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm")
    attention = Attention(
        sizes.n_heads,
        sizes.n_kv_heads,
        sizes.head_width,
        rope=read_rope(config, sizes.head_width),
        window=config.optional_integer("sliding_window"),
    )
    feed_forward = FeedForward(check_activation(config.text("hidden_act")))
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=(DecoderLayer(attention, feed_forward, norm, specs),) * sizes.n_layers,
        outer=sizes.outer_specs(tied=tied, norm_bias=True),
        norm=norm,
        tied_head=HEAD if tied else None,
    )
