"""Small configurations of every architecture of GGUF files.

All numbers are the same in float32, which the files hold.
"""

from typing import Any

LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
    "rms_norm_eps": 2.0**-17,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
SIZES = {key: value for key, value in LLAMA.items() if key not in ("model_type", "tie_word_embeddings")}
GEMMA = {**SIZES, "head_dim": 16, "tie_word_embeddings": True, "sliding_window": 8, "query_pre_attn_scalar": 16}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
NEOX = {**SIZES, "num_key_value_heads": None, "layer_norm_eps": 2.0**-17}
COHERE = {**SIZES, "layer_norm_eps": 2.0**-17, "logit_scale": 0.25, "tie_word_embeddings": True}
STABLELM = {
    **SIZES,
    "layer_norm_eps": 2.0**-17,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 280, "sliding_window": 8}
GEMMA_3N = {
    **SIZES,
    **_PER_LAYER,
    "num_hidden_layers": 7,
    "head_dim": 16,
    "final_logit_softcapping": 8.0,
    "intermediate_size": [64, 64, 64, 64, 64, 64, 96],
    "activation_sparsity_pattern": [0.5] * 3 + [0.0] * 4,
    "num_kv_shared_layers": 1,
    "laurel_rank": 8,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}
GEMMA_4 = {
    **SIZES,
    **_PER_LAYER,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "final_logit_softcapping": 8.0,
    "num_kv_shared_layers": 0,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}
FALCON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layer_norm_epsilon": 2.0**-17,
    "max_position_embeddings": 2048,
}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 1},
    "llama biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "llama yarn": {"model_type": "llama", "rope_parameters": YARN | {"beta_fast": 16.0, "attention_factor": 1.5}},
    "llama linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    },
    "qwen2": {"model_type": "qwen2", **SIZES},
    "qwen2 tied yarn": {"model_type": "qwen2", **SIZES, "tie_word_embeddings": True, "rope_parameters": YARN},
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 16},
    "qwen3 biases": {"model_type": "qwen3", **SIZES, "head_dim": 8, "attention_bias": True},
    "smollm3": {"model_type": "smollm3", **SIZES, "num_hidden_layers": 5, "tie_word_embeddings": True},
    "ministral3": {
        "model_type": "ministral3",
        **SIZES,
        "head_dim": 16,
        "sliding_window": None,
        "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.125},
    },
    "granite": {
        "model_type": "granite",
        **SIZES,
        "attention_multiplier": 0.375,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.25,
        "logits_scaling": 8.0,
    },
    "olmo2": {"model_type": "olmo2", **SIZES},
    "olmo3": {
        "model_type": "olmo3",
        **SIZES,
        "num_hidden_layers": 5,
        "sliding_window": 8,
        "rope_parameters": {
            "full_attention": YARN | {"attention_factor": 1.25},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    },
    "exaone4": {"model_type": "exaone4", **SIZES, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": 8},
    "exaone4 full": {"model_type": "exaone4", **SIZES, "sliding_window": None, "layer_types": ["full_attention"] * 2},
    "gemma": {"model_type": "gemma", **GEMMA, "num_key_value_heads": 1, "rope_parameters": None},
    "gemma2": {"model_type": "gemma2", **GEMMA, "num_hidden_layers": 3, "rope_parameters": None},
    "gemma2 27B": {  # llama.cpp knows the scale of the scores by the number of layers
        "model_type": "gemma2",
        **GEMMA,
        "num_hidden_layers": 46,
        "query_pre_attn_scalar": 8,
        "rope_parameters": None,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **GEMMA,
        "num_hidden_layers": 7,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    },
    "gemma3n": {"model_type": "gemma3n_text", **GEMMA_3N},
    "gemma4": {"model_type": "gemma4_text", **GEMMA_4, "num_kv_shared_layers": 3, "use_double_wide_mlp": True},
    "gemma4 31B": {
        "model_type": "gemma4_text",
        **GEMMA_4,
        "num_key_value_heads": 4,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
    },
    "phi2": {
        "model_type": "phi",
        **SIZES,
        "num_key_value_heads": 4,
        "intermediate_size": 128,
        "layer_norm_eps": 2.0**-17,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    },
    "phi3": {"model_type": "phi3", **SIZES, "sliding_window": 8, "pad_token_id": 0},
    "phi3 longrope": {
        "model_type": "phi3",
        **SIZES,
        "pad_token_id": 0,
        "max_position_embeddings": 16**4,  # such that the factor of the attention is 2
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.5],
            "long_factor": [2.0, 3.0],
            "original_max_position_embeddings": 16,
        },
    },
    "glm4": {
        "model_type": "glm4",
        **SIZES,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    },
    "command-r": {"model_type": "cohere", **COHERE},
    "command-r norms": {"model_type": "cohere", **COHERE, "use_qk_norm": True},
    "cohere2": {"model_type": "cohere2", **COHERE, "num_hidden_layers": 5, "sliding_window": 8},
    "starcoder2": {"model_type": "starcoder2", **SIZES, "norm_epsilon": 2.0**-17, "sliding_window": None},
    "stablelm": {"model_type": "stablelm", **STABLELM},
    "stablelm parallel": {
        "model_type": "stablelm",
        **STABLELM,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
    "falcon": {"model_type": "falcon", **FALCON},
    "falcon grouped": {"model_type": "falcon", **FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "bloom": {
        "model_type": "bloom",
        "vocab_size": 300,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "layer_norm_epsilon": 2.0**-17,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 300,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 48,
        "layer_norm_epsilon": 2.0**-17,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        **NEOX,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
    },
    "gpt_neox sequential": {
        "model_type": "gpt_neox",
        **NEOX,
        "attention_bias": False,
        "use_parallel_residual": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
    },
}
