"""Keys of Hugging Face's configurations that follow from a GGUF file, by family; the sizes are in `gguf_architectures`.

Some of them are not in the file: llama.cpp knows them from the architecture, or they follow from the tensors.
"""

from __future__ import annotations

from typing import Any

from birdie_zmq.models.families.common import FULL, WINDOWED
from birdie_zmq.models.gguf_metadata import GgufMetadata
from birdie_zmq.models.gguf_rope import layer_types, rope_parameters

ConfigKeys = dict[str, Any]


def _kv_heads(file: GgufMetadata) -> ConfigKeys:
    heads = file.integer("attention.head_count")
    return {"num_key_value_heads": file.integer("attention.head_count_kv", heads)}


def without_groups(file: GgufMetadata) -> ConfigKeys:
    """Check that a family without grouped-query attention has as many key/value heads as heads."""
    heads = file.integer("attention.head_count")
    if (found := file.integer("attention.head_count_kv", heads)) != heads:
        raise ValueError(f"{file.path}: {found} key/value heads for {heads} heads are not supported")
    return {}


def _quotient(file: GgufMetadata) -> int:
    """Return the width of a head in families where it follows from the others."""
    return file.integer("embedding_length") // max(file.integer("attention.head_count"), 1)


def _head_dim(file: GgufMetadata) -> int:
    return file.integer("attention.key_length", _quotient(file))


