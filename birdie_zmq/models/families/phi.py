"""Phi-1, Phi-1.5 and Phi-2: parallel sub-layers after one norm, partly rotated heads (Li et al., arXiv:2309.05463)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import bias_spec, column_parallel, norm_specs


def phi(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type phi.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("layer", config.number("layer_norm_eps"))
    specs = sizes.attention_specs(("query", "key", "value", "output"), output="dense")
    specs |= sizes.up_down_specs("fc1", "fc2", bias=True)
    specs |= sizes.norm_specs(bias=True, attention_norm="input_layernorm")
    if config.flag("qk_layernorm", False):
        specs |= norm_specs(LAYER + "self_attn.q_layernorm", sizes.head_width, bias=True, key="query_norm")
        specs |= norm_specs(LAYER + "self_attn.k_layernorm", sizes.head_width, bias=True, key="key_norm")
    rope = read_rope(config, sizes.head_width, partial=True)
    attention = Attention(sizes.n_heads, sizes.n_kv_heads, sizes.head_width, rope=rope, norm=norm)
    feed_forward = FeedForward(check_activation(config.text("hidden_act")))
    tied = config.flag("tie_word_embeddings", False)
    outer = sizes.outer_specs(tied=tied, norm_bias=True, norm="model.final_layernorm")
    outer["head_bias"] = bias_spec("lm_head.bias", sizes.vocab_size, column_parallel(sizes.vocab_size))
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=(DecoderLayer(attention, feed_forward, norm, specs, parallel=True),) * sizes.n_layers,
        outer=outer,
        norm=norm,
        tied_head=HEAD if tied else None,
    )
