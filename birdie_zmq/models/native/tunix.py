"""Checkpoints of Tunix: NNX ``State`` trees of its Llama, Qwen 2, Qwen 3, and Gemma 1 to 3."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.native.arrays import ArrayTree
from birdie_zmq.models.native.rules import Rule, build_views, numbered_layers, subtree
from birdie_zmq.models.native.source import NativeModel

FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "qwen2", "qwen3")

_PARTS = ("embedder", "layers", "final_norm", "lm_head")
_EMBEDDING = {"model.embed_tokens.weight": Rule("embedder/input_embedding", "v d -> v d")}
_MLP = {
    "mlp.gate_proj.weight": Rule("mlp/gate_proj/kernel", "d f -> f d"),
    "mlp.up_proj.weight": Rule("mlp/up_proj/kernel", "d f -> f d"),
    "mlp.down_proj.weight": Rule("mlp/down_proj/kernel", "f d -> d f"),
}
_OUTER = {
    **_EMBEDDING,
    "model.norm.weight": Rule("final_norm/w", "d -> d"),
    "lm_head.weight": Rule("lm_head/w", "d v -> v d"),
}
_LAYER = {
    **_MLP,
    "self_attn.q_proj.weight": Rule("attn/q_proj/w", "d h k -> (h k) d"),
    "self_attn.k_proj.weight": Rule("attn/k_proj/w", "d h k -> (h k) d"),
    "self_attn.v_proj.weight": Rule("attn/v_proj/w", "d h k -> (h k) d"),
    "self_attn.o_proj.weight": Rule("attn/o_proj/w", "h k d -> d (h k)"),
    "self_attn.q_proj.bias": Rule("attn/q_bias", "q -> q"),
    "self_attn.k_proj.bias": Rule("attn/k_bias", "q -> q"),
    "self_attn.v_proj.bias": Rule("attn/v_bias", "q -> q"),
    "self_attn.q_norm.weight": Rule("attn/q_norm/w", "k -> k"),
    "self_attn.k_norm.weight": Rule("attn/k_norm/w", "k -> k"),
    "input_layernorm.weight": Rule("input_layernorm/w", "d -> d"),
    "post_attention_layernorm.weight": Rule("post_attention_layernorm/w", "d -> d"),
}
_GEMMA_OUTER = {**_EMBEDDING, "model.norm.weight": Rule("final_norm/scale", "d -> d")}
_GEMMA_LAYER = {
    **_MLP,
    "self_attn.o_proj.weight": Rule("attn/attn_vec_einsum/w", "h k d -> d (h k)"),
    "self_attn.q_norm.weight": Rule("attn/_query_norm/scale", "k -> k"),
    "self_attn.k_norm.weight": Rule("attn/_key_norm/scale", "k -> k"),
    "input_layernorm.weight": Rule("pre_attention_norm/scale", "d -> d"),
}
_FUSED = {
    "self_attn.q_proj.weight": Rule("attn/qkv_einsum/w", "0 h d k -> (h k) d"),
    "self_attn.k_proj.weight": Rule("attn/qkv_einsum/w", "1 h d k -> (h k) d"),
    "self_attn.v_proj.weight": Rule("attn/qkv_einsum/w", "2 h d k -> (h k) d"),
}
_GROUPED = {
    "self_attn.q_proj.weight": Rule("attn/q_einsum/w", "h d k -> (h k) d"),
    "self_attn.k_proj.weight": Rule("attn/kv_einsum/w", "0 h d k -> (h k) d"),
    "self_attn.v_proj.weight": Rule("attn/kv_einsum/w", "1 h d k -> (h k) d"),
}
_NORMS = {
    "gemma": {"post_attention_layernorm.weight": Rule("pre_ffw_norm/scale", "d -> d")},
    "gemma2": {
        "post_attention_layernorm.weight": Rule("post_attn_norm/scale", "d -> d"),
        "pre_feedforward_layernorm.weight": Rule("pre_ffw_norm/scale", "d -> d"),
        "post_feedforward_layernorm.weight": Rule("post_ffw_norm/scale", "d -> d"),
    },
    "gemma3_text": {
        "post_attention_layernorm.weight": Rule("post_attention_norm/scale", "d -> d"),
        "pre_feedforward_layernorm.weight": Rule("pre_ffw_norm/scale", "d -> d"),
        "post_feedforward_layernorm.weight": Rule("post_ffw_norm/scale", "d -> d"),
    },
}

_TUNIX_THETA = 1_000_000

logger = logging.getLogger(__name__)


def parameters(tree: ArrayTree) -> ArrayTree | None:
    """Return the parameters in a saved tree; None if it is not one of Tunix."""
    for root in (("model",), ("params",), ()):
        found = subtree(tree, root)
        if ("embedder", "input_embedding") in found and any(path[:2] == ("layers", "0") for path in found):
            return found
    return None


def read(tree: ArrayTree, config: Mapping[str, Any]) -> NativeModel:
    """Return the model in a tree of parameters, whose Hugging Face configuration is known."""
    family = str(config["model_type"])
    locations = numbered_layers(tree, ("layers",), "{}")
    outer, layer = _OUTER, _LAYER
    if family in _NORMS:
        fused = ("layers", "0", "attn", "qkv_einsum", "w") in tree
        outer, layer = _GEMMA_OUTER, {**_GEMMA_LAYER, **(_FUSED if fused else _GROUPED), **_NORMS[family]}
    if family not in _NORMS:
        _warn_of_rope(config)
    views = build_views(tree, outer, layer, locations)
    outside = tuple(
        path for path in tree if path[0] not in _PARTS or (path[0] == "embedder" and path[1] != "input_embedding")
    )
    return NativeModel(config, views, outside=outside)


def _warn_of_rope(config: Mapping[str, Any]) -> None:
    """Warn of other rotary positions than those with which Tunix trains a Llama or a Qwen, whatever its own settings say."""
    rope = config.get("rope_parameters") or {}
    found = (rope.get("rope_type", "default"), rope.get("rope_theta"))
    if found != ("default", _TUNIX_THETA):
        logger.warning(
            "the config has rope_type=%s and rope_theta=%s, and Tunix (0.1.7) trains Llama and Qwen with rope_type=default and "
            "rope_theta=%d, whatever its own settings say: the scores are those of the config; for those of Tunix's "
            "forward pass, change rope_parameters in it",
            *found,
            _TUNIX_THETA,
        )
