"""Variants of mixtures of experts."""

from __future__ import annotations

from tests.parity.variants.base import SIZES, Variant

_SMALL = {**SIZES, "num_hidden_layers": 2}
_QWEN = {"num_experts": 8, "moe_intermediate_size": 48, "num_experts_per_tok": 2}
_GPT_OSS = {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 20}
_LATENT = {
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
}
_DEEPSEEK = {
    **SIZES,
    **_LATENT,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "num_nextn_predict_layers": 0,
}
_LLAMA4 = {
    **SIZES,
    "head_dim": 16,
    "intermediate_size_mlp": 80,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "no_rope_layer_interval": 2,
    "floor_scale": 16,
}

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
    "gpt_oss": Variant("GptOssConfig", _GPT_OSS, factors={"sinks": 8.0}),
    "gpt_oss_small_limit_plain_rope": Variant(
        "GptOssConfig",
        {
            **_GPT_OSS,
            "num_hidden_layers": 5,
            "num_local_experts": 6,
            "num_experts_per_tok": 4,
            "swiglu_limit": 0.5,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 150_000.0},
        },
        factors={"sinks": 8.0},
    ),
    "deepseek_v3": Variant("DeepseekV3Config", _DEEPSEEK),
    "deepseek_v3_yarn_biases": Variant(
        "DeepseekV3Config",
        {
            **_DEEPSEEK,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 2,
            "attention_bias": True,
            "norm_topk_prob": False,
            "rope_interleave": False,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "mscale": 0.7,
                "mscale_all_dim": 0.9,
            },
        },
    ),
    "llama4_text": Variant("Llama4TextConfig", {**_LLAMA4, "num_hidden_layers": 2}),
    "llama4_text_dense_layers": Variant(
        "Llama4TextConfig",
        {
            **_LLAMA4,
            "num_hidden_layers": 6,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 3,
            "use_qk_norm": False,
            "attention_bias": True,
            "attn_temperature_tuning": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama4": Variant(
        "Llama4Config",
        {
            "text_config": {**_LLAMA4, "num_hidden_layers": 2},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
        },
        auto_class="AutoModelForImageTextToText",
    ),
}
