"""Checkpoints of MaxText, with scanned and unscanned layers.

`birdie_zmq.models.native.maxtext_blocks` has the decoder blocks and where their tensors are, and
`birdie_zmq.models.native.maxtext_computation` what they compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import complete_config
from birdie_zmq.models.native.arrays import ArrayTree, TreePath
from birdie_zmq.models.native.maxtext_blocks import OUTER, UNTRAINED_CORRECTION, UNTRAINED_KEY, Block, check_settings
from birdie_zmq.models.native.maxtext_computation import adapt, computation, has_rotated_pairs
from birdie_zmq.models.native.rules import LayerLocation, build_views, numbered_layers, subtree
from birdie_zmq.models.native.source import NativeModel
from birdie_zmq.models.native.views import ArrayView

_ROOTS: tuple[TreePath, ...] = (("params", "params"), ("params",), ("model",), ())
"""Where the parameters are in a training state, in a checkpoint of parameters only, and in an NNX state."""

_UNTRAINED: TreePath = ("nnx_aux", "model")
"""Where a training state of NNX has what gradients do not train: random generators, and corrections of routers."""

_CORRECTION: TreePath = ("gate", "bias")
"""How the path of the correction of a DeepSeek router ends."""

_LAYER = "model.layers.{}."


def parameters(tree: ArrayTree) -> ArrayTree | None:
    """Return the parameters in a saved tree; None if it is not one of MaxText."""
    for root in _ROOTS:
        found = subtree(tree, root)
        if ("token_embedder", "embedding") in found and any(path[0] == "decoder" for path in found):
            untrained = subtree(tree, _UNTRAINED)
            corrections = {path: array for path, array in untrained.items() if path[-2:] == _CORRECTION}
            return {**found, **{(*path, UNTRAINED_KEY): array for path, array in corrections.items()}}
    return None


def read(tree: ArrayTree, settings: Mapping[str, Any]) -> NativeModel:
    """Return the model in a tree of parameters.

    Args:
        tree: The parameters.
        settings: MaxText's configuration, as `birdie_zmq.models.native.maxtext_settings` reads it.

    Raises:
        ValueError: The configuration is for something that is not supported, or an array is missing.
    """
    block = check_settings(settings)
    locations = _locations(tree, block, settings)
    rules = block.layer_rules(_count_experts(tree, block), in_pairs=has_rotated_pairs(settings))
    if any(path[-1] == UNTRAINED_KEY for path in tree):
        rules |= UNTRAINED_CORRECTION
    views = build_views(tree, OUTER, rules, locations)
    tied = "lm_head.weight" not in views
    if tied != bool(settings.get("logits_via_embedding", tied)):
        raise ValueError(
            f"logits_via_embedding is {settings['logits_via_embedding']} in MaxText's configuration, and the checkpoint "
            f"has {'no' if tied else 'an'} array decoder/logits_dense/kernel"
        )
    vocab_size, width = views["model.embed_tokens.weight"].shape
    try:
        sizes = _latent_sizes(views, settings) if block.is_latent else _sizes(views, block)
    except KeyError as error:
        raise ValueError(
            f"the checkpoint of MaxText has no array for {error.args[0]}, which the block "
            f"{settings['decoder_block']} has"
        ) from error
    config = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": len(locations),
        "tie_word_embeddings": tied,
        **sizes,
        **computation(block, settings),
    }

    def change(architecture: Architecture) -> Architecture:
        return adapt(architecture, settings, width if tied else None)

    outside = tuple({path[:1] for path in tree if path[0] not in ("decoder", "token_embedder")})
    return NativeModel(complete_config(config), views, change, outside)


def _count_experts(tree: ArrayTree, block: Block) -> int:
    """Return the number of experts: the last axis of a router's kernel, stacked or not. 0 for a dense block."""
    if block.experts is None:
        return 0
    ending = (*block.experts.module.split("/"), "gate", "kernel")
    return next((array.shape[-1] for path, array in tree.items() if path[-len(ending) :] == ending), 0)


