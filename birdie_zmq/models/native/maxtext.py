"""Checkpoints of MaxText, with scanned and unscanned layers, for the decoder blocks of Llama, Mistral, Gemma and Qwen.

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
from birdie_zmq.models.config import complete_config
from birdie_zmq.models.families.common import FULL, WINDOWED
from birdie_zmq.models.layers import Norm
from birdie_zmq.models.native.arrays import ArrayTree, TreePath
from birdie_zmq.models.native.rules import LayerLocation, Rule, build_views, numbered_layers, subtree
from birdie_zmq.models.native.source import NativeModel

_ROOTS: tuple[TreePath, ...] = (("params", "params"), ("params",), ("model",), ())
"""Where the parameters are in a training state, in a checkpoint of parameters only, and in an NNX state."""

_PATTERN_OF_GEMMA3 = 6
"""Gemma 3 repeats five windowed layers and a full one; MaxText scans over these periods."""

_GEMMA_EPSILON = 1e-6

_OUTER = {
    "model.embed_tokens.weight": Rule("token_embedder/embedding", "v d -> v d"),
    "model.norm.weight": Rule("decoder/decoder_norm/scale", "d -> d"),
    "lm_head.weight": Rule("decoder/logits_dense/kernel", "d v -> v d"),
}
_MATRICES = {
    "self_attn.v_proj.weight": Rule("self_attention{}/value/kernel", "d h k -> (h k) d"),
    "self_attn.o_proj.weight": Rule("self_attention{}/out/kernel", "h k d -> d (h k)"),
    "self_attn.q_proj.bias": Rule("self_attention{}/query/bias", "h k -> (h k)"),
    "self_attn.k_proj.bias": Rule("self_attention{}/key/bias", "h k -> (h k)"),
    "self_attn.v_proj.bias": Rule("self_attention{}/value/bias", "h k -> (h k)"),
    "self_attn.q_norm.weight": Rule("self_attention{}/query_norm/scale", "k -> k"),
    "self_attn.k_norm.weight": Rule("self_attention{}/key_norm/scale", "k -> k"),
    "mlp.gate_proj.weight": Rule("mlp{}/wi_0/kernel", "d f -> f d"),
    "mlp.up_proj.weight": Rule("mlp{}/wi_1/kernel", "d f -> f d"),
    "mlp.down_proj.weight": Rule("mlp{}/wo/kernel", "f d -> d f"),
}
_IN_HALVES = {
    "self_attn.q_proj.weight": Rule("self_attention{}/query/kernel", "d h k -> (h k) d"),
    "self_attn.k_proj.weight": Rule("self_attention{}/key/kernel", "d h k -> (h k) d"),
}
_IN_PAIRS = {
    "self_attn.q_proj.weight": Rule("self_attention{}/query/kernel", "d h (p i) -> (h i p) d"),
    "self_attn.k_proj.weight": Rule("self_attention{}/key/kernel", "d h (p i) -> (h i p) d"),
}
"""Where the two members of a rotated pair are neighbours, as in Meta's own weights of Llama."""

_LLAMA_NORMS = {
    "input_layernorm.weight": Rule("pre_self_attention_layer_norm/scale", "d -> d"),
    "post_attention_layernorm.weight": Rule("post_self_attention_layer_norm/scale", "d -> d"),
}
_GEMMA_NORMS = {
    "input_layernorm.weight": Rule("pre_self_attention_norm/scale", "d -> d"),
    "post_attention_layernorm.weight": Rule("pre_ffw_norm/scale", "d -> d"),
}
_GEMMA2_NORMS = {
    "input_layernorm.weight": Rule("pre_self_attention_norm{}/scale", "d -> d"),
    "post_attention_layernorm.weight": Rule("post_self_attention_norm{}/scale", "d -> d"),
    "pre_feedforward_layernorm.weight": Rule("pre_ffw_norm{}/scale", "d -> d"),
    "post_feedforward_layernorm.weight": Rule("post_ffw_norm{}/scale", "d -> d"),
}

_FAMILIES = {
    "llama2": ("llama", _LLAMA_NORMS),
    "mistral": ("llama", _LLAMA_NORMS),  # MaxText's block has no window
    "qwen2": ("qwen2", _LLAMA_NORMS),
    "qwen3": ("qwen3", _LLAMA_NORMS),
    "gemma": ("gemma", _GEMMA_NORMS),
    "gemma2": ("gemma2", _GEMMA2_NORMS),
    "gemma3": ("gemma3_text", _GEMMA2_NORMS),
}
"""The family of each decoder block, and the rules of its norms."""

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu_pytorch_tanh", "relu": "relu"}


