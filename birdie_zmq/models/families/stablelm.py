"""StableLM: Llama with layer norms and partly rotated heads (Bellagente et al., arXiv:2402.17834).

StableLM 2 12B also has parallel sub-layers, and norms of queries and keys with a weight for each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import TensorSpec


def stablelm(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type stablelm.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    sizes, norm = Sizes.read(config), Norm("layer", config.number("layer_norm_eps"))
    specs = sizes.gated_specs(("query", "key", "value") if config.flag("use_qkv_bias", False) else ())
    specs |= sizes.norm_specs(bias=True, attention_norm="input_layernorm")
    parallel = config.flag("use_parallel_residual", False)
    if not parallel:
        specs |= sizes.norm_specs(bias=True, feed_forward_norm="post_attention_layernorm")
    if config.flag("qk_layernorm", False):
        for key, name, heads in (
            ("query_norm", "q_layernorm", sizes.n_heads),
            ("key_norm", "k_layernorm", sizes.n_kv_heads),
        ):
            name_of_head = LAYER + f"self_attn.{name}.norms.{{member}}.weight"
            specs[key] = TensorSpec(name_of_head, (sizes.head_width,), members=heads)
    rope = read_rope(config, sizes.head_width, partial=True)
    attention = Attention(sizes.n_heads, sizes.n_kv_heads, sizes.head_width, rope=rope, norm=norm)
    feed_forward = FeedForward(check_activation(config.text("hidden_act")))
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=(DecoderLayer(attention, feed_forward, norm, specs, parallel=parallel),) * sizes.n_layers,
        outer=sizes.outer_specs(tied=tied, norm_bias=True),
        norm=norm,
        tied_head=HEAD if tied else None,
    )
