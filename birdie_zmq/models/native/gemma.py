"""Checkpoints of Gemma as google-deepmind's package ``gemma`` writes and releases them.

The tree is nested, or flat with ``/`` in its keys, or stacked by the position of a layer in the pattern of windowed and
full layers. Released checkpoints are flat. ``kauldron`` puts it under ``params``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from birdie_zmq.models.native.arrays import ArrayTree
from birdie_zmq.models.native.gemma_attention import attention_rules
from birdie_zmq.models.native.rules import (
    LayerLocation,
    Rule,
    build_views,
    numbered_layers,
    subtree,
    vector_rules,
)
from birdie_zmq.models.native.source import NativeModel

FAMILIES = ("gemma", "gemma2", "gemma3_text")

_OUTER = {
    "model.embed_tokens.weight": Rule("embedder/input_embedding", "v d -> v d"),
    "model.norm.weight": Rule("final_norm/scale", "d -> d"),
}
_NORMS_OF_GEMMA1 = vector_rules(
    "scale", {"input_layernorm": "pre_attention_norm", "post_attention_layernorm": "pre_ffw_norm"}
)
_NORMS = vector_rules(
    "scale",
    {
        "input_layernorm": "pre_attention_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "pre_ffw_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
)
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
    norms = _NORMS_OF_GEMMA1 if config["model_type"] == "gemma" else _NORMS
    rules = {**attention_rules(tree, first), **norms, **_feed_forward(tree, first)}
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
