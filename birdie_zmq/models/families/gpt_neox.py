"""GPT-NeoX, the architecture of Pythia: parallel sub-layers, partly rotated heads (Black et al., arXiv:2204.06745)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import Sizes
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import (
    TensorSpec,
    column_parallel,
    embedding_spec,
    head_spec,
    linear_specs,
    norm_specs,
    row_parallel,
)

_LAYER = "gpt_neox.layers.{}."
_HEAD = "embed_out.weight"


def gpt_neox(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type gpt_neox.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    # The family has no such keys; transformers ignores them.
    config = ConfigReader(
        {key: value for key, value in values.items() if key not in ("head_dim", "num_key_value_heads")}
    )
    sizes = Sizes.read(config)
    norm = Norm("layer", config.number("layer_norm_eps"))
    rope = read_rope(config, sizes.head_width, partial=True)
    layer = DecoderLayer(
        Attention(sizes.n_heads, sizes.n_heads, sizes.head_width, rope=rope, fused="by_group"),
        FeedForward(check_activation(config.text("hidden_act"))),
        norm,
        _layer_specs(sizes, config.flag("attention_bias", True)),
        parallel=config.flag("use_parallel_residual", True),
    )
    outer = {
        "embedding": embedding_spec("gpt_neox.embed_in.weight", sizes.vocab_size, sizes.d_model),
        **norm_specs("gpt_neox.final_layer_norm", sizes.d_model, bias=True, key="final_norm"),
    }
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=(layer,) * sizes.n_layers,
        outer=outer if tied else outer | {"head": head_spec(_HEAD, sizes.vocab_size, sizes.d_model)},
        norm=norm,
        base="gpt_neox.",
        redundant=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
        tied_head=_HEAD if tied else None,
    )


def _layer_specs(sizes: Sizes, attention_bias: bool) -> dict[str, TensorSpec]:
    d, f = sizes.d_model, sizes.d_ff
    by_head, across_heads = column_parallel(sizes.n_heads), row_parallel(sizes.n_heads)
    attention, feed_forward = _LAYER + "attention.", _LAYER + "mlp."
    return {
        **norm_specs(_LAYER + "input_layernorm", d, bias=True, key="attention_norm"),
        **linear_specs(attention + "query_key_value", d, 3 * d, by_head, bias=attention_bias, key="query_key_value"),
        **linear_specs(attention + "dense", d, d, across_heads, bias=attention_bias, key="output"),
        **norm_specs(_LAYER + "post_attention_layernorm", d, bias=True, key="feed_forward_norm"),
        **linear_specs(feed_forward + "dense_h_to_4h", d, f, column_parallel(f), bias=True, key="up"),
        **linear_specs(feed_forward + "dense_4h_to_h", f, d, row_parallel(f), bias=True, key="down"),
    }
