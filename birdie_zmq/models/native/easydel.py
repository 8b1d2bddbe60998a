"""Checkpoints of EasyDeL in its own format: Llama, Mistral, Qwen 2 and 3, and Gemma 1.

A directory holds ``config.json``, which transformers reads, and an index of zarr arrays. EasyDeL's names are those of
Hugging Face, with matrices as kernels [in, out].

EasyDeL (0.3.0) rounds its tables of cos and sin to bfloat16, whatever the dtype of the model; here they are in float32. Its
windows count the tokens before a token, and so hold one token more than those of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.native.arrays import ArrayTree
from birdie_zmq.models.native.rules import Rule, build_views, numbered_layers, subtree
from birdie_zmq.models.native.source import NativeModel

FAMILIES = ("gemma", "llama", "ministral", "mistral", "qwen2", "qwen3")

_OUTER = {
    "model.embed_tokens.weight": Rule("model/embed_tokens/embedding", "v d -> v d"),
    "model.norm.weight": Rule("model/norm/kernel", "d -> d"),
    "lm_head.weight": Rule("lm_head/kernel", "d v -> v d"),
}
_PROJECTIONS = (*(f"self_attn.{name}_proj" for name in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "self_attn.q_norm",
    "self_attn.k_norm",
)
_LAYER = {
    **{f"{name}.weight": Rule(f"{name.replace('.', '/')}/kernel", "i o -> o i") for name in _PROJECTIONS},
    **{f"{name}.bias": Rule(f"{name.replace('.', '/')}/bias", "o -> o") for name in _PROJECTIONS},
    **{f"{name}.weight": Rule(f"{name.replace('.', '/')}/kernel", "d -> d") for name in _NORMS},
}


def parameters(tree: ArrayTree) -> ArrayTree | None:
    """Return the parameters in a saved tree; None if it is not a causal language model of EasyDeL."""
    found = subtree(tree, ("model",))
    return found if ("model", "embed_tokens", "embedding") in found else None


def read(tree: ArrayTree, config: Mapping[str, Any]) -> NativeModel:
    """Return the model in a tree of parameters, whose Hugging Face configuration is known."""
    views = build_views(tree, _OUTER, _LAYER, numbered_layers(tree, ("model", "layers"), "{}"))
    return NativeModel(config, views, _widen_windows)


def _widen_windows(architecture: Architecture) -> Architecture:
    layers = tuple(
        layer
        if layer.attention.window is None
        else replace(layer, attention=replace(layer.attention, window=layer.attention.window + 1))
        for layer in architecture.layers
    )
    return replace(architecture, layers=layers)
