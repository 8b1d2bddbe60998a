"""Checkpoints of Tunix: NNX ``State`` trees of its Llama, Qwen 2, Qwen 3, and Gemma 1 to 3."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.native.arrays import ArrayTree
from birdie_zmq.models.native.gemma_attention import attention_rules
from birdie_zmq.models.native.rules import Rule, build_views, gated_rules, numbered_layers, subtree, vector_rules
from birdie_zmq.models.native.source import NativeModel

FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "qwen2", "qwen3")

_PARTS = ("embedder", "layers", "final_norm", "lm_head")
_EMBEDDING = {"model.embed_tokens.weight": Rule("embedder/input_embedding", "v d -> v d")}
_OUTER = {
    **_EMBEDDING,
    "model.norm.weight": Rule("final_norm/w", "d -> d"),
    "lm_head.weight": Rule("lm_head/w", "d v -> v d"),
}
_GEMMA_OUTER = {**_EMBEDDING, "model.norm.weight": Rule("final_norm/scale", "d -> d")}
_MLP = gated_rules("mlp/gate_proj/kernel", "mlp/up_proj/kernel", "mlp/down_proj/kernel")
_LAYER = {
    **_MLP,
    **{f"self_attn.{name}_proj.weight": Rule(f"attn/{name}_proj/w", "d h k -> (h k) d") for name in "qkv"},
    **{f"self_attn.{name}_proj.bias": Rule(f"attn/{name}_bias", "q -> q") for name in "qkv"},
    "self_attn.o_proj.weight": Rule("attn/o_proj/w", "h k d -> d (h k)"),
    **vector_rules(
        "w",
        {
            "self_attn.q_norm": "attn/q_norm",
            "self_attn.k_norm": "attn/k_norm",
            "input_layernorm": "input_layernorm",
            "post_attention_layernorm": "post_attention_layernorm",
        },
    ),
}
_NORMS = {
    "gemma": {"post_attention_layernorm": "pre_ffw_norm"},
    "gemma2": {
        "post_attention_layernorm": "post_attn_norm",
        "pre_feedforward_layernorm": "pre_ffw_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    "gemma3_text": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "pre_ffw_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}
"""The modules of the norms of Gemma but the first one, by family and by Hugging Face's names."""

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
        norms = vector_rules("scale", {"input_layernorm": "pre_attention_norm", **_NORMS[family]})
        outer, layer = _GEMMA_OUTER, {**_MLP, **attention_rules(tree, locations[0]), **norms}
    else:
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
