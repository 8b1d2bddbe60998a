"""Weights on disk: a Hugging Face directory of one or many safetensors files, read straight onto the device.

All names and shapes are checked from the files' headers before the first weight is read. Then one tensor after another
goes to the device, where it is turned, brought to its dtype and put into its place among the stacked layers. So the
host holds one tensor at a time, beside the pages of the one file that is open. Over a mesh each device is given its part
of a tensor, read by itself. Nothing is unpickled.
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

from birdie_zmq.engine.jax.sharding import lying
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.llama import Llama
from birdie_zmq.models.sharding import Shardings, check, shardings_of
from birdie_zmq.models.weight_map import Layout, Params, Place, TensorSpec

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STORED_DTYPES = ("float16", "float32")
"""What `save_checkpoint` writes."""

_FLOATS = ("F64", "F32", "F16", "BF16")


class Header(NamedTuple):
    """What is known of a stored tensor before it is read; `floating` is whether it holds plain numbers."""

    shape: tuple[int, ...]
    dtype: str
    floating: bool


Index = tuple[slice, ...]


class Take(Protocol):
    """Reads a tensor, or a part of it."""

    def __call__(self, index: Index | None = None) -> NDArray[Any]:
        """What lies at an index; all of it by default."""
        ...


class TensorSource(Protocol):
    """The tensors of a checkpoint, under Hugging Face's names."""

    where: str

    @property
    def headers(self) -> Mapping[str, Header]:
        """What is known of each tensor before it is read."""
        ...

    def read(self) -> Iterator[tuple[str, Take]]:
        """Each tensor, in the order in which they lie, to be taken before the next one."""
        ...


class SafetensorsDirectory:
    """A directory with ``model.safetensors``, or with the shards that ``model.safetensors.index.json`` names.

    Raises:
        FileNotFoundError: There are no such files.
        ValueError: One of them is damaged, or a tensor lies in two of them.
    """

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        self._shards = _shards(directory)
        self.headers: dict[str, Header] = {}
        for shard in self._shards:
            with _opened(shard) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name in self.headers:
                        raise ValueError(f"the tensor {name} lies in {shard} and in another file of {directory}")
                    part = file.get_slice(name)
                    dtype = part.get_dtype()
                    self.headers[name] = Header(tuple(part.get_shape()), dtype, dtype in _FLOATS)

    def read(self) -> Iterator[tuple[str, Take]]:
        """Each tensor, shard by shard; a part of one is read without the rest."""
        for shard in self._shards:
            with _opened(shard) as file:
                for name in file.keys():  # noqa: SIM118 - not a dict

                    def take(index: Index | None = None, name: str = name, file: Any = file) -> NDArray[Any]:
                        values: NDArray[Any] = file.get_tensor(name) if index is None else file.get_slice(name)[index]
                        return values

                    yield name, take


def load_params(layout: Layout, source: TensorSource, dtype: DTypeLike, mesh: Mesh | None = None) -> Params:
    """Read weights onto the default device, or divided over a mesh.

    Args:
        layout: The tensors that the model needs.
        source: Where they are.
        dtype: floating dtype of all arrays in memory, whatever it is on disk.
        mesh: Devices, of which each is given its part and nothing else.

    Raises:
        UsageError: The mesh divides nothing of this model.
        ValueError: The checkpoint lacks a tensor, has one that there is no place for, or has one of another shape or
            of a type that is no plain number. The message names the checkpoint and the tensor.
    """
    places = _matched(layout, source)
    if mesh is not None:
        check(layout, mesh)
    outer: dict[str, jax.Array] = {}
    layers = {
        key: jnp.zeros(
            (layout.n_layers, *stored.loaded_shape), dtype, device=mesh and shardings_of(stored, mesh).stacked
        )
        for key, stored in layout.layers.items()
    }
    for name, take in source.read():
        place = places.get(name)
        if place is None:
            continue
        stored = place.stored
        where = None if mesh is None else shardings_of(stored, mesh)
        # Waiting for each step keeps the host from running ahead with copies of what is not placed yet.
        array = _read(take, stored, where).block_until_ready()
        if place.layer is None:
            alone = where and where.alone
            outer[place.key] = _bring(array, jnp.dtype(dtype), stored.transposed, alone).block_until_ready()
        else:
            stack = _insert(layers[place.key], array, place.layer, stored.transposed, where and where.stacked)
            layers[place.key] = stack.block_until_ready()
    return Params(outer, layers)


def _read(take: Take, stored: TensorSpec, where: Shardings | None) -> jax.Array:
    """A tensor as it lies in the file, on the device, or each part of it on those that want it."""
    if where is None:
        array: jax.Array = jax.device_put(take())
        return array
    return jax.make_array_from_callback(stored.shape, where.read, take)


