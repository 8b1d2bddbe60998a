"""Gemma 1, Gemma 2 and Gemma 3 (text).

Differences from Llama: embeddings are scaled by sqrt(d) and norms multiply by 1 + weight. From Gemma 2 on, each
sub-layer has a norm after it as well as before it, and sliding-window layers alternate with full-attention layers. Gemma
2 caps scores and logits by tanh. Gemma 3 normalises queries and keys and has two RoPE bases. Gemma Team, 2024,
arXiv:2403.08295 and arXiv:2408.00118; 2025, arXiv:2503.19786.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import FULL, HEAD, LAYER, WINDOWED, Sizes, read_windows
from birdie_zmq.models.families.llama import llama
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import norm_specs


def gemma(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type gemma: that of a Llama, with other norms and a scaled embedding.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them. ``hidden_activation`` is ignored as in transformers.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    config.require("use_bidirectional_attention", (False,))
    norm, plain = Norm("rms_offset", config.number("rms_norm_eps")), llama({**values, "model_type": "llama"})
    return replace(
        plain,
        layers=tuple(replace(layer, norm=norm) for layer in plain.layers),
        norm=norm,
        embedding_scale=config.integer("hidden_size") ** 0.5,
    )


def gemma2(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type gemma2 or gemma3_text.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    config.require("use_bidirectional_attention", (False,))
    is_gemma3, sizes = config.text("model_type") == "gemma3_text", Sizes.read(config)
    norm = Norm("rms_offset", config.number("rms_norm_eps"))
    biased = ("query", "key", "value", "output") if config.flag("attention_bias", False) else ()
    specs = sizes.gated_specs(biased) | sizes.norm_specs(
        attention_norm="input_layernorm",
        after_attention_norm="post_attention_layernorm",
        feed_forward_norm="pre_feedforward_layernorm",
        after_feed_forward_norm="post_feedforward_layernorm",
    )
    if is_gemma3:
        specs |= norm_specs(LAYER + "self_attn.q_norm", sizes.head_width, key="query_norm")
        specs |= norm_specs(LAYER + "self_attn.k_norm", sizes.head_width, key="key_norm")
    rope = read_rope(config, sizes.head_width, section=FULL if is_gemma3 else None)
    window_rope = read_rope(config, sizes.head_width, section=WINDOWED) if is_gemma3 else rope
    feed_forward = FeedForward(check_activation(config.text("hidden_activation")))
    scale = config.number("query_pre_attn_scalar") ** -0.5
    softcap = config.optional_number("attn_logit_softcapping")
    tied = config.flag("tie_word_embeddings", True)

    def layer(window: int | None) -> DecoderLayer:
        attention = Attention(
            sizes.n_heads,
            sizes.n_kv_heads,
            sizes.head_width,
            scale=scale,
            rope=rope if window is None else window_rope,
            window=window,
            softcap=softcap,
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
        embedding_scale=sizes.d_model**0.5,
        logit_cap=config.optional_number("final_logit_softcapping"),
    )