def with_heads(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of grouped-query attention with rotary positions."""
    head_dim = _head_dim(file)
    return {"head_dim": head_dim, "rope_parameters": rope_parameters(file, head_dim), **_kv_heads(file)}


def llama(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Llama and of Mistral without windows."""
    biases = {"attention_bias": "blk.0.attn_q.bias" in file.shapes, "mlp_bias": "blk.0.ffn_up.bias" in file.shapes}
    return with_heads(file) | biases


def qwen3(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Qwen 3."""
    return with_heads(file) | _biased(file)


def _biased(file: GgufMetadata) -> ConfigKeys:
    return {"attention_bias": "blk.0.attn_q.bias" in file.shapes}


def smollm3(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of SmolLM3."""
    # llama.cpp knows from the architecture that every fourth layer has no positions.
    return llama(file) | {"no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(file.integer("block_count"))]}


def mistral3(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Ministral 3, or of Mistral for a file without the growth of queries."""
    config = with_heads(file) | {"sliding_window": None}
    if "attention.temperature_scale" not in file:
        return config | {"model_type": "mistral"}
    rope, multiplier = config["rope_parameters"], file.number("rope.scaling.yarn_log_multiplier")
    length = file.integer("attention.temperature_length", 0)
    if rope["rope_type"] != "yarn" or multiplier != 1 or length not in (0, rope["original_max_position_embeddings"]):
        raise ValueError(
            f"{file.path}: mistral3.attention.temperature_scale is only supported with YaRN, "
            "rope.scaling.yarn_log_multiplier=1 and a temperature_length that is YaRN's original length"
        )
    rope |= {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": file.number("attention.temperature_scale")}
    return config


def granite(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Granite."""
    if not file.flag("rope.scaling.finetuned", True):
        raise ValueError(f"{file.path}: granite.rope.scaling.finetuned=False, for no positions, is not supported")
    config = llama(file)
    return config | {
        "attention_multiplier": file.number("attention.scale"),
        "embedding_multiplier": file.number("embedding_scale"),
        "residual_multiplier": file.number("residual_scale"),
        "logits_scaling": file.number("logit_scale"),
    }


def olmo2(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of OLMo 2, or of OLMo 3 for a file with a window."""
    config = with_heads(file) | _biased(file)
    window = file.integer("attention.sliding_window", 0)
    if not window:
        return config
    theta = file.number("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
    local = {"rope_type": "default", "rope_theta": theta}
    return config | {
        "model_type": "olmo3",
        "layer_types": layer_types(file, 4),
        "sliding_window": window,
        "rope_parameters": {FULL: config["rope_parameters"], WINDOWED: local},
    }


def exaone4(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of EXAONE 4."""
    window = file.integer("attention.sliding_window", 0)
    types = layer_types(file, 4 if window else 1)
    return with_heads(file) | {"layer_types": types, "sliding_window": window or None}


def phi3(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Phi-3."""
    rope = rope_parameters(file, _quotient(file), partial=True)
    original = file.integer("rope.scaling.original_context_length", 0)
    return _kv_heads(file) | {
        "rope_parameters": rope,
        "original_max_position_embeddings": original or file.integer("context_length"),
        "sliding_window": file.integer("attention.sliding_window", 0) or None,
    }


def with_partial_rope(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of attention that rotates a part of each head, whose width follows from the other sizes."""
    return _kv_heads(file) | {"rope_parameters": rope_parameters(file, _quotient(file), partial=True)}


def stablelm(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of StableLM."""
    return with_partial_rope(file) | {
        "use_qkv_bias": "blk.0.attn_q.bias" in file.shapes,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in file.shapes,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in file.shapes,
    }


def glm4(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of GLM-4-0414."""
    head_dim = _head_dim(file)
    rope = rope_parameters(file, head_dim, partial=True)
    return _kv_heads(file) | _biased(file) | {"head_dim": head_dim, "rope_parameters": rope}


def command_r(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Command R."""
    return with_heads(file) | {
        "logit_scale": file.number("logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in file.shapes,
    }


def cohere2(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Command R7B and Command A."""
    return with_heads(file) | {
        "logit_scale": file.number("logit_scale"),
        "layer_types": layer_types(file, 4),
        "sliding_window": file.integer("attention.sliding_window"),
    }


def starcoder2(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of StarCoder 2."""
    rope = rope_parameters(file, _quotient(file))
    # llama.cpp's converter leaves the window out, and transformers has none for a file without it.
    return _kv_heads(file) | {
        "rope_parameters": rope,
        "use_bias": "blk.0.attn_q.bias" in file.shapes,
        "sliding_window": None,
    }


def falcon(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Falcon."""
    heads, groups = file.integer("attention.head_count"), file.integer("attention.head_count_kv", 1)
    has_two_norms = "blk.0.attn_norm_2.weight" in file.shapes
    is_new = has_two_norms or 1 < groups < heads
    if is_new and not has_two_norms:
        file.number("rope.freq_base")  # Falcon 2's is not the default, and llama.cpp's converter leaves it out
    return {
        "new_decoder_architecture": is_new,
        "num_ln_in_parallel_attn": 2 if has_two_norms else 1,
        "num_kv_heads": groups,
        "multi_query": groups == 1,
        "bias": "blk.0.attn_qkv.bias" in file.shapes,
        "rope_parameters": rope_parameters(file, _quotient(file)),
    }


def bloom(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of BLOOM."""
    inner, width = file.integer("feed_forward_length"), file.integer("embedding_length")
    if inner != 4 * width:
        raise ValueError(f"{file.path}: bloom.feed_forward_length={inner} is not supported, only {4 * width}")
    return without_groups(file)


def gemma2(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Gemma 2."""
    # llama.cpp knows the one size whose scores are scaled by another width by its number of layers.
    config = with_heads(file) | _query_scale(file, largest=46)
    return config | {
        "layer_types": layer_types(file, 2),
        "sliding_window": file.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": file.optional_number("attn_logit_softcapping"),
        "final_logit_softcapping": file.optional_number("final_logit_softcapping"),
    }


def gemma3(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Gemma 3."""
    window = file.integer("attention.sliding_window", 0)
    config = with_heads(file) | _query_scale(file, largest=62)
    local = {"rope_type": "default", "rope_theta": file.number("rope.freq_base_swa", 10_000.0)}
    return config | {
        "layer_types": layer_types(file, 6 if window else 1),
        "sliding_window": window or None,
        "final_logit_softcapping": file.optional_number("final_logit_softcapping"),
        "rope_parameters": {FULL: config["rope_parameters"], WINDOWED: local},
    }


def _query_scale(file: GgufMetadata, largest: int) -> ConfigKeys:
    width = _quotient(file) if file.integer("block_count") == largest else _head_dim(file)
    return {"query_pre_attn_scalar": width}


def gpt_neox(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of GPT-NeoX."""
    return without_groups(file) | {
        "attention_bias": "blk.0.attn_qkv.bias" in file.shapes,
        "use_parallel_residual": file.flag("use_parallel_residual", True),
        "rope_parameters": rope_parameters(file, _quotient(file), partial=True),
    }
