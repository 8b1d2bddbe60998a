"""What a model of MaxText computes: the keys of a Hugging Face configuration, and the changes of the architecture.

MaxText computes what the families compute with other weights. Queries are not scaled: where a block has no scale of its
own, 1 / sqrt(width of a head) is part of the initial weights. Norms of Gemma store the whole weight. The embedding of
Gemma is stored with its factor, and tied logits are divided by it. The architecture is changed accordingly and the
weights stay as they are, so the model computes what MaxText's own forward pass does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.families.common import FULL, WINDOWED
from birdie_zmq.models.layers import Norm
from birdie_zmq.models.native.maxtext_blocks import Block

_GEMMA_EPSILON = 1e-6
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu_pytorch_tanh", "relu": "relu"}


def has_rotated_pairs(settings: Mapping[str, Any]) -> bool:
    """Return whether the rotated pairs of a head are neighbours: MaxText decides it by the model's name, too."""
    return str(settings.get("model_name", "")).startswith("llama3.1") or settings["rope_type"] == "llama3.1"


def computation(block: Block, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a Hugging Face configuration that are not sizes of arrays.

    Raises:
        ValueError: The activation is not supported.
    """
    activation, *rest = settings.get("mlp_activations", ["silu", "linear"])
    if rest != ["linear"] or activation not in _ACTIVATIONS:
        raise ValueError(f"mlp_activations={settings['mlp_activations']!r} of MaxText's configuration is not supported")
    rope = _yarn(settings) if block.is_latent else _rope(settings)
    keys: dict[str, Any] = {
        "model_type": block.family,
        "hidden_act": _ACTIVATIONS[activation],
        "rms_norm_eps": float(settings["normalization_layer_epsilon"]),
        "rope_parameters": rope,
    }
    if settings.get("max_target_length"):
        keys["max_position_embeddings"] = int(settings["max_target_length"])
    if block.is_latent:
        return keys | _latent(settings)
    if block.family == "mixtral":
        return keys | {"num_experts_per_tok": int(settings["num_experts_per_tok"]), "sliding_window": None}
    if not block.family.startswith("gemma"):
        return keys
    keys["hidden_activation"] = keys["hidden_act"]
    return keys if block.family == "gemma" else keys | _gemma(block, settings, rope)


def _gemma(block: Block, settings: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "sliding_window": int(settings["sliding_window_size"]),
        "attn_logit_softcapping": _cap(settings, "attn_logits_soft_cap"),
        "final_logit_softcapping": _cap(settings, "final_logits_soft_cap"),
    }
    if block.family == "gemma3_text":
        local = float(settings["local_rope_max_timescale"])
        local_rope = {"rope_type": "default", "rope_theta": local if local > 0 else rope["rope_theta"]}
        keys["rope_parameters"] = {FULL: rope, WINDOWED: local_rope}
    return keys


def _latent(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of DeepSeek's attention and experts."""
    groups, kept = int(settings["n_routing_groups"]), int(settings["topk_routing_group"])
    return {
        "qk_nope_head_dim": int(settings["qk_nope_head_dim"]),
        "qk_rope_head_dim": int(settings["qk_rope_head_dim"]),
        "v_head_dim": int(settings["v_head_dim"]),
        "rope_interleave": bool(settings["rope_interleave"]),
        "max_position_embeddings": int(settings["max_position_embeddings"]),
        "num_experts_per_tok": int(settings["num_experts_per_tok"]),
        "n_group": 1 if groups == -1 else groups,
        "topk_group": 1 if groups == -1 else kept,
        "norm_topk_prob": True,
        "routed_scaling_factor": float(settings["routed_scaling_factor"]),
    }


def _rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(settings["rope_max_timescale"])}
    factor, in_pairs = float(settings["rope_linear_scaling_factor"]), has_rotated_pairs(settings)
    if in_pairs and settings["rope_use_scale"]:
        rope |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 8192}
    elif not in_pairs and factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    return rope


def _yarn(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of YaRN; MaxText scales scores only where texts may be longer than the original length."""
    original = int(settings["original_max_position_embeddings"])
    is_longer = int(settings["max_position_embeddings"]) > original
    return {
        "rope_type": "yarn",
        "rope_theta": float(settings["rope_max_timescale"]),
        "factor": float(settings["rope_factor"]),
        "original_max_position_embeddings": original,
        "beta_fast": float(settings["beta_fast"]),
        "beta_slow": float(settings["beta_slow"]),
        "truncate": bool(settings["rope_truncate"]),
        "attention_factor": 1.0,
        "mscale_all_dim": float(settings["mscale"]) if is_longer else 0.0,
    }


def adapt(architecture: Architecture, settings: Mapping[str, Any], tied_width: int | None) -> Architecture:
    """Change the architecture of the family to what MaxText computes.

    Args:
        architecture: The architecture of the family.
        settings: MaxText's configuration.
        tied_width: The width of the embedding that is also the head; None if the head has a matrix of its own.
    """
    norm = Norm("rms", architecture.norm.epsilon)
    # The blocks of Gemma do not pass the epsilon of the configuration on to the norms of a layer.
    is_gemma = str(settings["decoder_block"]).startswith("gemma")
    layer_norm = Norm("rms", _GEMMA_EPSILON) if is_gemma else norm
    scale = _query_scale(architecture, settings)
    layers = tuple(
        replace(
            layer,
            norm=layer_norm,
            attention=replace(layer.attention, scale=scale, norm=None if layer.attention.norm is None else norm),
        )
        for layer in architecture.layers
    )
    normalised = tied_width is not None and settings["normalize_embedding_logits"]
    return replace(
        architecture,
        layers=layers,
        norm=norm,
        embedding_scale=1.0,
        logit_scale=1.0 / math.sqrt(tied_width) if tied_width is not None and normalised else 1.0,
        logit_cap=_cap(settings, "final_logits_soft_cap") if tied_width is not None else None,
    )


def _query_scale(architecture: Architecture, settings: Mapping[str, Any]) -> float | None:
    """Return the factor of queries; None for that of the family."""
    match settings["decoder_block"]:
        case "qwen2" | "qwen3":
            return None
        case "deepseek":
            return architecture.layers[0].attention.scale
        case "gemma3":
            attention = architecture.layers[0].attention
            # MaxText chooses it by the model's name.
            is_27b = settings.get("model_name") == "gemma3-27b"
            width = architecture.outer["embedding"].shape[1] // attention.heads
            return 1.0 / math.sqrt(width if is_27b else attention.head_width)
    return 1.0


def _cap(settings: Mapping[str, Any], name: str) -> float | None:
    return float(settings.get(name) or 0.0) or None
