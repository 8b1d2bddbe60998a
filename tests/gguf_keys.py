"""The keys of GGUF files, as llama.cpp's converter writes them from a Hugging Face configuration."""

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import gguf

Values = Mapping[str, Any]
Writer = gguf.GGUFWriter


def full_rope(values: Values) -> Values:
    """Return the rotary embedding of the layers with full attention."""
    rope: dict[str, Any] = values.get("rope_parameters") or {}
    full: Values = rope.get("full_attention", rope)
    return full


def add_base(writer: Writer, values: Values) -> None:
    """Write what the converter writes for most architectures."""
    rope = full_rope(values)
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    if values.get("num_key_value_heads") is not None:
        writer.add_head_count_kv(values["num_key_value_heads"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        add_yarn(writer, rope)
    if rope.get("rope_type") == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    if "rope_theta" in rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if "sliding_attention" in values.get("rope_parameters", {}):
        writer.add_rope_freq_base_swa(values["rope_parameters"]["sliding_attention"]["rope_theta"])
    if "rms_norm_eps" in values:
        writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    for key in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if key in values:
            writer.add_layer_norm_eps(values[key])
    if values.get("head_dim") is not None:
        writer.add_key_length(values["head_dim"])
        writer.add_value_length(values["head_dim"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_yarn(writer: Writer, rope: Values) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope.get("attention_factor") is not None:
        writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
    if rope.get("beta_fast") is not None:
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if rope.get("beta_slow") is not None:
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def head_width(values: Values) -> int:
    """Return the width of a head."""
    return int(values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"])


def add_llama(writer: Writer, values: Values) -> None:
    writer.add_vocab_size(values["vocab_size"])
    writer.add_rope_dimension_count(head_width(values))


def add_mistral3(writer: Writer, values: Values) -> None:
    rope = values["rope_parameters"]
    if values["model_type"] == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def add_granite(writer: Writer, values: Values) -> None:
    writer.add_attention_scale(values["attention_multiplier"])
    writer.add_embedding_scale(values["embedding_multiplier"])
    writer.add_residual_scale(values["residual_multiplier"])
    writer.add_logit_scale(values["logits_scaling"])


def add_windows(writer: Writer, values: Values) -> None:
    """Write the pattern of OLMo 3 and EXAONE 4."""
    if values.get("sliding_window") is not None:
        writer.add_sliding_window(values["sliding_window"])
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in values["layer_types"]])


def add_gemma(writer: Writer, values: Values) -> None:
    """Write the keys of Gemma 1 and 2, which have no base of the rotary embedding."""
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    writer.add_key_length(values["head_dim"])
    writer.add_value_length(values["head_dim"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_gemma2(writer: Writer, values: Values) -> None:
    writer.add_attn_logit_softcapping(values["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(values["final_logit_softcapping"])
    writer.add_sliding_window(values["sliding_window"])


def add_gemma3(writer: Writer, values: Values) -> None:
    if values.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(values["final_logit_softcapping"])
    if "sliding_attention" in values["layer_types"]:
        writer.add_sliding_window(values["sliding_window"])


def add_gemma3n(writer: Writer, values: Values) -> None:
    writer.add_sliding_window(values["sliding_window"])
    if values.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(values["final_logit_softcapping"])
    writer.add_altup_active_idx(values["altup_active_idx"])
    writer.add_altup_num_inputs(values["altup_num_inputs"])
    writer.add_embedding_length_per_layer_input(values["hidden_size_per_layer_input"])
    writer.add_shared_kv_layers(values["num_kv_shared_layers"])
    normal = NormalDist()
    writer.add_activation_sparsity_scale(
        [normal.inv_cdf(share) if share > 0 else -math.inf for share in values["activation_sparsity_pattern"]]
    )
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in values["layer_types"]])


def full_heads(values: Values) -> dict[str, int]:
    """Return the sizes of the heads of Gemma 4's full attention, where transformers puts its old keys."""
    number = values["layer_types"].index("full_attention")
    return {int(key): dict(sizes) for key, sizes in values["per_layer_config"].items()}[number]


def add_gemma4(writer: Writer, values: Values) -> None:
    windows = [kind == "sliding_attention" for kind in values["layer_types"]]
    full = full_heads(values)
    writer.add_sliding_window(values["sliding_window"])
    if values.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(values["final_logit_softcapping"])
    shared = values["num_kv_shared_layers"]
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(values.get("hidden_size_per_layer_input") or 0)
    writer.add_sliding_window_pattern(windows)
    writer.add_key_length(full["head_dim"])
    writer.add_value_length(full["head_dim"])
    writer.add_key_length_swa(values["head_dim"])
    writer.add_value_length_swa(values["head_dim"])
    if values.get("use_double_wide_mlp"):
        first, inner = len(windows) - shared, values["intermediate_size"]
        writer.add_feed_forward_length([inner if layer < first else 2 * inner for layer in range(len(windows))])
    if "num_key_value_heads" in full:
        windowed = values["num_key_value_heads"]
        writer.add_head_count_kv([windowed if window else full["num_key_value_heads"] for window in windows])
    writer.add_rope_dimension_count(full["head_dim"])
    writer.add_rope_dimension_count_swa(values["head_dim"])


def add_phi2(writer: Writer, values: Values) -> None:
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(4 * values["hidden_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_attention_heads"])
    writer.add_layer_norm_eps(values["layer_norm_eps"])
    add_partial_rope(writer, values)


def add_partial_rope(writer: Writer, values: Values) -> None:
    share = full_rope(values).get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(share * head_width(values)))


def original_length(values: Values) -> int:
    """Return LongRoPE's original length, which is in one of two places."""
    lengths = (where.get("original_max_position_embeddings") for where in (full_rope(values), values))
    return next(int(length) for length in lengths if length is not None)


def add_phi3(writer: Writer, values: Values) -> None:
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(original_length(values))
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    add_partial_rope(writer, values)
    writer.add_rope_freq_base(full_rope(values)["rope_theta"])
    writer.add_sliding_window(values.get("sliding_window") or 0)
    if "short_factor" in full_rope(values):
        original = original_length(values)
        scale = values["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0)


def add_cohere(writer: Writer, values: Values) -> None:
    writer.add_logit_scale(values["logit_scale"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if values["model_type"] == "cohere2":
        writer.add_sliding_window(values["sliding_window"])
        writer.add_vocab_size(values["vocab_size"])
        writer.add_rope_dimension_count(head_width(values))


def add_stablelm(writer: Writer, values: Values) -> None:
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_feed_forward_length(values["intermediate_size"])
    add_partial_rope(writer, values)
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_parallel_residual(values["use_parallel_residual"])
    writer.add_layer_norm_eps(values["layer_norm_eps"])


def add_falcon(writer: Writer, values: Values) -> None:
    writer.add_context_length(2048)
    writer.add_tensor_data_layout("jploski")
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(4 * values["hidden_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_head_count(values["num_attention_heads"])
    writer.add_head_count_kv(falcon_groups(values))
    writer.add_layer_norm_eps(values["layer_norm_epsilon"])


def falcon_groups(values: Values) -> int:
    """Return the number of key/value heads."""
    return int(values["num_kv_heads"]) if values["new_decoder_architecture"] else 1


def add_bloom(writer: Writer, values: Values) -> None:
    writer.add_context_length(values.get("seq_length", values["hidden_size"]))
    writer.add_embedding_length(values["hidden_size"])
    writer.add_feed_forward_length(4 * values["hidden_size"])
    writer.add_block_count(values["n_layer"])
    writer.add_head_count(values["n_head"])
    writer.add_head_count_kv(values["n_head"])
    writer.add_layer_norm_eps(values["layer_norm_epsilon"])


def add_gpt2(writer: Writer, values: Values) -> None:
    writer.add_block_count(values["n_layer"])
    writer.add_context_length(values["n_positions"])
    writer.add_embedding_length(values["n_embd"])
    writer.add_feed_forward_length(4 * values["n_embd"])
    writer.add_head_count(values["n_head"])
    writer.add_layer_norm_eps(values["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def add_gpt_neox(writer: Writer, values: Values) -> None:
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_feed_forward_length(values["intermediate_size"])
    add_partial_rope(writer, values)
    writer.add_head_count(values["num_attention_heads"])
    writer.add_parallel_residual(values["use_parallel_residual"])
    writer.add_layer_norm_eps(values["layer_norm_eps"])


NAMES = {
    "mistral": "llama",
    "ministral3": "mistral3",
    "olmo3": "olmo2",
    "gemma3_text": "gemma3",
    "gemma3n_text": "gemma3n",
    "gemma4_text": "gemma4",
    "gpt_neox": "gptneox",
    "phi": "phi2",
    "cohere": "command-r",
}
"""llama.cpp's names of families that it names otherwise."""

PARAMETERS: dict[str, tuple[Callable[[Writer, Values], None], ...]] = {
    "llama": (add_base, add_llama),
    "qwen2": (add_base,),
    "qwen3": (add_base,),
    "smollm3": (add_base, add_llama),
    "mistral3": (add_base, add_llama, add_mistral3),
    "granite": (add_base, add_llama, add_granite),
    "olmo2": (add_base, add_windows),
    "exaone4": (add_base, add_windows),
    "gemma": (add_gemma,),
    "gemma2": (add_gemma, add_gemma2),
    "gemma3": (add_base, add_gemma3),
    "gemma3n": (add_base, add_gemma3n),
    "gemma4": (add_base, add_gemma4),
    "phi2": (add_phi2,),
    "phi3": (add_phi3,),
    "glm4": (add_base, add_partial_rope),
    "command-r": (add_base, add_cohere),
    "cohere2": (add_base, add_cohere),
    "starcoder2": (add_base,),
    "stablelm": (add_stablelm,),
    "falcon": (add_falcon,),
    "bloom": (add_bloom,),
    "gpt2": (add_gpt2,),
    "gptneox": (add_gpt_neox,),
}
"""What writes the keys of each architecture."""
