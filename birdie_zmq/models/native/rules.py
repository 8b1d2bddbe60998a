"""The mapping from a trainer's paths to Hugging Face's names, for the tensors outside of the layers and for one layer.

A trainer's file states it once for a layer; where each layer is, in a module of its own or in stacked arrays, is a
`LayerLocation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from birdie_zmq.models.families.common import LAYER
from birdie_zmq.models.native.arrays import ArrayTree, TreePath
from birdie_zmq.models.native.views import ArrayView, Pattern


@dataclass(frozen=True)
class Rule:
    """Where a tensor is.

    Attributes:
        path: The path of the array, separated by ``/``; below the location of its layer for a tensor of a layer. ``{}``
            stands for the name of the kind of layer, where a trainer keeps several kinds side by side.
        pattern: Its axes, as in `birdie_zmq.models.native.views`.
        offset: Added to all values.
        stack_axis: The axis along which layers are stacked in this array; None for that of the location.
    """

    path: str
    pattern: str
    offset: float = 0.0
    stack_axis: int | None = None


@dataclass(frozen=True)
class LayerLocation:
    """Where the arrays of a layer are.

    Attributes:
        prefix: The path of its module.
        axis: The axis of its arrays along which layers are stacked; None for a module of its own.
        index: The index of the layer on that axis.
        kind: The text that replaces ``{}`` in the paths.
    """

    prefix: TreePath
    axis: int | None = None
    index: int = 0
    kind: str = ""


def vector_rules(weight: str, paths: Mapping[str, str]) -> dict[str, Rule]:
    """Return the rules of vectors [d], such as norms.

    Args:
        weight: The name of the array in its module.
        paths: The path of each module, by Hugging Face's name of it.
    """
    return {f"{name}.weight": Rule(f"{path}/{weight}", "d -> d") for name, path in paths.items()}


def gated_rules(gate: str, up: str, down: str, module: str = "mlp") -> dict[str, Rule]:
    """Return the rules of a gated feed-forward layer of kernels [d, f] and [f, d].

    Args:
        gate: The path of the gate's kernel.
        up: The path of the other kernel [d, f].
        down: The path of the kernel [f, d].
        module: Hugging Face's name of the layer.
    """
    return {
        f"{module}.gate_proj.weight": Rule(gate, "d f -> f d"),
        f"{module}.up_proj.weight": Rule(up, "d f -> f d"),
        f"{module}.down_proj.weight": Rule(down, "f d -> d f"),
    }


def build_views(
    tree: ArrayTree, outer: Mapping[str, Rule], layer: Mapping[str, Rule], locations: Sequence[LayerLocation]
) -> dict[str, ArrayView]:
    """Return the tensors of a checkpoint, by Hugging Face's names; a rule without a stored array gives none.

    Args:
        tree: The stored arrays.
        outer: The rules of tensors outside of the layers, by name.
        layer: The rules of the tensors of a layer, by the name after ``model.layers.N.``.
        locations: Where each layer is, in order.

    Raises:
        ValueError: An array has another number of axes than its rule.
    """
    views: dict[str, ArrayView] = {}
    for name, rule in outer.items():
        path = tuple(rule.path.split("/"))
        if path in tree:
            views[name] = ArrayView(tree[path], Pattern.parse(rule.pattern), "/".join(path), rule.offset)
    for number, location in enumerate(locations):
        for name, rule in layer.items():
            path = (*location.prefix, *rule.path.format(location.kind).split("/"))
            if path not in tree:
                continue
            pattern = Pattern.parse(rule.pattern)
            if location.axis is not None:
                axis = location.axis if rule.stack_axis is None else rule.stack_axis
                pattern = pattern.at_layer(axis, location.index)
            views[LAYER.format(number) + name] = ArrayView(tree[path], pattern, "/".join(path), rule.offset)
    return views


def numbered_layers(tree: ArrayTree, prefix: TreePath, name: str) -> list[LayerLocation]:
    """Return the locations of layers in modules of their own.

    Args:
        tree: The stored arrays.
        prefix: The path of the module that holds them.
        name: The name of a layer's module, with ``{}`` for its number.
    """
    locations: list[LayerLocation] = []
    heads = {path[: len(prefix) + 1] for path in tree}
    while (*prefix, name.format(len(locations))) in heads:
        locations.append(LayerLocation((*prefix, name.format(len(locations)))))
    return locations


def subtree(tree: ArrayTree, prefix: TreePath) -> ArrayTree:
    """Return the arrays below a path, by the rest of their paths."""
    size = len(prefix)
    return {path[size:]: array for path, array in tree.items() if path[:size] == prefix}
