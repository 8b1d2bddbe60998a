"""The Llama family: Llama 1 to 3, SmolLM, Mistral, Ministral, Qwen 2 and Qwen 3.

Pre-normalisation with RMSNorm, rotary positions, grouped-query attention and a gated feed-forward layer (Touvron et
al., 2023, arXiv:2302.13971; Shazeer, 2020, arXiv:2002.05202). Members differ in biases, in norms of queries and keys,
and in sliding-window layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes, read_windows
from birdie_zmq.models.layers import Norm, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import norm_specs


def llama(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type llama, mistral, ministral, qwen2 or qwen3.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    kind, sizes = config.text("model_type"), Sizes.read(config)
    norm = Norm("rms", config.number("rms_norm_eps"))
    attention_bias = config.flag("attention_bias", False)
    biased = ["query", "key", "value"] * (attention_bias or kind == "qwen2")
    biased += ["output"] * (attention_bias and kind in ("llama", "qwen3"))
    biased += ["gate", "up", "down"] * (kind == "llama" and config.flag("mlp_bias", False))
    specs = sizes.gated_specs(biased) | sizes.norm_specs(
        attention_norm="input_layernorm", feed_forward_norm="post_attention_layernorm"
    )
    if kind == "qwen3":
        specs |= norm_specs(LAYER + "self_attn.q_norm", sizes.head_width, key="query_norm")
        specs |= norm_specs(LAYER + "self_attn.k_norm", sizes.head_width, key="key_norm")
    rope, feed_forward = read_rope(config, sizes.head_width), FeedForward(check_activation(config.text("hidden_act")))
    heads = (sizes.n_heads, sizes.n_kv_heads, sizes.head_width)
    tied = config.flag("tie_word_embeddings", False)
    return Architecture(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(
            DecoderLayer(Attention(*heads, rope=rope, window=window, norm=norm), feed_forward, norm, specs)
            for window in _windows(config, kind, sizes.n_layers)
        ),
        outer=sizes.outer_specs(tied=tied),
        norm=norm,
        tied_head=HEAD if tied else None,
    )


def _windows(config: ConfigReader, kind: str, n_layers: int) -> tuple[int | None, ...]:
    """Return the attention window of each layer: Mistral limits all layers, Llama none, the others those of a type."""
    if kind == "llama":
        return (None,) * n_layers
    if kind == "mistral":
        return (config.optional_integer("sliding_window"),) * n_layers
    return read_windows(config, n_layers)


def plain_llama(
    *,
    vocab_size: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    d_ff: int,
    max_length: int,
    head_width: int | None = None,
    tied_head: bool = True,
    norm_epsilon: float = 1e-5,
    rope_theta: float = 10_000.0,
) -> Architecture:
    """Return a Llama of given sizes, without biases or scaling.

    Raises:
        ValueError: The sizes do not describe a decoder.
    """
    values = {
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "intermediate_size": d_ff,
        "max_position_embeddings": max_length,
        "head_dim": head_width,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "rms_norm_eps": norm_epsilon,
        "tie_word_embeddings": tied_head,
    }
    return llama(values)


def to_hugging_face(architecture: Architecture) -> dict[str, Any]:
    """Return the complete ``config.json`` of a plain Llama; `llama` reads it back.

    Raises:
        ValueError: The decoder has a feature that a plain Llama lacks.
    """
    layer, outer = architecture.layers[0], architecture.outer
    attention = layer.attention
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": layer.feed_forward.activation,
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": architecture.vocab_size,
        "hidden_size": outer["embedding"].shape[1],
        "num_hidden_layers": len(architecture.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "intermediate_size": layer.specs["down"].loaded_shape[0],
        "max_position_embeddings": architecture.max_length,
        "head_dim": attention.head_width,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rope.theta if attention.rope else 0.0},
        "rms_norm_eps": architecture.norm.epsilon,
        "tie_word_embeddings": architecture.tied_head is not None,
    }
    if attention.rope is None or llama(values) != architecture:
        raise ValueError("only a plain Llama can be written as a config.json")
    return values
