"""Checkpoints of Gemma as google-deepmind's package ``gemma`` writes and releases them.

The tree is nested, or flat with ``/`` in its keys, or stacked by the position of a layer in the pattern of windowed and
full layers. Released checkpoints are flat. ``kauldron`` puts it under ``params``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.native.arrays import ArrayTree
from birdie_zmq.models.native.rules import LayerLocation, Rule, build_views, numbered_layers, subtree
from birdie_zmq.models.native.source import NativeModel

FAMILIES = ("gemma", "gemma2", "gemma3_text")

_OUTER = {
    "model.embed_tokens.weight": Rule("embedder/input_embedding", "v d -> v d"),
    "model.norm.weight": Rule("final_norm/scale", "d -> d"),
}
_LAYER = {
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
_NORMS_OF_GEMMA1 = {"post_attention_layernorm.weight": Rule("pre_ffw_norm/scale", "d -> d")}
_NORMS = {
    "post_attention_layernorm.weight": Rule("post_attention_norm/scale", "d -> d"),
    "pre_feedforward_layernorm.weight": Rule("pre_ffw_norm/scale", "d -> d"),
    "post_feedforward_layernorm.weight": Rule("post_ffw_norm/scale", "d -> d"),
}
_OUTSIDE = (
    "vision_encoder",
    "SigLiPFromPatches_0",
    "mm_input_projection",
    "mm_soft_embedding_norm",
    "mm_output_projection",
)


def parameters(tree: ArrayTree) -> ArrayTree | None:
    """Return the parameters in a saved tree, nested; None if it is not one of ``gemma``."""
    nested = {tuple("/".join(path).split("/")): array for path, array in tree.items()}
    for root in (("params",), ("transformer",), ()):
        found = subtree(nested, root)
        if ("embedder", "input_embedding") in found and any(
            path[0].startswith(("layer_", "stacked_layers")) for path in found
        ):
            vision = {path: array for path, array in nested.items() if path[0] in _OUTSIDE} if root else {}
            return {**found, **vision}
    return None


def read(tree: ArrayTree, config: Mapping[str, Any]) -> NativeModel:
    """Return the model in a tree of parameters, whose Hugging Face configuration is known.

    Raises:
        ValueError: An array is missing, or the axes of a feed-forward layer cannot be told apart.
    """
    locations = numbered_layers(tree, (), "layer_{}") or _stacked_layers(tree)
    if not locations:
        raise ValueError("the checkpoint of gemma has no layer_0")
    first = locations[0]
    fused = (*first.prefix, "attn", "qkv_einsum", "w") in tree
    norms = _NORMS_OF_GEMMA1 if config["model_type"] == "gemma" else _NORMS
    rules = {**_LAYER, **(_FUSED if fused else _GROUPED), **norms, **_feed_forward(tree, first)}
    views = build_views(tree, _OUTER, rules, locations)
    outside = tuple(
        path for path in tree if path[0] in _OUTSIDE or (path[0] == "embedder" and path[1] != "input_embedding")
    )
    return NativeModel(config, views, outside=outside)


def _stacked_layers(tree: ArrayTree) -> list[LayerLocation]:
    """Return the locations of layers that are stacked by their position in the pattern of kinds of attention."""
    kinds = numbered_layers(tree, ("stacked_layers",), "attention_type_{}")
    counts = [tree[*kind.prefix, "pre_attention_norm", "scale"].shape[0] for kind in kinds]
    locations = [
        (index * len(kinds) + number, LayerLocation(kind.prefix, 0, index))
        for number, (kind, count) in enumerate(zip(kinds, counts, strict=True))
        for index in range(count)
    ]
    return [location for _, location in sorted(locations, key=lambda each: each[0])]


def _feed_forward(tree: ArrayTree, location: LayerLocation) -> dict[str, Rule]:
    """Return the rules of the feed-forward layer; its fused kernel is transposed in most models, and not in all.

    Raises:
        ValueError: Its width is that of the residual stream, so the axes look alike.
    """
    ending = "" if (*location.prefix, "mlp", "linear") in tree else "/w"
    path = (*location.prefix, *f"mlp/linear{ending}".split("/"))
    if path not in tree:
        raise ValueError(f"the checkpoint of gemma has no array {'/'.join(path)}")
    inner, width = tree[path].shape[-2:]
    gating = tree[*location.prefix, *f"mlp/gating_einsum{ending}".split("/")].shape[-2:]
    if inner == width:
        raise ValueError(f"the axes of mlp/gating_einsum cannot be told apart: both are {inner} wide")
    axes = "f d" if gating == (inner, width) else "d f"
    return {
        "mlp.gate_proj.weight": Rule(f"mlp/gating_einsum{ending}", f"0 {axes} -> f d"),
        "mlp.up_proj.weight": Rule(f"mlp/gating_einsum{ending}", f"1 {axes} -> f d"),
        "mlp.down_proj.weight": Rule(f"mlp/linear{ending}", "f d -> d f"),
    }
