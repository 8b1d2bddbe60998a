"""Write GGUF files as llama.cpp's converter writes them: its keys, its names, and its changes of tensors.

Every function here and in `gguf_keys` goes from a Hugging Face checkpoint to the file, so none is shared with the reader.
"""

import json
import re
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
from tests.gguf_keys import NAMES, PARAMETERS, Values, Writer, falcon_groups, full_heads, full_rope, head_width

Array = NDArray[np.float32]

F32 = gguf.GGMLQuantizationType.F32


def write_checkpoint(
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


def write_gguf(path: Path, model: Architecture, params: Params, tokenizer: Tokenizer, **options: Any) -> Path:
    """Write a plain Llama, as `write_checkpoint` does."""
    tensors = stored_tensors(model.weight_map(), params)
    return write_checkpoint(path, to_hugging_face(model), tensors, tokenizer, **options)


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
    count = values["n_head"] if "n_head" in values else values["num_attention_heads"]
    heads = weight.reshape(count, 3, -1, *weight.shape[1:])
    return np.concatenate([heads[:, part].reshape(-1, *weight.shape[1:]) for part in range(3)])


def split_groups(name: str, weight: Array, values: Values) -> Array:
    """Do the same where several query heads share a key and a value."""
    if "query_key_value" not in name:
        return weight
    groups, shared = falcon_groups(values), values["num_attention_heads"] // falcon_groups(values)
    heads = weight.reshape(groups, shared + 2, -1, *weight.shape[1:])
    parts = heads[:, :-2], heads[:, [-2]], heads[:, [-1]]
    return np.concatenate([part.reshape(-1, *weight.shape[1:]) for part in parts])


def stack_members(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Stack the norms that StableLM has for each head, and the projections of Gemma 3n, in their order."""
    stacked: dict[str, list[Array]] = {}
    for name, weight in sorted(tensors.items(), key=lambda item: [int(part) for part in re.findall(r"\d+", item[0])]):
        stacked.setdefault(
            re.sub(r"(\.norms|altup\w*_projections)\.\d+\.", lambda m: m[1].removeprefix(".norms") + ".", name), []
        ).append(weight)
    return {name: weights[0] if len(weights) == 1 else np.stack(weights) for name, weights in stacked.items()}


def keep(name: str, weight: Array, values: Values) -> Array:
    return weight


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
    "bloom": split_heads,
    "falcon": split_groups,
}
"""How the converter changes the tensors of an architecture."""


def convert(architecture: str, values: Values, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return the tensors of the file, by llama.cpp's names."""
    model_arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    layers = values["n_layer"] if "n_layer" in values else values["num_hidden_layers"]
    names = gguf.get_tensor_name_map(model_arch, layers)
    change = CHANGES.get(architecture, keep)
    converted: dict[str, Array] = {}
    for name, weight in stack_members(tensors).items():
        own = name.removeprefix("transformer.") if architecture == "bloom" else name
        stored = names.get_name(own, (".weight", ".bias"))
        assert stored is not None, name
        stored += "" if stored.endswith((".weight", ".bias")) else ".weight"
        converted[stored] = np.ascontiguousarray(change(name, weight, values))
    return converted | rope_factors(architecture, values)


def rope_factors(architecture: str, values: Values) -> dict[str, Array]:
    """Return the tensors into which the converter writes the scaling of Llama 3.1 and of Phi-3."""
    rope = full_rope(values)
    if architecture == "phi3" and "short_factor" in rope:
        return {f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], "f4") for kind in ("short", "long")}
    if architecture == "gemma4":
        width = full_heads(values)["head_dim"]
        rotated = int(width * rope["partial_rotary_factor"] / 2)
        unrotated = width // 2 - rotated
        return {"rope_freqs.weight": np.array([1.0] * rotated + [1e30] * unrotated, np.float32)}
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
