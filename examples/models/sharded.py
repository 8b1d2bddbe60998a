"""A model that shards its own weights over a mesh; run it with ``--model_args model_tag=plain,api=…,mesh=…``.

The model of plain_functions.py. With a mesh, each weight with heads or an inner width is sharded over the axis
``model``. The engine shards rows over the axis ``data``, and the compiler does the rest.
"""

import jax
from jax.sharding import NamedSharding, PartitionSpec
from plain_functions import backbone, head, initial, load_tokenizer

__all__ = ["load_model", "load_tokenizer"]

AXES = {"queries_keys_values": 3, "attended": 1, "up": 2, "down": 1}
"""The sharded axis of each weight: its heads, or the inner width of the feed-forward layer."""


def shard(mesh, params):
    """Shard the params in AXES over the mesh, and replicate all others."""

    def place(path, array):
        axis = AXES.get(path[-1].key)
        spec = [None] * array.ndim
        if axis is not None and array.shape[axis] % mesh.shape["model"] == 0:
            spec[axis] = "model"
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree_util.tree_map_with_path(place, params)


def logits(params, tokens):
    """Return logits [b, t, v] of tokens int32[b, t]."""
    return head(params, backbone(params, tokens))


def load_model(model_tag, mesh=None, **keywords):
    """Return the model; `mesh` is None unless model_args has mesh=."""
    params = initial(seed=0)
    return logits, params if mesh is None else shard(mesh, params)
