"""Falcon: one key/value head or few, parallel sub-layers, no biases (Almazrouei et al., 2023, arXiv:2311.16867).

Falcon-7B has one norm for both sub-layers, Falcon-40B and 180B ("new_decoder_architecture") have one for each, Falcon2-11B
has one again. Falcon-RW has consecutive sub-layers, biases, and ALiBi in place of rotary positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.alibi import Alibi
from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.bloom import LAYER, fused_specs
from birdie_zmq.models.families.common import HEAD
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import TensorSpec, embedding_spec, head_spec, norm_specs


def falcon(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type falcon.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    d, n_heads, n_layers = (config.integer(key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    require_positive(hidden_size=d, num_attention_heads=n_heads, num_hidden_layers=n_layers)
    if d % n_heads:
        raise ValueError(f"hidden_size {d} is not a multiple of num_attention_heads {n_heads}")
    kv_heads = 1 if config.flag("multi_query", True) else n_heads
    if config.flag("new_decoder_architecture", False):
        config.require("parallel_attn", (True,))
        kv_heads = config.integer("num_kv_heads", n_heads)
        require_positive(num_kv_heads=kv_heads)
    head_width, has_alibi = d // n_heads, config.flag("alibi", False)
    attention = Attention(
        n_heads,
        kv_heads,
        head_width,
        rope=None if has_alibi else read_rope(config, head_width),
        # The bias is added to the scores before both are scaled.
        alibi=Alibi(n_heads, head_width**-0.5, rounded=True) if has_alibi else None,
        fused="by_group",
    )
    norm, vocab_size = Norm("layer", config.number("layer_norm_epsilon")), config.integer("vocab_size")
    matrices = fused_specs(d, config.integer("ffn_hidden_size"), (n_heads, kv_heads), bias=config.flag("bias", False))
    layer = DecoderLayer(
        attention,
        FeedForward(check_activation(config.text("activation"))),
        norm,
        matrices | _norm_specs(config, d),
        parallel=config.flag("parallel_attn", True),
    )
    outer = {
        "embedding": embedding_spec("transformer.word_embeddings.weight", vocab_size, d),
        **norm_specs("transformer.ln_f", d, bias=True, key="final_norm"),
    }
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        vocab_size=vocab_size,
        max_length=config.integer("max_position_embeddings"),
        layers=(layer,) * n_layers,
        outer=outer if tied else outer | {"head": head_spec(HEAD, vocab_size, d)},
        norm=norm,
        base="transformer.",
        tied_head=HEAD if tied else None,
    )


def _norm_specs(config: ConfigReader, d: int) -> dict[str, TensorSpec]:
    """Return the norms of a layer."""
    is_new, is_parallel = config.flag("new_decoder_architecture", False), config.flag("parallel_attn", True)
    names = {"attention_norm": "input_layernorm"}
    if not is_parallel:
        names["feed_forward_norm"] = "post_attention_layernorm"
    elif is_new and config.integer("num_ln_in_parallel_attn", 2) == 2:
        names = {"attention_norm": "ln_attn", "feed_forward_norm": "ln_mlp"}
    else:
        config.require("num_ln_in_parallel_attn", (1,))
    specs: dict[str, TensorSpec] = {}
    for key, name in names.items():
        specs |= norm_specs(LAYER + name, d, bias=True, key=key)
    return specs
