"""Checkpoints of EasyDeL in its own format: Llama and Qwen.

A directory holds ``config.json``, which transformers reads, and an index of zarr arrays. EasyDeL's names are those of
Hugging Face, with matrices as kernels [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.native.arrays import ArrayTree
from birdie_zmq.models.native.rules import Rule, build_views, numbered_layers, subtree
from birdie_zmq.models.native.source import NativeModel

FAMILIES = ("llama", "qwen2", "qwen3")

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
    return NativeModel(config, build_views(tree, _OUTER, _LAYER, numbered_layers(tree, ("model", "layers"), "{}")))
