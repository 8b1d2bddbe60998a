"""Read and write weights: a Hugging Face directory of one or many safetensors files, loaded directly onto the device.

All names and shapes are checked from the files' headers before the first weight is read. Then each tensor in turn goes
to the device, where it is transposed, converted to its dtype and inserted into the stacked layers. The host holds one
tensor at a time, in addition to the memory pages of the one file that is open. Over a mesh, each device's shard of a
tensor is read separately. Nothing is unpickled.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from birdie_zmq.engine.jax.sharding import sharded
from birdie_zmq.models.config import CONFIG_FILE
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.sharding import TensorShardings, check_mesh, tensor_shardings
from birdie_zmq.models.weight_map import Params, ParamSlot, TensorSpec, WeightMap

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STORED_DTYPES = ("float16", "float32")
"""The dtypes that `save_checkpoint` writes."""

_FLOATS = ("F64", "F32", "F16", "BF16")


class TensorHeader(NamedTuple):
    """The header of a stored tensor, known before it is read; `floating` says whether its values are floating-point."""

    shape: tuple[int, ...]
    dtype: str
    floating: bool


Index = tuple[slice, ...]


class TensorReader(Protocol):
    """A function that reads a tensor, or a slice of it."""

    def __call__(self, index: Index | None = None) -> NDArray[Any]:
        """Read the slice at an index; by default the whole tensor."""
        ...


class TensorSource(Protocol):
    """The tensors of a checkpoint, under Hugging Face's names; `location` is its path, for error messages."""

    location: str

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """The header of each tensor, by name."""
        ...

    def read(self) -> Iterator[tuple[str, TensorReader]]:
        """Yield each tensor's name and its reader, in file order; call the reader before the next iteration."""
        ...


class SafetensorsDirectory:
    """A directory with ``model.safetensors``, or with the shards that ``model.safetensors.index.json`` names.

    Raises:
        FileNotFoundError: One of these files does not exist.
        ValueError: One of them is damaged, or a tensor is in two of them.
    """

    def __init__(self, directory: Path) -> None:
        self.location = str(directory)
        self._shard_files = _shard_files(directory)
        self.headers: dict[str, TensorHeader] = {}
        for shard in self._shard_files:
            with _open_file(shard) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name in self.headers:
                        raise ValueError(f"the tensor {name} is in {shard} and in another file of {directory}")
                    tensor = file.get_slice(name)
                    dtype = tensor.get_dtype()
                    self.headers[name] = TensorHeader(tuple(tensor.get_shape()), dtype, dtype in _FLOATS)

    def read(self) -> Iterator[tuple[str, TensorReader]]:
        """Yield each tensor, file by file; a slice of a tensor is read without the rest."""
        for shard in self._shard_files:
            with _open_file(shard) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict

                    def read_tensor(index: Index | None = None, name: str = name, file: Any = file) -> NDArray[Any]:
                        values: NDArray[Any] = file.get_tensor(name) if index is None else file.get_slice(name)[index]
                        return values

                    yield name, read_tensor


def load_params(weight_map: WeightMap, source: TensorSource, dtype: DTypeLike, mesh: Mesh | None = None) -> Params:
    """Load weights onto the default device, or sharded over a mesh.

    Args:
        weight_map: The tensors that the model needs.
        source: The checkpoint that holds them.
        dtype: Floating dtype of all arrays in memory, whatever it is on disk.
        mesh: Devices over which the weights are sharded; each receives only its shard.

    Raises:
        UsageError: The mesh divides none of this model's weights.
        ValueError: The checkpoint lacks a tensor, has one that the model does not use, or has one of another shape or
            of a quantised type. The message names the checkpoint and the tensor.
    """
    slots = _match_tensors(weight_map, source)
    if mesh is not None:
        check_mesh(weight_map, mesh)
    outer: dict[str, jax.Array] = {}
    layers = {
        key: jnp.zeros(
            (weight_map.n_layers, *spec.loaded_shape), dtype, device=mesh and tensor_shardings(spec, mesh).stacked
        )
        for key, spec in weight_map.layers.items()
    }
    for name, read_tensor in source.read():
        slot = slots.get(name)
        if slot is None:
            continue
        spec = slot.spec
        shardings = None if mesh is None else tensor_shardings(spec, mesh)
        # Waiting for each step keeps the host from reading ahead of the device and holding several tensors.
        array = _to_device(read_tensor, spec, shardings).block_until_ready()
        if slot.layer is None:
            in_memory = shardings and shardings.in_memory
            outer[slot.key] = _convert(array, jnp.dtype(dtype), spec.transposed, in_memory).block_until_ready()
        else:
            stack = _insert(layers[slot.key], array, slot.layer, spec.transposed, shardings and shardings.stacked)
            layers[slot.key] = stack.block_until_ready()
    return Params(outer, layers)