def parameters(tree: ArrayTree) -> ArrayTree | None:
    """Return the parameters in a saved tree; None if it is not one of MaxText."""
    for root in _ROOTS:
        found = subtree(tree, root)
        if ("token_embedder", "embedding") in found and any(path[0] == "decoder" for path in found):
            return found
    return None


def read(tree: ArrayTree, settings: Mapping[str, Any]) -> NativeModel:
    """Return the model in a tree of parameters.

    Args:
        tree: The parameters.
        settings: MaxText's configuration, as `birdie_zmq.models.native.maxtext_settings` reads it.

    Raises:
        ValueError: The configuration is for something that is not supported, or an array is missing.
    """
    block = str(settings["decoder_block"])
    _check(block, settings)
    family, norms = _FAMILIES[block]
    in_pairs = _has_rotated_pairs(settings)
    locations = _locations(tree, block, settings)
    views = build_views(tree, _OUTER, {**_MATRICES, **(_IN_PAIRS if in_pairs else _IN_HALVES), **norms}, locations)
    tied = "lm_head.weight" not in views
    if tied != bool(settings.get("logits_via_embedding", tied)):
        raise ValueError(
            f"logits_via_embedding is {settings['logits_via_embedding']} in MaxText's configuration, and the checkpoint "
            f"has {'no' if tied else 'an'} array decoder/logits_dense/kernel"
        )
    query = "model.layers.0.self_attn.q_proj.weight"
    if query not in views or "model.layers.0.mlp.gate_proj.weight" not in views:
        raise ValueError(f"the checkpoint of MaxText lacks the matrices of layer 0 of the block {block}")
    heads, head_width = views[query].array.shape[-2:]
    kv_heads = views["model.layers.0.self_attn.k_proj.weight"].array.shape[-2]
    vocab_size, width = views["model.embed_tokens.weight"].shape
    config = {
        "model_type": family,
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": views["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": len(locations),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_width,
        "tie_word_embeddings": tied,
        **_computation(family, settings, in_pairs),
    }

    def adapt(architecture: Architecture) -> Architecture:
        return _adapt(architecture, settings, width if tied else None)

    outside = tuple({path[:1] for path in tree if path[0] not in ("decoder", "token_embedder")})
    return NativeModel(complete_config(config), views, adapt, outside)


def _check(block: str, settings: Mapping[str, Any]) -> None:
    """Check that MaxText's configuration is for a model that is supported.

    Raises:
        ValueError: It is not; the message names the setting.
    """
    if block not in _FAMILIES:
        raise ValueError(f"MaxText's decoder_block {block!r} is not supported, only {', '.join(_FAMILIES)}")
    supported: dict[str, tuple[Any, ...]] = {
        "num_experts": (1,),
        "rope_min_timescale": (1,),
        "partial_rotary_factor": (None, 1, 1.0),
        "rope_type": ("default", "llama3.1"),
        "attention_type": ("global",),
        "use_mrope": (None, False),
        "attention_sink": (None, False),
        "mlp_activations_limit": (None, -1, -1.0),
        "quantization": (None, ""),
    }
    for name, values in supported.items():
        if settings.get(name) not in values:
            raise ValueError(
                f"{name}={settings[name]!r} of MaxText's configuration is not supported, only {values[-1]!r}"
            )
    if block in ("llama2", "mistral") and settings.get("attn_logits_soft_cap"):
        raise ValueError(f"attn_logits_soft_cap of MaxText's configuration is not supported in the block {block}")


def _has_rotated_pairs(settings: Mapping[str, Any]) -> bool:
    """Return whether the rotated pairs of a head are neighbours: MaxText decides it by the model's name, too."""
    return str(settings.get("model_name", "")).startswith("llama3.1") or settings["rope_type"] == "llama3.1"


def _locations(tree: ArrayTree, block: str, settings: Mapping[str, Any]) -> list[LayerLocation]:
    """Return where the layers are: stacked, in a module each, or in a module for each period.

    Raises:
        ValueError: There is no layer, or a stack has another axis than the configuration says.
    """
    modules = numbered_layers(tree, ("decoder",), "layers_{}")
    kinds = ("_local", "_global") if block == "gemma2" else ("",)
    if modules:
        return [replace(location, kind=kind) for location in modules for kind in kinds]
    axis = int(settings["param_scan_axis"])
    if block == "gemma3":
        periods = numbered_layers(tree, ("decoder", "layers"), "layers_{}")
        rest = numbered_layers(tree, ("decoder", "layers_remainder"), "layers_{}")
        count = _stacked(tree, ("decoder", "layers", "layers_0"), axis)
        return [replace(location, axis=axis, index=index) for index in range(count) for location in periods] + rest
    count = _stacked(tree, ("decoder", "layers"), axis)
    return [LayerLocation(("decoder", "layers"), axis, index, kind) for index in range(count) for kind in kinds]


