"""From a checkpoint on disk to a decoder and its weights on the device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from birdie_zmq.models.gguf_file import GgufFile
from birdie_zmq.models.registry import architecture_of
from birdie_zmq.models.weight_map import Architecture, Params
from birdie_zmq.models.weights import SafetensorsDirectory, TensorSource, load_params, read_config


def load_checkpoint(path: Path, dtype: str = "auto", mesh: Mesh | None = None) -> tuple[Architecture, Params]:
    """Read a Hugging Face directory or a GGUF file.

    Args:
        path: The directory or the file.
        dtype: float32, bfloat16 or auto: of all weights in memory, whatever it is on disk. ``auto`` is bfloat16 where the
            checkpoint is, else float32: float16 overflows in many models where bfloat16 and float32 do not.
        mesh: Devices over which the weights are divided.

    Raises:
        UsageError: The mesh divides nothing of this model.
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, the architecture is not known, or weights do not fit it. The message names the
            file, and the tensor or the key.
    """
    source: TensorSource
    if path.is_file():
        file = GgufFile(path)
        config = file.config()
        architecture = architecture_of(config, str(path))
        source = file.source(architecture.layout())
    else:
        config = read_config(path)
        architecture = architecture_of(config, str(path / "config.json"))
        source = SafetensorsDirectory(path)
    chosen = _stored_dtype(config, source) if dtype == "auto" else dtype
    return architecture, load_params(architecture.layout(), source, chosen, mesh)


def _stored_dtype(config: Mapping[str, Any], source: TensorSource) -> str:
    """The dtype that a checkpoint asks for, by its config, else by its tensors."""
    named = config.get("dtype") or config.get("torch_dtype")
    stored = {header.dtype for header in source.headers.values()}
    return "bfloat16" if named == "bfloat16" or (named is None and stored == {"BF16"}) else "float32"
