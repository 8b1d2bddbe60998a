"""Read and write weights: a Hugging Face directory of one or many safetensors files, loaded directly onto the device.

All names and shapes are checked from the files' headers before the first weight is read. Then each tensor in turn goes
to the device, where it is transposed, converted to its dtype and inserted into the stacked layers. The host holds one
tensor at a time, in addition to the memory pages of the one file that is open. Over a mesh, each device's shard of a
tensor is read separately. Nothing is unpickled.
"""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from numpy.typing import NDArray
from safetensors.numpy import save

from birdie_zmq.engine.jax.sharding import sharded
from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import CONFIG_FILE
from birdie_zmq.models.families.llama import to_hugging_face
from birdie_zmq.models.lora import LoraAdapter
from birdie_zmq.models.sharding import TensorShardings, check_mesh, tensor_shardings
from birdie_zmq.models.tensor_names import MatchedTensors, abbreviate, match_tensors
from birdie_zmq.models.tensor_source import WEIGHTS_FILE, TensorReader, TensorSource
from birdie_zmq.models.weight_map import Params, TensorSpec, WeightMap

STORED_DTYPES = ("float16", "float32")
"""The dtypes that `save_checkpoint` writes."""

logger = logging.getLogger(__name__)


def load_params(
    weight_map: WeightMap,
    source: TensorSource,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    adapter: LoraAdapter | None = None,
) -> Params:
    """Load weights onto the default device, or sharded over a mesh.

    A head that differs from the embedding of a tied model is ignored with a warning, as lm_eval's hf ignores it. So are
    tensors outside of the decoder.

    Args:
        weight_map: The tensors that the model needs.
        source: The checkpoint that holds them.
        dtype: Floating dtype of all arrays in memory, whatever it is on disk.
        mesh: Devices over which the weights are sharded; each receives only its shard.
        adapter: A LoRA adapter, which is merged into the weights while they are read.

    Raises:
        UsageError: The mesh divides none of this model's weights.
        ValueError: The checkpoint lacks a tensor, has one in the decoder that the model does not use, or has one of
            another shape or of a quantised type, or the adapter does not fit the model. The message names the
            checkpoint or the adapter, and the tensor.
    """
    matched = match_tensors(weight_map, source.headers, source.location)
    updates = {} if adapter is None else adapter.match(weight_map, matched)
    if mesh is not None:
        check_mesh(weight_map, mesh)
    outer: dict[str, jax.Array] = {}
    layers = tuple(
        {
            key: jnp.zeros(
                (len(stack.layers), *spec.loaded_shape),
                spec.dtype or dtype,
                device=mesh and tensor_shardings(spec, mesh).stacked,
            )
            for key, spec in stack.specs.items()
        }
        for stack in weight_map.stacks
    )
    for name, read_tensor in source.read():
        slot = matched.slots.get(name)
        if slot is None:
            continue
        if name in updates:
            read_tensor = updates[name].merged(read_tensor)
        spec = slot.spec
        shardings = None if mesh is None else tensor_shardings(spec, mesh)
        # Waiting for each step keeps the host from reading ahead of the device and holding several tensors.
        array = _to_device(read_tensor, spec, shardings).block_until_ready()
        if slot.stack is None:
            in_memory = shardings and shardings.in_memory
            outer[slot.key] = _convert(
                array, jnp.dtype(spec.dtype or dtype), spec.transposed, in_memory
            ).block_until_ready()
        else:
            stack = layers[slot.stack]
            inserted = _insert(stack[slot.key], array, slot.indices, spec.transposed, shardings and shardings.stacked)
            stack[slot.key] = inserted.block_until_ready()
    _report(weight_map, source, matched)
    if adapter is not None:
        logger.warning("merged the adapter %s into %d tensors of %s", adapter, len(updates), source.location)
    return Params(outer, layers)


