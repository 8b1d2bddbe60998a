"""Checkpoints of Levanter in its own format, with stacked layers or a module for each: Llama, Mistral, Qwen, Gemma 1 and 3.

Levanter's names are those of Hugging Face, and its matrices have the outputs first. Its export to Hugging Face's format is
a directory of that format and needs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.native.arrays import ArrayTree
from birdie_zmq.models.native.rules import LayerLocation, Rule, build_views, numbered_layers, subtree
from birdie_zmq.models.native.source import NativeModel

FAMILIES = ("gemma", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")

_STACK = ("transformer", "layers", "stacked")
_BLOCKS = ("transformer", "layers", "blocks")
_OUTER = {
    "model.embed_tokens.weight": Rule("embeddings/token_embeddings/weight", "v d -> v d"),
    "model.norm.weight": Rule("transformer/norm/weight", "d -> d"),
    "lm_head.weight": Rule("lm_head/weight", "v d -> v d"),
}
_NORMS = ("input", "post_attention", "pre_feedforward", "post_feedforward")
_LAYER = {
    "self_attn.q_proj.weight": Rule("self_attn/q_proj/weight", "h g k d -> (h g k) d"),
    "self_attn.k_proj.weight": Rule("self_attn/k_proj/weight", "h k d -> (h k) d"),
    "self_attn.v_proj.weight": Rule("self_attn/v_proj/weight", "h k d -> (h k) d"),
    "self_attn.o_proj.weight": Rule("self_attn/o_proj/weight", "d h k -> d (h k)"),
    "self_attn.q_proj.bias": Rule("self_attn/q_proj/bias", "h g k -> (h g k)"),
    "self_attn.k_proj.bias": Rule("self_attn/k_proj/bias", "h k -> (h k)"),
    "self_attn.v_proj.bias": Rule("self_attn/v_proj/bias", "h k -> (h k)"),
    "self_attn.q_norm.weight": Rule("self_attn/q_norm/weight", "k -> k"),
    "self_attn.k_norm.weight": Rule("self_attn/k_norm/weight", "k -> k"),
    **{f"mlp.{name}_proj.weight": Rule(f"mlp/{name}_proj/weight", "o d -> o d") for name in ("gate", "up", "down")},
    **{f"{name}_layernorm.weight": Rule(f"{name}_layernorm/weight", "d -> d") for name in _NORMS},
}


def parameters(tree: ArrayTree) -> ArrayTree | None:
    """Return the parameters in a saved tree; None if it is not a language model of Levanter."""
    for root in (("model",), ()):
        found = subtree(tree, root)
        if ("embeddings", "token_embeddings", "weight") in found and any(path[:2] == _STACK[:2] for path in found):
            return found
    return None


def read(tree: ArrayTree, config: Mapping[str, Any]) -> NativeModel:
    """Return the model in a tree of parameters, whose Hugging Face configuration is known.

    Raises:
        ValueError: The configuration scales queries by another number than Levanter does.
    """
    scalar = config.get("query_pre_attn_scalar", config.get("head_dim"))
    if scalar != config.get("head_dim"):
        raise ValueError(
            f"query_pre_attn_scalar={scalar} is not supported: Levanter scales by head_dim, {config['head_dim']}"
        )
    locations = numbered_layers(tree, _BLOCKS, "{}")
    norm = (*_STACK, "input_layernorm", "weight")
    if not locations and norm in tree:
        locations = [LayerLocation(_STACK, 0, index) for index in range(tree[norm].shape[0])]
    return NativeModel(config, build_views(tree, _OUTER, _LAYER, locations))
