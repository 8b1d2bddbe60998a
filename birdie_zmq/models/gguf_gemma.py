"""Keys of the configurations of Gemma 3n and Gemma 4 that follow from a GGUF file."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

from birdie_zmq.models.families.common import FULL, WINDOWED
from birdie_zmq.models.gguf_config import ConfigKeys, with_heads
from birdie_zmq.models.gguf_metadata import GgufMetadata
from birdie_zmq.models.gguf_rope import ROPE_FACTORS, layer_types

SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
"""The file's keys by the configuration's; the width of the feed-forward layers may be a list."""

_UNROTATED = 1e29
"""Above this, a divisor of a RoPE frequency means that the dimension is not rotated."""


def gemma3n(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Gemma 3n."""
    config = with_heads(file) | _shared(file)
    rope = {FULL: config["rope_parameters"], WINDOWED: _local_rope(file)}
    normal = NormalDist()
    return config | {
        "layer_types": layer_types(file, 5),
        "rope_parameters": rope,
        "intermediate_size": _for_layers(file, "feed_forward_length"),
        "altup_num_inputs": file.integer("altup.num_inputs"),
        "altup_active_idx": file.integer("altup.active_idx"),
        "laurel_rank": file.shape("blk.0.laurel_l.weight")[0],
        # The converter writes the quantiles of these shares.
        "activation_sparsity_pattern": [normal.cdf(scale) for scale in file.items("activation_sparsity_scale")],
        # Older files do not have it: llama.cpp knows the one value.
        "final_logit_softcapping": file.number("final_logit_softcapping", 30.0),
    }


def gemma4(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of Gemma 4's dense models."""
    types, groups = layer_types(file, 6), _for_layers(file, "attention.head_count_kv")
    full = types.index(FULL)
    windowed = types.index(WINDOWED) if WINDOWED in types else full
    widths = _for_layers(file, "feed_forward_length")
    shared = file.integer("attention.shared_kv_layers", 0)
    config: ConfigKeys = _shared(file) | {
        "layer_types": types,
        "head_dim": file.integer("attention.key_length_swa"),
        "global_head_dim": file.integer("attention.key_length"),
        "num_key_value_heads": groups[windowed],
        "num_global_key_value_heads": groups[full] if groups[full] != groups[windowed] else None,
        "attention_k_eq_v": f"blk.{full}.attn_v.weight" not in file.shapes,
        "intermediate_size": widths[0],
        "use_double_wide_mlp": widths[-1] == 2 * widths[0],
        "final_logit_softcapping": file.optional_number("final_logit_softcapping"),
        "rope_parameters": {FULL: _proportional_rope(file), WINDOWED: _local_rope(file)},
    }
    first = len(types) - shared
    expected = [
        widths[0] * (2 if config["use_double_wide_mlp"] and number >= first else 1) for number in range(len(types))
    ]
    if widths != expected:
        raise ValueError(f"{file.path}: gemma4.feed_forward_length={widths} is not supported")
    for key, width in (("rope.dimension_count", "global_head_dim"), ("rope.dimension_count_swa", "head_dim")):
        if (rotated := file.integer(key, config[width])) != config[width]:
            raise ValueError(f"{file.path}: gemma4.{key}={rotated} is not supported, only {config[width]}")
    return config


def _shared(file: GgufMetadata) -> ConfigKeys:
    """Return the keys of windows and of what layers share, which both have."""
    width = file.integer("embedding_length_per_layer_input", 0)
    return {
        "sliding_window": file.integer("attention.sliding_window"),
        "num_kv_shared_layers": file.integer("attention.shared_kv_layers", 0),
        "hidden_size_per_layer_input": width,
        "vocab_size_per_layer_input": file.shape("per_layer_token_embd.weight" if width else "token_embd.weight")[0],
    }


def _local_rope(file: GgufMetadata) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": file.number("rope.freq_base_swa", 10_000.0)}


def _proportional_rope(file: GgufMetadata) -> dict[str, Any]:
    """Return the rotary embedding of full attention, of whose frequencies a tensor says which are zero."""
    factors = [float(factor) for factor in file.read_tensor(ROPE_FACTORS)] if ROPE_FACTORS in file.shapes else []
    rotated = sum(factor == 1 for factor in factors)
    if not factors or factors != sorted(factors) or any(1 != factor < _UNROTATED for factor in factors):
        raise ValueError(f"{file.path}: {ROPE_FACTORS} must be ones and then numbers above {_UNROTATED}, not {factors}")
    return {
        "rope_type": "proportional",
        "rope_theta": file.number("rope.freq_base"),
        "partial_rotary_factor": rotated / len(factors),
    }


def _for_layers(file: GgufMetadata, key: str) -> list[int]:
    """Return an integer for each layer; the file may have one for all."""
    layers = file.integer("block_count")
    values = file.integers(key)
    if len(values) not in (1, layers):
        raise ValueError(f"{file.path}: {file.architecture}.{key} has {len(values)} values for {layers} layers")
    return values * layers if len(values) == 1 else values