def save_checkpoint(directory: str | Path, model: Llama, params: Params, dtype: DTypeLike = "float32") -> None:
    """Write a plain Llama; the directory is made if need be, and files of an earlier one are replaced.

    Args:
        directory: where the two files go.
        model: the sizes of `params`.
        params: the weights, in any floating dtype.
        dtype: float16 or float32, the dtype on disk.

    Raises:
        ValueError: another dtype, params that do not fit the model, or a weight that is not finite in `dtype`.
    """
    stored_dtype = np.dtype(dtype)
    if stored_dtype.name not in STORED_DTYPES:
        raise ValueError(f"checkpoints are stored as one of {STORED_DTYPES}, not {stored_dtype.name}")
    layout = model.layout()
    if params.outer.keys() != layout.outer.keys() or params.layers.keys() != layout.layers.keys():
        raise ValueError(f"the params have {sorted((*params.outer, *params.layers))}, the model needs others")
    tensors: dict[str, NDArray[Any]] = {}
    for name, (key, layer, stored) in layout.places():
        values = np.asarray(params.outer[key] if layer is None else params.layers[key][layer], np.float32)
        if values.shape != stored.loaded_shape:
            raise ValueError(f"tensor {name} has the shape {values.shape}, not {stored.loaded_shape}")
        with np.errstate(over="ignore"):  # reported below, with the tensor's name
            tensors[name] = np.ascontiguousarray((values.T if stored.transposed else values).astype(stored_dtype))
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"tensor {name} has values that are not finite in {stored_dtype.name}")
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    description = model.to_hugging_face() | {"torch_dtype": stored_dtype.name}
    (path / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (path / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))  # "pt": transformers asks for it


def read_config(directory: Path) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no JSON object.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {CONFIG_FILE} in {directory}, so it is no checkpoint directory")
    return read_json_object(path)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _bring(array: jax.Array, dtype: Any, transposed: bool, where: NamedSharding | None) -> jax.Array:
    return _kept(jnp.asarray(array.T if transposed else array, dtype), where)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def _insert(stack: jax.Array, array: jax.Array, layer: int, transposed: bool, where: NamedSharding | None) -> jax.Array:
    """The stack [l, ...] with one layer replaced, in the memory of the old one."""
    brought = _bring(array, stack.dtype, transposed, None)
    updated: jax.Array = jax.lax.dynamic_update_index_in_dim(stack, brought, layer, 0)
    return _kept(updated, where)


def _kept(array: jax.Array, where: NamedSharding | None) -> jax.Array:
    """The array, lying where it should."""
    return array if where is None else lying(array, where)


def _matched(layout: Layout, source: TensorSource) -> dict[str, Place]:
    """Where each stored tensor goes; those that say nothing new are left out."""
    headers = source.headers
    # A file of the bare trunk, without its head, leaves the common prefix out.
    bare = not any(name.startswith(layout.base) for name in headers)
    places: dict[str, Place] = {}
    for full_name, place in layout.places():
        name = full_name.removeprefix(layout.base) if bare else full_name
        if name not in headers:
            raise ValueError(f"{source.where} lacks the tensor {full_name}")
        _check(name, headers[name], place.stored, source.where)
        places[name] = place
    for name in headers.keys() - places.keys():
        if not f".{name}".endswith(tuple(f".{end.lstrip('.')}" for end in layout.redundant)):
            raise ValueError(f"{source.where} has the tensor {name}, for which this architecture has no place")
    return places


def _check(name: str, header: Header, stored: TensorSpec, where: str) -> None:
    if not header.floating:
        raise ValueError(f"{where}: the tensor {name} is {header.dtype}; quantised weights are not read")
    if header.shape != stored.shape:
        raise ValueError(
            f"{where}: the tensor {name} has the shape {header.shape}, but the config asks for {stored.shape}"
        )


def _shards(directory: Path) -> list[Path]:
    index = directory / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{index} is no index of safetensors files: {error!r}") from error
        # An index that somebody made must not reach outside its own directory.
        outside = [name for name in names if Path(str(name)).name != name]
        if outside:
            raise ValueError(f"{index} names {outside[0]!r}, which is no file name")
        shards = [directory / name for name in names]
    else:
        shards = [directory / WEIGHTS_FILE]
    for shard in shards:
        if not shard.is_file():
            pickled = sorted(path.name for path in directory.glob("*.bin"))
            reason = (
                f"; {pickled[0]} is a pickle, which could run any code and is not read: save the model with "
                "transformers' save_pretrained, which writes safetensors"
                if pickled
                else ""
            )
            raise FileNotFoundError(f"there is no {shard.name} in {directory}{reason}")
    return shards


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
