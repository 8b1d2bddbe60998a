"""Variants of Llama, Mistral, Ministral, Qwen 2 and Qwen 3."""

from __future__ import annotations

from typing import Any

from tests.parity.variants.base import MAX_LENGTH, SIZES, Variant


def _llama(**values: Any) -> Variant:
    return Variant("LlamaConfig", {**SIZES, **values})


VARIANTS = {
    "llama": _llama(),
    "llama_tied_multi_query": _llama(tie_word_embeddings=True, num_key_value_heads=1),
    "llama_biases_head_dim": _llama(attention_bias=True, mlp_bias=True, head_dim=24),
    "llama_sharded": Variant("LlamaConfig", SIZES, shard_bytes=100_000),
    "llama_rope_llama3": _llama(
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    ),
    "llama_rope_linear": _llama(rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}),
    "llama_rope_old_keys": Variant(
        "LlamaConfig",
        {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
        rewrite={"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "llama_rope_dynamic": _llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}),
    "llama_rope_longrope": _llama(
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
            "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
            "factor": 4.0,
            "original_max_position_embeddings": MAX_LENGTH,
        }
    ),
    "mistral": Variant("MistralConfig", {**SIZES, "sliding_window": None}),
    "mistral_window": Variant("MistralConfig", {**SIZES, "sliding_window": 20, "head_dim": 32}),
    "ministral": Variant(
        "MinistralConfig",
        {
            **SIZES,
            "head_dim": 16,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "qwen2": Variant("Qwen2Config", SIZES),
    "qwen2_tied_window_yarn": Variant(
        "Qwen2Config",
        {
            **SIZES,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 2,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "qwen3": Variant("Qwen3Config", {**SIZES, "head_dim": 32}),
    "qwen3_biases_tied": Variant("Qwen3Config", {**SIZES, "attention_bias": True, "tie_word_embeddings": True}),
}