def _stacked(tree: ArrayTree, prefix: TreePath, axis: int) -> int:
    """Return the number of layers that are stacked in the arrays of a module.

    Raises:
        ValueError: There are none, or their norms are not stacked on the axis.
    """
    width = tree["token_embedder", "embedding"].shape[1]
    shapes = [
        array.shape
        for path, array in tree.items()
        if path[: len(prefix)] == prefix and path[-2:-1] and "norm" in path[-2]
    ]
    shape = next((shape for shape in shapes if width in shape), ())
    if len(shape) != 2 or shape[1 - axis] != width:
        raise ValueError(
            f"the layers of MaxText's checkpoint are not stacked on the axis {axis} (param_scan_axis): a norm of "
            f"{'/'.join(prefix)} has the shape {shape}, and the embedding is {width} wide"
        )
    return shape[axis]


def _computation(family: str, settings: Mapping[str, Any], in_pairs: bool) -> dict[str, Any]:
    """Return the keys of a Hugging Face configuration that are not sizes."""
    activation, *rest = settings.get("mlp_activations", ["silu", "linear"])
    if rest != ["linear"] or activation not in _ACTIVATIONS:
        raise ValueError(f"mlp_activations={settings['mlp_activations']!r} of MaxText's configuration is not supported")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(settings["rope_max_timescale"])}
    factor = float(settings["rope_linear_scaling_factor"])
    if in_pairs and settings["rope_use_scale"]:
        rope |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 8192}
    elif not in_pairs and factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    keys: dict[str, Any] = {"rms_norm_eps": float(settings["normalization_layer_epsilon"]), "rope_parameters": rope}
    if settings.get("max_target_length"):
        keys["max_position_embeddings"] = int(settings["max_target_length"])
    if not family.startswith("gemma"):
        return {**keys, "hidden_act": _ACTIVATIONS[activation]}
    keys |= {"hidden_act": _ACTIVATIONS[activation], "hidden_activation": _ACTIVATIONS[activation]}
    if family == "gemma":
        return keys
    keys |= {
        "sliding_window": int(settings["sliding_window_size"]),
        "attn_logit_softcapping": float(settings.get("attn_logits_soft_cap") or 0.0) or None,
        "final_logit_softcapping": float(settings.get("final_logits_soft_cap") or 0.0) or None,
    }
    if family == "gemma3_text":
        local = float(settings["local_rope_max_timescale"])
        local_rope = {"rope_type": "default", "rope_theta": local if local > 0 else rope["rope_theta"]}
        keys["rope_parameters"] = {FULL: rope, WINDOWED: local_rope}
    return keys


def _adapt(architecture: Architecture, settings: Mapping[str, Any], tied_width: int | None) -> Architecture:
    """Change the architecture of the family to what MaxText computes.

    Args:
        architecture: The architecture of the family.
        settings: MaxText's configuration.
        tied_width: The width of the embedding that is also the head; None if the head has a matrix of its own.
    """
    block = settings["decoder_block"]

    norm = Norm("rms", architecture.norm.epsilon)
    # The blocks of Gemma do not pass the epsilon of the configuration on to the norms of a layer.
    layer_norm = Norm("rms", _GEMMA_EPSILON) if str(block).startswith("gemma") else norm
    scale: float | None = 1.0
    if block in ("qwen2", "qwen3"):
        scale = None
    elif block == "gemma3":
        scale = _gemma3_scale(settings, architecture)
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
        logit_cap=float(settings.get("final_logits_soft_cap") or 0.0) or None if tied_width is not None else None,
    )


def _gemma3_scale(settings: Mapping[str, Any], architecture: Architecture) -> float:
    """Return the factor of Gemma 3's queries, which MaxText chooses by the model's name."""
    attention = architecture.layers[0].attention
    scaled = attention.head_width
    if settings.get("model_name") == "gemma3-27b":
        scaled = architecture.outer["embedding"].shape[1] // attention.heads
    return 1.0 / math.sqrt(scaled)
