"""Write GGUF files as llama.cpp's converter writes them: its keys, its names, and its changes of tensors.

Every function here goes from a Hugging Face checkpoint to the file, so none is shared with the reader.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.families.llama import to_hugging_face
from birdie_zmq.models.weight_map import Params
from birdie_zmq.models.weights import stored_tensors

Values = Mapping[str, Any]
Array = NDArray[np.float32]
Writer = gguf.GGUFWriter

F32 = gguf.GGMLQuantizationType.F32


def write_gguf(
    path: Path,
    values: Values,
    tensors: Mapping[str, Array],
    tokenizer: Tokenizer,
    *,
    kind: gguf.GGMLQuantizationType = F32,
    pre: str | None = "gpt-2",
    omit: Collection[str] = (),
    more: Callable[[Writer], None] | None = None,
) -> Path:
    """Write a complete file, whose first token is BOS and whose second is EOS.

    Args:
        path: The file.
        values: The complete Hugging Face configuration.
        tensors: The weights, by Hugging Face's names.
        tokenizer: A byte-level BPE tokenizer.
        kind: The type of the matrices.
        pre: The name of its pre-tokenizer.
        omit: Keys that are left out.
        more: Writes further keys and tensors.
    """
    architecture = llama_cpp_name(values)
    writer = Writer(path, architecture)
    for add in PARAMETERS[architecture]:
        add(writer, values)
    for key in omit:
        del writer.kv_data[0][key]
    while tokenizer.get_vocab_size() < values["vocab_size"]:
        tokenizer.add_tokens([f"<unused{tokenizer.get_vocab_size()}>"])
    add_byte_level(writer, tokenizer, pre)
    for name, array in convert(architecture, values, tensors).items():
        if array.ndim == 2 and kind != F32:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    if more is not None:
        more(writer)
    close(writer)
    return path


def write_plain_llama(path: Path, model: Architecture, params: Params, tokenizer: Tokenizer, **options: Any) -> Path:
    """Write a plain Llama, as `write_gguf` does."""
    tensors = stored_tensors(model.weight_map(), params)
    return write_gguf(path, to_hugging_face(model), tensors, tokenizer, **options)


def close(writer: Writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_name(values: Values) -> str:
    """Return llama.cpp's name of a family."""
    kind = str(values["model_type"])
    return NAMES.get(kind, kind)


def add_byte_level(writer: Writer, tokenizer: Tokenizer, pre: str | None) -> None:
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    kinds = {"<|bos|>": gguf.TokenType.CONTROL, "<|eos|>": gguf.TokenType.CONTROL}
    kinds |= {"<|user|>": gguf.TokenType.USER_DEFINED}
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


# Keys


def full_rope(values: Values) -> Values:
    """Return the rotary embedding of the layers with full attention."""
    rope: Values = values.get("rope_parameters") or {}
    return rope.get("full_attention", rope)


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
    share = values["rope_parameters"].get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(share * head_width(values)))
    writer.add_head_count(values["num_attention_heads"])
    writer.add_parallel_residual(values["use_parallel_residual"])
    writer.add_layer_norm_eps(values["layer_norm_eps"])


NAMES = {"mistral": "llama", "ministral3": "mistral3", "olmo3": "olmo2", "gemma3_text": "gemma3", "gpt_neox": "gptneox"}
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
    "gpt2": (add_gpt2,),
    "gptneox": (add_gpt_neox,),
}
"""What writes the keys of each architecture."""


# Tensors


def to_llama_cpp_order(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows as the converter does for an architecture whose pairs llama.cpp rotates side by side."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def permute_pairs(name: str, weight: Array, values: Values) -> Array:
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        return to_llama_cpp_order(weight, values["num_attention_heads"])
    if name.endswith(("k_proj.weight", "k_proj.bias")):
        return to_llama_cpp_order(weight, values["num_key_value_heads"])
    return weight


def add_one_to_norms(name: str, weight: Array, values: Values) -> Array:
    return weight + np.float32(1) if name.endswith("norm.weight") else weight


def transpose_matrices(name: str, weight: Array, values: Values) -> Array:
    return weight.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else weight


def split_heads(name: str, weight: Array, values: Values) -> Array:
    """Store all queries, all keys and all values of a projection whose rows are ordered by head."""
    if "query_key_value" not in name:
        return weight
    heads = weight.reshape(values["num_attention_heads"], 3, -1, *weight.shape[1:])
    return np.concatenate([heads[:, part].reshape(-1, *weight.shape[1:]) for part in range(3)])


CHANGES: dict[str, Callable[[str, Array, Values], Array]] = {
    "llama": permute_pairs,
    "smollm3": permute_pairs,
    "mistral3": permute_pairs,
    "granite": permute_pairs,
    "gemma": add_one_to_norms,
    "gemma2": add_one_to_norms,
    "gemma3": add_one_to_norms,
    "gpt2": transpose_matrices,
    "gptneox": split_heads,
}
"""How the converter changes the tensors of an architecture."""


def convert(architecture: str, values: Values, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return the tensors of the file, by llama.cpp's names."""
    model_arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    layers = values["n_layer"] if "n_layer" in values else values["num_hidden_layers"]
    names = gguf.get_tensor_name_map(model_arch, layers)
    change = CHANGES.get(architecture, lambda name, weight, values: weight)
    converted: dict[str, Array] = {}
    for name, weight in tensors.items():
        stored = names.get_name(name, (".weight", ".bias"))
        assert stored is not None, name
        converted[stored] = np.ascontiguousarray(change(name, weight, values))
    return converted | rope_factors(architecture, values)


def rope_factors(architecture: str, values: Values) -> dict[str, Array]:
    """Return the tensor into which the converter writes the scaling of Llama 3.1."""
    rope = full_rope(values)
    if rope.get("rope_type") != "llama3":
        return {}
    width = head_width(values)
    frequencies = np.float32(rope["rope_theta"]) ** -(np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    periods = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    smooth = (periods - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(periods > high, 1.0, np.where(periods < low, factor, blended))
    return {"rope_freqs.weight": factors.astype(np.float32)}
