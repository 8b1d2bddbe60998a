"""Load a checkpoint from disk: its architecture, and its weights on the device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from birdie_zmq.engine.jax.fixed_settings import fixed_settings
from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.config import CONFIG_FILE, complete_config, read_config, read_model_type
from birdie_zmq.models.config_fields import read_json_object
from birdie_zmq.models.fused_experts import SeparateExperts, is_fused
from birdie_zmq.models.gguf_file import GgufFile
from birdie_zmq.models.lora import read_adapter
from birdie_zmq.models.native.directory import native_checkpoint
from birdie_zmq.models.native.formats import load_native
from birdie_zmq.models.native.hints import NO_HINTS, ModelHints
from birdie_zmq.models.quantised_source import DequantisedSource, read_scheme
from birdie_zmq.models.registry import build_architecture, check_model_type
from birdie_zmq.models.resolution import BUILT_IN
from birdie_zmq.models.tensor_source import SafetensorsDirectory, TensorSource
from birdie_zmq.models.weight_map import Params
from birdie_zmq.models.weights import load_params


def load_checkpoint(
    path: Path,
    dtype: str = "auto",
    mesh: Mesh | None = None,
    adapter: Path | None = None,
    hints: ModelHints = NO_HINTS,
) -> tuple[Architecture, Params]:
    """Load a Hugging Face directory, a GGUF file or the checkpoint of a trainer.

    Args:
        path: The directory or the file.
        dtype: float32, bfloat16 or auto: the dtype of all weights in memory, whatever it is on disk. ``auto`` is
            bfloat16 if the checkpoint is bfloat16, else float32, also for float16: it overflows in many models where
            bfloat16 and float32 do not.
        mesh: Devices over which the weights are sharded.
        adapter: The directory of a LoRA adapter, which is merged into the weights.
        hints: What the user says of a model whose checkpoint a trainer has written.

    Raises:
        UsageError: The mesh divides none of this model's weights, or a trainer's checkpoint needs a hint or a package.
        IncompleteCheckpoint: A trainer's checkpoint is not committed, or a file of it is missing.
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, the architecture is unknown, the weights do not fit it, or the adapter does not
            fit them. The message names the file, and the tensor or the key.
    """
    lora = None if adapter is None else read_adapter(adapter)
    source: TensorSource
    if (native := native_checkpoint(path)) is not None:
        model, source = load_native(native, hints)
        config = dict(model.config)
        architecture = model.adapt(build_architecture(config, str(path)))
    elif path.is_file():
        file = GgufFile(path)
        config = complete_config(file.config())
        architecture = build_architecture(config, str(path))
        source = file.source(architecture.weight_map())
    else:
        check_model_type(read_model_type(path), str(path / CONFIG_FILE))
        # The demo's file is complete. A start without transformers, which takes seconds to import, suits a demo.
        config = read_json_object(path / CONFIG_FILE) if path in BUILT_IN.values() else read_config(path)
        architecture = build_architecture(config, str(path / CONFIG_FILE))
        source = _open_directory(path, config)
        if any(spec.members for spec in architecture.weight_map().specs()) and any(map(is_fused, source.headers)):
            source = SeparateExperts(source)
    chosen = _stored_dtype(config, source) if dtype == "auto" else dtype
    with fixed_settings():
        return architecture, load_params(architecture.weight_map(), source, chosen, mesh, lora)


def _open_directory(path: Path, config: Mapping[str, Any]) -> TensorSource:
    """Open the weights of a Hugging Face directory, quantised or not."""
    files, quantisation = (
        SafetensorsDirectory(path, config.get("transformers_weights")),
        config.get("quantization_config"),
    )
    return files if quantisation is None else DequantisedSource(files, read_scheme(quantisation))


def _stored_dtype(config: Mapping[str, Any], source: TensorSource) -> str:
    """Return the dtype that a checkpoint requests: that of its config, else that of its tensors."""
    named = config.get("dtype")
    stored = {header.dtype for header in source.headers.values()}
    return "bfloat16" if named == "bfloat16" or (named is None and stored == {"BF16"}) else "float32"
