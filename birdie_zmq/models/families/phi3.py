"""Phi-3, Phi-3.5 and Phi-4: Llama with fused matrices, and partly rotated heads in Phi-4-mini (arXiv:2404.14219)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import TensorSpec, column_parallel, linear_specs, row_parallel


def phi3(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type phi3.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("rms", config.number("rms_norm_eps"))
    attention = Attention(
        sizes.n_heads,
        sizes.n_kv_heads,
        sizes.head_width,
        rope=read_rope(config, sizes.head_width, partial=True),
        window=config.optional_integer("sliding_window"),
    )
    feed_forward = FeedForward(check_activation(config.text("hidden_act")))
    layer = DecoderLayer(attention, feed_forward, norm, _layer_specs(sizes))
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=(layer,) * sizes.n_layers,
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )


def _layer_specs(sizes: Sizes) -> dict[str, TensorSpec]:
    d, queries = sizes.d_model, sizes.n_heads * sizes.head_width
    fused = queries + 2 * sizes.n_kv_heads * sizes.head_width
    # Queries, keys and values are concatenated: a shard does not have whole groups, so devices exchange them.
    by_group, across_heads = column_parallel(sizes.n_kv_heads), row_parallel(sizes.n_heads)
    return {
        **linear_specs(LAYER + "self_attn.qkv_proj", d, fused, by_group, key="query_key_value"),
        **linear_specs(LAYER + "self_attn.o_proj", queries, d, across_heads, key="output"),
        **sizes.fused_gate_specs(),
        **sizes.norm_specs(attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm"),
    }
