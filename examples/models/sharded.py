"""A model that divides its own weights among devices: a page for ``lm_eval --model_args model_tag=plain,api=…,mesh=…``.

The model of plain_functions.py. Where the run asks for a mesh, each weight with heads or an inner width is divided over
its axis ``model``; the engine deals out rows over its axis ``data``, and the compiler does the rest.
"""

import jax
from jax.sharding import NamedSharding, PartitionSpec
from plain_functions import head, initial, load_tokenizer, trunk

__all__ = ["load_model", "load_tokenizer"]

AXES = {"queries_keys_values": 3, "attended": 1, "up": 2, "down": 1}
"""Which axis of a weight is divided: that of the heads, and the inner width of the feed-forward layer."""


def divided(mesh, params):
    """The params, each device with its part of those in AXES and with all of the others."""

    def place(path, array):
        axis = AXES.get(path[-1].key)
        spec = [None] * array.ndim
        if axis is not None and array.shape[axis] % mesh.shape["model"] == 0:
            spec[axis] = "model"
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree_util.tree_map_with_path(place, params)


def logits(params, tokens):
    """Logits [b, t, v] of tokens int32[b, t]."""
    return head(params, trunk(params, tokens))


def load_model(model_tag, mesh=None, **keywords):
    """The model; `mesh` is there only where model_args say mesh=."""
    params = initial(seed=0)
    return logits, params if mesh is None else divided(mesh, params)
