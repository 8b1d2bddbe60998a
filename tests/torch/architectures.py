"""Small configurations of many architectures of transformers, and models of them with random weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.parity.variants import VARIANTS, Variant
from tests.parity.variants.base import MAX_LENGTH, SIZES, VOCABULARY

_ATTENTION_AND_RECURRENCE = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

_OTHERS = {
    "mixtral": Variant("MixtralConfig", {**SIZES, "num_local_experts": 4, "sliding_window": None}),
    "mixtral_window": Variant("MixtralConfig", {**SIZES, "num_local_experts": 4, "sliding_window": 20}),
    "qwen2_moe": Variant("Qwen2MoeConfig", {**SIZES, **_EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": Variant("Qwen3MoeConfig", {**SIZES, **_EXPERTS, "head_dim": 16}),
    "olmoe": Variant("OlmoeConfig", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": Variant("GraniteMoeConfig", {**SIZES, "num_local_experts": 4, "logits_scaling": 0.5}),
    "phimoe": Variant("PhimoeConfig", {**SIZES, "num_local_experts": 4, "sliding_window": None}),
    "deepseek_v2": Variant("DeepseekV2Config", {**SIZES, **_LATENT, "topk_method": "greedy"}),
    "deepseek_v3": Variant("DeepseekV3Config", {**SIZES, **_LATENT}),
    "deepseek_v32": Variant("DeepseekV32Config", {**SIZES, **_LATENT, "index_topk": 8, "index_n_heads": 2}),
    "gpt_oss": Variant(
        "GptOssConfig",
        {**SIZES, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 20},
    ),
    "llama4_text": Variant(
        "Llama4TextConfig",
        {
            **SIZES,
            "head_dim": 16,
            "num_local_experts": 2,
            "attention_chunk_size": 20,
            "intermediate_size_mlp": 64,
            "attn_temperature_tuning": False,
        },
    ),
    "gpt_neo": Variant(
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 20,
            "max_position_embeddings": MAX_LENGTH,
        },
    ),
    "gpt_bigcode": Variant(
        "GPTBigCodeConfig",
        {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": MAX_LENGTH},
    ),
    "codegen": Variant(
        "CodeGenConfig",
        {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": MAX_LENGTH, "rotary_dim": 8},
    ),
    "mpt": Variant(
        "MptConfig", {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": MAX_LENGTH}
    ),
    "xglm": Variant(
        "XGLMConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "num_layers": 3,
            "attention_heads": 4,
            "ffn_dim": 96,
            "max_position_embeddings": MAX_LENGTH,
        },
    ),
    "nemotron": Variant("NemotronConfig", SIZES),
    "persimmon": Variant("PersimmonConfig", {**SIZES, "num_key_value_heads": 4}),
    "helium": Variant("HeliumConfig", {**SIZES, "head_dim": 16}),
    "ernie4_5": Variant("Ernie4_5Config", {**SIZES, "head_dim": 16}),
    "seed_oss": Variant("SeedOssConfig", {**SIZES, "head_dim": 16}),
    "diffllama": Variant("DiffLlamaConfig", SIZES),
    "biogpt": Variant("BioGptConfig", SIZES),
    "mamba": Variant(
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 48, "state_size": 8, "num_hidden_layers": 3, "conv_kernel": 4},
    ),
    "mamba2": Variant(
        "Mamba2Config",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "state_size": 8,
            "num_hidden_layers": 3,
            "num_heads": 6,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "rwkv": Variant(
        "RwkvConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 3, "context_length": MAX_LENGTH},
    ),
    "recurrent_gemma": Variant(
        "RecurrentGemmaConfig",
        {**SIZES, "lru_width": 64, "attention_window_size": 20, "block_types": ["recurrent", "recurrent", "attention"]},
    ),
    "falcon_h1": Variant(
        "FalconH1Config",
        {**SIZES, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8},
    ),
    "jamba": Variant(
        "JambaConfig",
        {
            **SIZES,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
        },
    ),
    "zamba2": Variant(
        "Zamba2Config",
        {
            **SIZES,
            "num_key_value_heads": 4,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "mamba_headdim": 16,
            "chunk_size": 8,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "use_mamba_kernels": False,
        },
    ),
    "bamba": Variant(
        "BambaConfig",
        {
            **SIZES,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "qwen3_next": Variant(
        "Qwen3NextConfig",
        {
            **SIZES,
            **_EXPERTS,
            "head_dim": 16,
            "layer_types": _ATTENTION_AND_RECURRENCE,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "lfm2": Variant(
        "Lfm2Config", {**SIZES, "layer_types": ["conv", "full_attention", "conv", "conv"], "block_multiple_of": 16}
    ),
}

ARCHITECTURES: dict[str, Variant] = {
    name: VARIANTS[name]
    for name in (
        *("llama", "llama_rope_dynamic", "llama_rope_longrope", "mistral", "mistral_window", "ministral3", "qwen2"),
        *("qwen2_tied_window_yarn", "qwen3", "gemma", "gemma2", "gemma3", "gemma3n_text", "gemma4_text", "gpt2"),
        *("gpt_neox", "gptj", "opt", "bloom", "falcon", "falcon_grouped", "falcon_alibi", "phi", "phi3", "stablelm"),
        *("starcoder2", "olmo2", "olmo3", "cohere", "cohere2", "exaone4", "glm4", "granite", "smollm3"),
    )
} | _OTHERS
"""Every architecture, by name; windows and chunks are shorter than the texts of the tests."""


def make_model(name: str) -> Any:
    """Make a model in evaluation mode whose random weights make every part matter."""
    variant = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, variant.config)(**variant.values)
    for token, number in (("bos", 1), ("eos", 2), ("pad", 0)):
        setattr(config, f"{token}_token_id", number)
    model = getattr(transformers, variant.auto_class).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if weight.ndim < 2:
                weight.add_(torch.randn_like(weight), alpha=0.2)
            elif not weight_name.endswith("A_log"):
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
            for ending, factor in variant.factors.items():
                weight.mul_(factor if weight_name.endswith(ending) else 1.0)
    return model.eval()
