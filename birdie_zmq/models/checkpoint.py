"""Decoder weights on disk, in the layout of a Hugging Face Llama model.

A checkpoint is a directory with ``config.json`` and ``model.safetensors``. Tensors have the names and the [out, in]
orientation of ``LlamaForCausalLM``, so other tools can read what is written here and the other way round. Sharded
checkpoints are not read. Nothing is unpickled.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from birdie_zmq.models.decoder import DecoderConfig, Layers, Params, param_shapes

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
STORED_DTYPES = ("float16", "float32")

_LAYER_TENSORS = {
    "attention_norm": "input_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "feed_forward_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_EMBEDDING = "model.embed_tokens.weight"
_FINAL_NORM = "model.norm.weight"
_HEAD = "lm_head.weight"

Tensors = dict[str, NDArray[Any]]


def load_decoder(directory: str | Path, dtype: DTypeLike = "float32") -> tuple[DecoderConfig, Params]:
    """Read a checkpoint.

    Args:
        directory: holds ``config.json`` and ``model.safetensors``.
        dtype: floating dtype of the params in memory, whatever it is on disk.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, describes a model that is not this decoder, or lacks a tensor, has one too many,
            or has one of another shape or of a type that is no float. The message names the file and the tensor.
    """
    config_path, weights_path = Path(directory) / CONFIG_FILE, Path(directory) / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: {directory} is not a checkpoint directory")
    config = _read_config(config_path)
    try:
        tensors: Tensors = load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is not a whole safetensors file: {error}") from error
    except KeyError as error:  # a stored type that NumPy has no name for
        raise ValueError(f"{weights_path} holds a tensor of the unsupported type {error}") from error
    _check(tensors, config, weights_path)

    layers = Layers(
        **{
            field: jnp.asarray(np.stack([tensors[f"model.layers.{i}.{name}"].T for i in range(config.n_layers)]), dtype)
            for field, name in _LAYER_TENSORS.items()
        }
    )
    head = None if config.tied_head else jnp.asarray(tensors[_HEAD].T, dtype)
    return config, Params(
        embedding=jnp.asarray(tensors[_EMBEDDING], dtype),
        layers=layers,
        final_norm=jnp.asarray(tensors[_FINAL_NORM], dtype),
        head=head,
    )


def save_decoder(directory: str | Path, config: DecoderConfig, params: Params, dtype: DTypeLike = "float32") -> None:
    """Write a checkpoint; the directory is made if need be, and files of an earlier one are replaced.

    Args:
        directory: where the two files go.
        config: the sizes of `params`.
        params: the weights, in any floating dtype.
        dtype: float16 or float32, the dtype on disk.

    Raises:
        ValueError: another dtype, params that do not fit the config, or a weight that is not finite in `dtype`.
    """
    stored = np.dtype(dtype)
    if stored.name not in STORED_DTYPES:
        raise ValueError(f"checkpoints are stored as one of {STORED_DTYPES}, not {stored.name}")
    tensors: Tensors = {}
    for name, values in _named(params):
        with np.errstate(over="ignore"):  # reported below, with the tensor's name
            tensors[name] = np.ascontiguousarray(np.asarray(values, np.float32).astype(stored))
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"tensor {name} has values that are not finite in {stored.name}")
    if config.tied_head and params.head is not None:
        raise ValueError(f"params have {_HEAD}, but the config ties the head to the embedding")
    path = Path(directory)
    _check(tensors, config, path / WEIGHTS_FILE)
    path.mkdir(parents=True, exist_ok=True)
    description = config.to_hugging_face() | {"torch_dtype": stored.name}
    (path / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (path / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))  # "pt": transformers asks for it


def _read_config(path: Path) -> DecoderConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        return DecoderConfig.from_hugging_face(values)
    except ValueError as error:  # also what json and UTF-8 raise
        raise ValueError(f"{path}: {error}") from error


def _named(params: Params) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield every tensor of `params` under its Hugging Face name, matrices as [out, in]."""
    yield _EMBEDDING, np.asarray(params.embedding)
    for field, name in _LAYER_TENSORS.items():
        for index, weight in enumerate(np.asarray(getattr(params.layers, field))):
            yield f"model.layers.{index}.{name}", weight.T  # the transpose of a vector is itself
    yield _FINAL_NORM, np.asarray(params.final_norm)
    if params.head is not None:
        yield _HEAD, np.asarray(params.head).T


def _expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    shapes = param_shapes(config)
    expected: dict[str, tuple[int, ...]] = {_EMBEDDING: shapes.embedding.shape, _FINAL_NORM: shapes.final_norm.shape}
    for field, name in _LAYER_TENSORS.items():
        for index in range(config.n_layers):
            expected[f"model.layers.{index}.{name}"] = getattr(shapes.layers, field).shape[:0:-1]
    if shapes.head is not None:
        expected[_HEAD] = shapes.head.shape[::-1]
    return expected


def _check(tensors: Mapping[str, NDArray[Any]], config: DecoderConfig, path: Path) -> None:
    """Raise ValueError unless `tensors` are exactly those of the config, in names, shapes and kind."""
    expected = _expected_shapes(config)
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"{path} lacks the tensor {name}")
        if tensors[name].shape != shape:
            raise ValueError(
                f"{path}: tensor {name} has the shape {tensors[name].shape}, but {CONFIG_FILE} asks for {shape}"
            )
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            raise ValueError(f"{path}: tensor {name} is {tensors[name].dtype}, not floating")
    for name in tensors.keys() - expected.keys():
        if not _is_redundant(name, config):
            raise ValueError(f"{path} has the tensor {name}, which this decoder has no place for")


def _is_redundant(name: str, config: DecoderConfig) -> bool:
    """Say whether a tensor only repeats what is known: a tied head, or RoPE's frequencies in old files."""
    return name.endswith(".rotary_emb.inv_freq") or (config.tied_head and name == _HEAD)