def _report(weight_map: WeightMap, source: TensorSource, matched: MatchedTensors) -> None:
    """Warn of stored tensors that are not loaded and hold values of their own."""
    embedding = matched.stored[weight_map.outer["embedding"].name]
    if matched.other_head is not None and not source.equal(matched.other_head, embedding):
        logger.warning(
            "%s: the tensor %s differs from %s, but the config ties the two (tie_word_embeddings), so the embedding is "
            "also the LM head, as in lm_eval's hf, and %s is ignored",
            source.location,
            matched.other_head,
            embedding,
            matched.other_head,
        )
    if matched.unused:
        logger.warning(
            "%s: ignoring %d tensors that are not part of the text decoder: %s",
            source.location,
            len(matched.unused),
            abbreviate(matched.unused),
        )


def _to_device(read_tensor: TensorReader, spec: TensorSpec, shardings: TensorShardings | None) -> jax.Array:
    """Put a tensor onto the device as it is in the file, or each shard of it onto its devices."""
    if shardings is None:
        array: jax.Array = jax.device_put(read_tensor())
        return array
    return jax.make_array_from_callback(spec.shape, shardings.in_file, read_tensor)


def save_checkpoint(directory: str | Path, model: Architecture, params: Params, dtype: DTypeLike = "float32") -> None:
    """Write a plain Llama to a directory, which is created if necessary; files of an earlier checkpoint are replaced.

    Args:
        directory: Where the two files are written.
        model: The sizes of `params`.
        params: The weights, in any floating dtype.
        dtype: float16 or float32, the dtype on disk.

    Raises:
        ValueError: The dtype is not one of these, the params do not fit the model, or a weight is not finite in
            `dtype`.
    """
    stored_dtype = np.dtype(dtype)
    if stored_dtype.name not in STORED_DTYPES:
        raise ValueError(
            f"dtype {stored_dtype.name} is not supported; checkpoints are stored as one of {STORED_DTYPES}"
        )
    tensors: dict[str, NDArray[Any]] = {}
    for name, values in stored_tensors(model.weight_map(), params).items():
        with np.errstate(over="ignore"):  # reported below with the tensor's name
            tensors[name] = values.astype(stored_dtype)
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"tensor {name} has values that are not finite in {stored_dtype.name}")
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    description = to_hugging_face(model) | {"dtype": stored_dtype.name}
    (path / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (path / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))  # transformers requires "pt"


def stored_tensors(weight_map: WeightMap, params: Params) -> dict[str, NDArray[np.float32]]:
    """Return weights as a checkpoint stores them: each tensor in float32, by its name.

    Raises:
        ValueError: The params do not fit the weight map.
    """
    names = [set(weight_map.outer), *(set(stack.specs) for stack in weight_map.stacks)]
    if [set(tree) for tree in (params.outer, *params.layers)] != names:
        found = sorted(name for tree in (params.outer, *params.layers) for name in tree)
        raise ValueError(f"the params {found} are not those of the model")
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, (key, stack, indices, spec) in weight_map.tensors():
        values = np.asarray(params.outer[key] if stack is None else params.layers[stack][key][indices], np.float32)
        if values.shape != spec.member_shape:
            raise ValueError(f"tensor {name} has the shape {values.shape}, not {spec.member_shape}")
        tensors[name] = np.ascontiguousarray(values.T if spec.transposed else values)
    return tensors


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _convert(array: jax.Array, dtype: Any, transposed: bool, sharding: NamedSharding | None) -> jax.Array:
    """Convert a tensor from its form in the file to its form in memory."""
    return _with_sharding(jnp.asarray(array.T if transposed else array, dtype), sharding)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def _insert(
    stack: jax.Array, array: jax.Array, indices: tuple[int, ...], transposed: bool, sharding: NamedSharding | None
) -> jax.Array:
    """Replace the part of a stack [l, ...] at indices of its leading axes; the memory of the stack is donated."""
    converted = _convert(array, stack.dtype, transposed, None)
    start = (*indices, *(0 for _ in converted.shape))
    updated = jax.lax.dynamic_update_slice(stack, jnp.expand_dims(converted, range(len(indices))), start)
    return _with_sharding(updated, sharding)


def _with_sharding(array: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Constrain the sharding of an array inside a compiled function, if one is given."""
    return array if sharding is None else sharded(array, sharding)