def _sizes(views: Mapping[str, ArrayView], block: Block) -> dict[str, Any]:
    """Return the keys of a Hugging Face configuration that are sizes of arrays.

    Raises:
        KeyError: An array is missing; the argument is the name of its tensor.
    """
    layer = _LAYER.format(0)
    heads, head_width = views[f"{layer}self_attn.q_proj.weight"].array.shape[-2:]
    keys = {
        "num_attention_heads": heads,
        "num_key_value_heads": views[f"{layer}self_attn.k_proj.weight"].array.shape[-2],
        "head_dim": head_width,
    }
    if block.experts is None:
        return keys | {"intermediate_size": views[f"{layer}mlp.gate_proj.weight"].shape[0]}
    gate = layer + block.experts.matrices[0].format(0)
    router = views[f"{layer}{block.experts.router}.weight"]
    return keys | {"intermediate_size": views[gate].shape[0], "num_local_experts": router.shape[0]}


def _latent_sizes(views: Mapping[str, ArrayView], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same for DeepSeek, whose first layers are dense."""
    first, dense = _LAYER.format(0), int(settings["first_num_dense_layers"])
    routed = _LAYER.format(dense)
    heads = views[f"{first}self_attn.kv_b_proj.weight"].array.shape[-2]
    width = views[f"{routed}mlp.experts.0.gate_proj.weight"].shape[0]
    shared = views[f"{routed}mlp.shared_experts.gate_proj.weight"].shape[0]
    queries = views.get(f"{first}self_attn.q_a_proj.weight")
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "kv_lora_rank": views[f"{first}self_attn.kv_a_layernorm.weight"].shape[0],
        "q_lora_rank": None if queries is None else queries.shape[0],
        "first_k_dense_replace": dense,
        "intermediate_size": views[f"{first}mlp.gate_proj.weight"].shape[0] if dense else width,
        "moe_intermediate_size": width,
        "n_shared_experts": shared // width,
        "n_routed_experts": views[f"{routed}mlp.gate.weight"].shape[0],
    }


def _locations(tree: ArrayTree, block: Block, settings: Mapping[str, Any]) -> list[LayerLocation]:
    """Return where the layers are: stacked, in a module each, or in a module for each period.

    Raises:
        ValueError: There is no layer, or a stack has another axis than the configuration says.
    """
    axis = int(settings["param_scan_axis"])
    if block.is_latent:
        return _latent_locations(tree, axis, int(settings["first_num_dense_layers"]))
    modules = numbered_layers(tree, ("decoder",), "layers_{}")
    kinds = ("_local", "_global") if settings["decoder_block"] == "gemma2" else ("",)
    if modules:
        return [replace(location, kind=kind) for location in modules for kind in kinds]
    if settings["decoder_block"] == "gemma3":
        # Five windowed layers and a full one repeat; MaxText scans over these periods.
        periods = numbered_layers(tree, ("decoder", "layers"), "layers_{}")
        rest = numbered_layers(tree, ("decoder", "layers_remainder"), "layers_{}")
        count = _stacked(tree, ("decoder", "layers", "layers_0"), axis)
        return [replace(location, axis=axis, index=index) for index in range(count) for location in periods] + rest
    stack = ("decoder", "layers")
    return [LayerLocation(stack, axis, index, kind) for index in range(_stacked(tree, stack, axis)) for kind in kinds]


def _latent_locations(tree: ArrayTree, axis: int, dense: int) -> list[LayerLocation]:
    """Return where the layers of DeepSeek are: the dense ones, then those with experts.

    Raises:
        ValueError: As in `_locations`, or the number of dense layers is not the one of the configuration.
    """
    found: list[LayerLocation] = []
    for name in ("dense_layers", "moe_layers"):
        layers = numbered_layers(tree, ("decoder",), name + "_{}")
        stack = ("decoder", name)
        if not layers and any(path[:2] == stack for path in tree):
            layers = [LayerLocation(stack, axis, index) for index in range(_stacked(tree, stack, axis))]
        found += layers
        if name == "dense_layers" and len(layers) != dense:
            raise ValueError(
                f"first_num_dense_layers is {dense} in MaxText's configuration, and the checkpoint has {len(layers)} "
                "dense layers"
            )
    return found


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
