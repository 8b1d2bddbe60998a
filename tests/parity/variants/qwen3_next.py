"""Variants of Qwen 3 Next and Qwen 3.5."""

from __future__ import annotations

from typing import Any

from tests.parity.variants.base import SIZES, Variant

_DELTA = {
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 16,
    # A random query is nearly orthogonal to some keys. The norm of the output of a delta rule would divide that by itself, and
    # hf's own differences between steps of one token and a chunk are 1e-4 then.
    "rms_norm_eps": 1e-2,
}
_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
_OTHER_PATTERN = ["full_attention", "linear_attention", "full_attention", "linear_attention", "linear_attention"]
_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}
_ROPE = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}


def _with_vision(config: str, text: dict[str, Any]) -> Variant:
    values = {"text_config": text, "vision_config": _VISION, "tie_word_embeddings": False}
    return Variant(config, values, auto_class="AutoModelForImageTextToText")


VARIANTS = {
    "qwen3_next": Variant("Qwen3NextConfig", {**SIZES, **_DELTA, **_EXPERTS}),
    "qwen3_next_dense_layers_tied": Variant(
        "Qwen3NextConfig",
        {
            **SIZES,
            **_DELTA,
            **_EXPERTS,
            "num_hidden_layers": 5,
            "layer_types": _OTHER_PATTERN,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "norm_topk_prob": False,
            "attention_bias": True,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_conv_kernel_dim": 3,
            "rope_parameters": _ROPE,
            "tie_word_embeddings": True,
        },
        shard_bytes=200_000,
    ),
    "qwen3_5_text": Variant("Qwen3_5TextConfig", {**SIZES, **_DELTA}),
    "qwen3_5_text_biases_tied": Variant(
        "Qwen3_5TextConfig",
        {
            **SIZES,
            **_DELTA,
            "num_hidden_layers": 5,
            "layer_types": _OTHER_PATTERN,
            "attention_bias": True,
            "linear_num_value_heads": 6,
            "linear_conv_kernel_dim": 2,
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_5_moe_text": Variant("Qwen3_5MoeTextConfig", {**SIZES, **_DELTA, **_EXPERTS}),
    "qwen3_5_moe_text_other_pattern": Variant(
        "Qwen3_5MoeTextConfig",
        {
            **SIZES,
            **_DELTA,
            **_EXPERTS,
            "num_hidden_layers": 5,
            "layer_types": _OTHER_PATTERN,
            "num_experts_per_tok": 8,
            "rope_parameters": _ROPE,
        },
    ),
    "qwen3_5": _with_vision("Qwen3_5Config", {**SIZES, **_DELTA}),
    "qwen3_5_moe": _with_vision("Qwen3_5MoeConfig", {**SIZES, **_DELTA, **_EXPERTS}),
}