def _to_device(read_tensor: TensorReader, spec: TensorSpec, shardings: TensorShardings | None) -> jax.Array:
    """Put a tensor onto the device as it is in the file, or each shard of it onto its devices."""
    if shardings is None:
        array: jax.Array = jax.device_put(read_tensor())
        return array
    return jax.make_array_from_callback(spec.shape, shardings.in_file, read_tensor)


def save_checkpoint(directory: str | Path, model: Llama, params: Params, dtype: DTypeLike = "float32") -> None:
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
    weight_map = model.weight_map()
    if params.outer.keys() != weight_map.outer.keys() or params.layers.keys() != weight_map.layers.keys():
        raise ValueError(f"the params {sorted((*params.outer, *params.layers))} are not those of the model")
    tensors: dict[str, NDArray[Any]] = {}
    for name, (key, layer, spec) in weight_map.tensors():
        values = np.asarray(params.outer[key] if layer is None else params.layers[key][layer], np.float32)
        if values.shape != spec.loaded_shape:
            raise ValueError(f"tensor {name} has the shape {values.shape}, not {spec.loaded_shape}")
        with np.errstate(over="ignore"):  # reported below with the tensor's name
            tensors[name] = np.ascontiguousarray((values.T if spec.transposed else values).astype(stored_dtype))
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"tensor {name} has values that are not finite in {stored_dtype.name}")
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    description = model.to_hugging_face() | {"dtype": stored_dtype.name}
    (path / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (path / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))  # transformers requires "pt"


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _convert(array: jax.Array, dtype: Any, transposed: bool, sharding: NamedSharding | None) -> jax.Array:
    """Convert a tensor from its form in the file to its form in memory."""
    return _with_sharding(jnp.asarray(array.T if transposed else array, dtype), sharding)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def _insert(
    stack: jax.Array, array: jax.Array, layer: int, transposed: bool, sharding: NamedSharding | None
) -> jax.Array:
    """Replace one layer of a stack [l, ...], whose memory is donated."""
    converted = _convert(array, stack.dtype, transposed, None)
    updated: jax.Array = jax.lax.dynamic_update_index_in_dim(stack, converted, layer, 0)
    return _with_sharding(updated, sharding)


def _with_sharding(array: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Constrain the sharding of an array inside a compiled function, if one is given."""
    return array if sharding is None else sharded(array, sharding)


def _match_tensors(weight_map: WeightMap, source: TensorSource) -> dict[str, ParamSlot]:
    """Return the destination of each stored tensor that is not redundant.

    Raises:
        ValueError: As for `load_params`.
    """
    headers = source.headers
    # A file of the backbone without its head omits the common prefix.
    bare = not any(name.startswith(weight_map.base) for name in headers)
    slots: dict[str, ParamSlot] = {}
    for full_name, slot in weight_map.tensors():
        name = full_name.removeprefix(weight_map.base) if bare else full_name
        if name not in headers:
            raise ValueError(f"{source.location} lacks the tensor {full_name}")
        _check(name, headers[name], slot.spec, source.location)
        slots[name] = slot
    for name in headers.keys() - slots.keys():
        if not f".{name}".endswith(tuple(f".{end.lstrip('.')}" for end in weight_map.redundant)):
            raise ValueError(f"{source.location} has the tensor {name}, which this architecture does not use")
    return slots


def _check(name: str, header: TensorHeader, spec: TensorSpec, location: str) -> None:
    if not header.floating:
        raise ValueError(f"{location}: the tensor {name} is {header.dtype}; quantised weights are not supported")
    if header.shape != spec.shape:
        raise ValueError(
            f"{location}: the tensor {name} has the shape {header.shape}, but the config requires {spec.shape}"
        )


def _shard_files(directory: Path) -> list[Path]:
    index = directory / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is not an index of safetensors files: {error!r}") from error
        # An untrusted index must not name files outside its directory.
        outside = [name for name in names if Path(str(name)).name != name]
        if outside:
            raise ValueError(f"{index} names {outside[0]!r}, which is not a plain file name")
        shards = [directory / name for name in names]
    else:
        shards = [directory / WEIGHTS_FILE]
    for shard in shards:
        if not shard.is_file():
            pickled = sorted(path.name for path in directory.glob("*.bin"))
            reason = (
                f"; {pickled[0]} is a pickle, which can run arbitrary code and is not read: save the model with "
                "transformers' save_pretrained, which writes safetensors"
                if pickled
                else ""
            )
            raise FileNotFoundError(f"there is no {shard.name} in {directory}{reason}")
    return shards


def _open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
