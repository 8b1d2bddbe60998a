"""Variants of Mixtral, OLMoE, and Qwen with experts."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_SMALL = {**SIZES, "num_hidden_layers": 2}
_QWEN = {"num_experts": 8, "moe_intermediate_size": 48, "num_experts_per_tok": 2}

VARIANTS = {
    "mixtral": Variant("MixtralConfig", {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral_window_tied": Variant(
        "MixtralConfig",
        {
            **SIZES,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "head_dim": 24,
            "sliding_window": 20,
            "tie_word_embeddings": True,
        },
        shard_bytes=200_000,
    ),
    "olmoe": Variant("OlmoeConfig", {**_SMALL, "num_experts": 8, "num_experts_per_tok": 3}),
    "olmoe_biases_normalised": Variant(
        "OlmoeConfig",
        {**SIZES, "num_experts": 5, "num_experts_per_tok": 5, "attention_bias": True, "norm_topk_prob": True},
    ),
    "qwen2_moe": Variant("Qwen2MoeConfig", {**_SMALL, **_QWEN, "shared_expert_intermediate_size": 40}),
    "qwen2_moe_dense_layers_window": Variant(
        "Qwen2MoeConfig",
        {
            **SIZES,
            **_QWEN,
            "num_hidden_layers": 6,
            "shared_expert_intermediate_size": 40,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "norm_topk_prob": True,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 4,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_moe": Variant("Qwen3MoeConfig", {**_SMALL, **_QWEN, "head_dim": 32, "norm_topk_prob": True}),
    "qwen3_moe_dense_layers_biases": Variant(
        "Qwen3MoeConfig",
        {
            **SIZES,
            **_QWEN,
            "num_experts_per_tok": 8,
            "mlp_only_layers": [0, 2],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 16,
        },
    ),
}
