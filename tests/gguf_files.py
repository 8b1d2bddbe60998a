"""Write GGUF files of the Llama family in the format of llama.cpp's converter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from birdie_zmq.models.weight_map import Params

NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "query": "blk.{}.attn_q.weight",
    "key": "blk.{}.attn_k.weight",
    "value": "blk.{}.attn_v.weight",
    "output": "blk.{}.attn_output.weight",
    "query_norm": "blk.{}.attn_q_norm.weight",
    "key_norm": "blk.{}.attn_k_norm.weight",
    "feed_forward_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
}
"""llama.cpp's name of each tensor; a bias has the name of its weight."""


def to_llama_cpp_order(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows as llama.cpp's convert_hf_to_gguf.py does."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str | None) -> None:
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


def add_sizes(writer: gguf.GGUFWriter, model: Llama) -> None:
    assert model.rope is not None
    writer.add_context_length(model.max_length)
    writer.add_embedding_length(model.d_model)
    writer.add_block_count(model.n_layers)
    writer.add_feed_forward_length(model.d_ff)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.n_kv_heads)
    writer.add_layer_norm_rms_eps(model.norm_epsilon)
    writer.add_rope_freq_base(model.rope.theta)
    writer.add_key_length(model.head_width)


def add_weights(
    writer: gguf.GGUFWriter, model: Llama, params: Params, kind: gguf.GGMLQuantizationType, reorder: bool
) -> None:
    for _, (key, layer, spec) in model.weight_map().tensors():
        values = np.asarray(params.outer[key] if layer is None else params.layers[key][layer])
        values = np.ascontiguousarray(values.T if spec.transposed else values)
        projection = key.removesuffix("_bias")
        if reorder and projection in ("query", "key"):
            values = to_llama_cpp_order(values, model.n_heads if projection == "query" else model.n_kv_heads)
        name = NAMES[projection].format(layer)
        name = name.removesuffix("weight") + "bias" if key.endswith("_bias") else name
        if values.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)


def write_gguf(
    path: Path,
    model: Llama,
    params: Params,
    tokenizer: Tokenizer,
    *,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    sizes: Callable[[gguf.GGUFWriter, Llama], None] = add_sizes,
    pre: str | None = "gpt-2",
    more: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Write a complete file; the first token is BOS, the second EOS, and `more` may write further keys and tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    sizes(writer, model)
    while tokenizer.get_vocab_size() < model.vocab_size:
        tokenizer.add_tokens([f"<unused{tokenizer.get_vocab_size()}>"])
    add_tokenizer(writer, tokenizer, pre)
    add_weights(writer, model, params, kind, reorder=architecture == "llama")
    if more is not None:
        more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
