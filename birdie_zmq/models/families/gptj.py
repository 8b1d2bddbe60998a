"""GPT-J: parallel sub-layers after one norm, interleaved rotary positions, a head with a bias (Wang and Komatsuzaki, 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import Rope
from birdie_zmq.models.weight_map import (
    TensorSpec,
    bias_spec,
    column_parallel,
    embedding_spec,
    head_spec,
    linear_specs,
    norm_specs,
    row_parallel,
)

_LAYER = "transformer.h.{}."


def gptj(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type gptj.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or does not fit the others.
    """
    config = ConfigReader(values)
    d, n_heads, n_layers = config.integer("n_embd"), config.integer("n_head"), config.integer("n_layer")
    vocab_size, rotated = config.integer("vocab_size"), config.integer("rotary_dim")
    require_positive(n_embd=d, n_head=n_heads, n_layer=n_layers)
    if d % n_heads:
        raise ValueError(f"n_embd {d} is not a multiple of n_head {n_heads}")
    if rotated > d // n_heads:
        raise ValueError(f"rotary_dim {rotated} is more than the {d // n_heads} dimensions of a head")
    norm = Norm("layer", config.number("layer_norm_epsilon"))
    layer = DecoderLayer(
        Attention(n_heads, n_heads, d // n_heads, rope=Rope(rotated, interleaved=True)),
        FeedForward(check_activation(config.text("activation_function"))),
        norm,
        _layer_specs(d, n_heads, config.integer("n_inner", 4 * d)),
        parallel=True,
    )
    head = head_spec(HEAD, vocab_size, d)
    outer = {
        "embedding": embedding_spec("transformer.wte.weight", vocab_size, d),
        **norm_specs("transformer.ln_f", d, bias=True, key="final_norm"),
        "head_bias": bias_spec("lm_head.bias", vocab_size, head.shard),
    }
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=vocab_size,
        max_length=config.integer("n_positions"),
        layers=(layer,) * n_layers,
        outer=outer if tied else outer | {"head": head},
        norm=norm,
        base="transformer.",
        redundant=(".attn.bias", ".attn.masked_bias"),
        tied_head=HEAD if tied else None,
    )


def _layer_specs(d: int, n_heads: int, f: int) -> dict[str, TensorSpec]:
    by_head, attention, feed_forward = column_parallel(n_heads), _LAYER + "attn.", _LAYER + "mlp."
    return {
        **norm_specs(_LAYER + "ln_1", d, bias=True, key="attention_norm"),
        **linear_specs(attention + "q_proj", d, d, by_head, key="query"),
        **linear_specs(attention + "k_proj", d, d, by_head, key="key"),
        **linear_specs(attention + "v_proj", d, d, by_head, key="value"),
        **linear_specs(attention + "out_proj", d, d, row_parallel(n_heads), key="output"),
        **linear_specs(feed_forward + "fc_in", d, f, column_parallel(f), bias=True, key="up"),
        **linear_specs(feed_forward + "fc_out", f, d, row_parallel(f), bias=True, key="down"),
    }
