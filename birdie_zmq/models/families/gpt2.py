"""GPT-2: learned positions, layer norms, biases in every layer (Radford et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.weight_map import (
    TensorSpec,
    bias_spec,
    column_parallel,
    embedding_spec,
    head_spec,
    norm_specs,
    row_parallel,
)

_LAYER = "transformer.h.{}."


def gpt2(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type gpt2.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    config.require("add_cross_attention", (False,))
    d, n_heads, n_layers = config.integer("n_embd"), config.integer("n_head"), config.integer("n_layer")
    positions, vocab_size = config.integer("n_positions"), config.integer("vocab_size")
    require_positive(n_embd=d, n_head=n_heads, n_layer=n_layers)
    if d % n_heads:
        raise ValueError(f"n_embd {d} is not a multiple of n_head {n_heads}")
    attention = Attention(
        n_heads,
        n_heads,
        d // n_heads,
        scale=None if config.flag("scale_attn_weights", True) else 1.0,
        scale_by_layer=config.flag("scale_attn_by_inverse_layer_idx", False),
    )
    feed_forward = FeedForward(check_activation(config.text("activation_function")))
    norm, specs = Norm("layer", config.number("layer_norm_epsilon")), _layer_specs(config, d, n_heads)
    outer = {
        "embedding": embedding_spec("transformer.wte.weight", vocab_size, d),
        "positions": TensorSpec("transformer.wpe.weight", (positions, d)),
        **norm_specs("transformer.ln_f", d, bias=True, key="final_norm"),
    }
    tied = config.flag("tie_word_embeddings", True)
    return Architecture(
        vocab_size=vocab_size,
        max_length=positions,
        layers=(DecoderLayer(attention, feed_forward, norm, specs),) * n_layers,
        outer=outer if tied else outer | {"head": head_spec(HEAD, vocab_size, d)},
        norm=norm,
        base="transformer.",
        redundant=(".attn.bias", ".attn.masked_bias"),
        tied_head=HEAD if tied else None,
    )


def _layer_specs(config: ConfigReader, d: int, n_heads: int) -> dict[str, TensorSpec]:
    """Return the tensors of a layer, which store matrices as [in, out]."""
    f, by_head = config.integer("n_inner", 4 * d), column_parallel(n_heads)
    return {
        **norm_specs(_LAYER + "ln_1", d, bias=True, key="attention_norm"),
        # Queries, keys and values are concatenated: a shard does not have whole heads, so devices exchange them.
        "query_key_value": TensorSpec(_LAYER + "attn.c_attn.weight", (d, 3 * d), shard=by_head),
        "query_key_value_bias": bias_spec(_LAYER + "attn.c_attn.bias", 3 * d, by_head),
        "output": TensorSpec(_LAYER + "attn.c_proj.weight", (d, d), shard=row_parallel(n_heads)),
        "output_bias": TensorSpec(_LAYER + "attn.c_proj.bias", (d,)),
        **norm_specs(_LAYER + "ln_2", d, bias=True, key="feed_forward_norm"),
        "up": TensorSpec(_LAYER + "mlp.c_fc.weight", (d, f), shard=column_parallel(f)),
        "up_bias": bias_spec(_LAYER + "mlp.c_fc.bias", f, column_parallel(f)),
        "down": TensorSpec(_LAYER + "mlp.c_proj.weight", (f, d), shard=row_parallel(f)),
        "down_bias": TensorSpec(_LAYER + "mlp.c_proj.bias", (d,)),
    }
