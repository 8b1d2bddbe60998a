"""LoRA adapters, merged into the weights of their base model while these are read (Hu et al., 2021, arXiv:2106.09685).

The merged weight of a linear layer is ``W + B·A·alpha/r``, computed in float32. An adapter that peft would apply in
another way is refused by name, see `lora_config`, and so is a tensor of the adapter that fits no weight.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from birdie_zmq.models.lora_config import LoraConfig, read_lora_config
from birdie_zmq.models.tensor_names import MatchedTensors, abbreviate, name_variants
from birdie_zmq.models.tensor_source import Index, SafetensorsFiles, TensorReader
from birdie_zmq.models.weight_map import WeightMap

ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLED_FILE = "adapter_model.bin"

_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_ROOT = "base_model.model."
"""What peft writes before the names of the base model."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowRankUpdate:
    """The update of one weight: ``up @ down * scale``, [out, in].

    Attributes:
        down: A, float32 [r, in].
        up: B, float32 [out, r].
        scale: alpha / r.
        transposed: Whether the weight is stored as [in, out], as the layers of GPT-2 are (``Conv1D``).
    """

    down: NDArray[np.float32]
    up: NDArray[np.float32]
    scale: float
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight, as it is stored."""
        shape = (self.up.shape[0], self.down.shape[1])
        return shape[::-1] if self.transposed else shape

    def values(self, index: Index | None = None) -> NDArray[np.float32]:
        """Return the update of the slice of the stored weight at an index; by default of the whole weight."""
        first, second = (slice(None), slice(None)) if index is None else index
        if self.transposed:
            product = (self.up[second] @ self.down[:, first]).T
        else:
            product = self.up[first] @ self.down[:, second]
        return np.asarray(product * np.float32(self.scale))

    def merged(self, read_tensor: TensorReader) -> TensorReader:
        """Return a reader of the updated weight, float32, from the reader of the weight."""

        def read_merged(index: Index | None = None) -> NDArray[Any]:
            return np.asarray(read_tensor(index), np.float32) + self.values(index)

        return read_merged


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter: the update of each module that it adapts, by the name that the adapter gives the module."""

    config: LoraConfig
    updates: Mapping[str, LowRankUpdate]

    def __str__(self) -> str:
        base = "" if self.config.base is None else f" for the base model {self.config.base}"
        return f"{self.config.directory} (LoRA of rank {self.config.rank}{base})"

    def match(self, weight_map: WeightMap, matched: MatchedTensors) -> dict[str, LowRankUpdate]:
        """Return the updates by the stored names of the weights.

        Updates of modules outside of the decoder, such as a vision tower's, are ignored with a warning, as those modules
        are.

        Raises:
            ValueError: A tensor of the adapter fits no weight of the decoder. The message names the tensor.
        """
        specs = {name: slot.spec for name, slot in weight_map.tensors() if slot.stack is not None}
        specs |= {weight_map.outer["head"].name: weight_map.outer["head"]} if "head" in weight_map.outer else {}
        outside = {_short(name) for name in matched.unused}
        found: dict[str, LowRankUpdate] = {}
        ignored = []
        for module, update in self.updates.items():
            name = next((name for name in name_variants(f"{module}.weight", weight_map.base) if name in specs), None)
            if name is None and _short(f"{module}.weight") in outside:
                ignored.append(module)
                continue
            if name is None or matched.stored[name] in found:
                tied = weight_map.tied_head is not None and f"{module}.weight".endswith(weight_map.tied_head)
                raise self.misfit(
                    module, "shares its matrix with the embedding" if tied else "is no layer of the model"
                )
            oriented = LowRankUpdate(update.down, update.up, update.scale, transposed=not specs[name].transposed)
            self.check(module, oriented, specs[name].shape)
            found[matched.stored[name]] = oriented
        if ignored:
            logger.warning(
                "%s: ignoring the adapters of %d modules that are not part of the text decoder: %s",
                self,
                len(ignored),
                abbreviate(ignored),
            )
        return found

    def check(self, module: str, update: LowRankUpdate, shape: tuple[int, ...]) -> None:
        """Check that an update has the shape of the weight.

        Raises:
            ValueError: It has another. The message names the module.
        """
        if update.shape != shape:
            raise self.misfit(module, f"has a weight of the shape {shape}, and the adapter's update has {update.shape}")

    def misfit(self, module: str, reason: str) -> ValueError:
        """Return the error of a module that cannot be adapted."""
        return ValueError(
            f"the adapter {self.config.directory} has tensors for {module}, which {reason}; check that the adapter "
            "belongs to this base model"
        )


def read_adapter(directory: Path) -> LoraAdapter:
    """Read an adapter that peft saved.

    Args:
        directory: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        OSError: A file is missing or cannot be read.
        ValueError: A file is damaged, or the adapter is not plain LoRA. The message names the adapter and the reason.
    """
    config = read_lora_config(directory)
    path = directory / ADAPTER_WEIGHTS_FILE
    if not path.is_file():
        pickled = (directory / _PICKLED_FILE).is_file()
        reason = f"; {_PICKLED_FILE} is a pickle, which can run arbitrary code and is not read" if pickled else ""
        raise FileNotFoundError(f"the adapter {directory} has no {ADAPTER_WEIGHTS_FILE}{reason}")
    source = SafetensorsFiles(str(directory), [path])
    matrices: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, read_tensor in source.read():
        module, part = _parse(name, config)
        header = source.headers[name]
        if not header.floating or len(header.shape) != 2:
            raise ValueError(
                f"the adapter {directory}: the tensor {name} is {header.dtype} {header.shape}, not a float matrix"
            )
        rank = header.shape[0 if part == "A" else 1]
        if rank != config.rank:
            raise ValueError(f"the adapter {directory}: the tensor {name} has the rank {rank}, and r is {config.rank}")
        matrices.setdefault(module, {})[part] = np.asarray(read_tensor(), np.float32)
    for module, parts in matrices.items():
        if len(parts) != 2:
            raise ValueError(
                f"the adapter {directory} has lora_{next(iter(parts))} of {module} without the other matrix"
            )
    if not matrices:
        raise ValueError(f"the adapter {directory} has no tensors")
    return LoraAdapter(
        config, {module: LowRankUpdate(parts["A"], parts["B"], config.scale) for module, parts in matrices.items()}
    )


def _parse(name: str, config: LoraConfig) -> tuple[str, str]:
    """Return the module and the letter of a matrix.

    Raises:
        ValueError: The tensor is no matrix of LoRA, or peft would not apply it.
    """
    found = _MATRIX.fullmatch(name.removeprefix(_ROOT))
    if found is None:
        # peft saves the base weights of an adapted LM head or embedding, and loads them in place of the base model's.
        whole = (
            "a weight of the base model" if "lora_" not in name else "not a lora_A.weight or lora_B.weight of a layer"
        )
        raise ValueError(
            f"the adapter {config.directory} has the tensor {name}, which is {whole}; only plain LoRA is supported: merge it into its base model with peft (merge_and_unload) and "
            "evaluate the result"
        )
    if not config.adapts(found["module"]):
        raise ValueError(
            f"the adapter {config.directory} has the tensor {name}, and its target_modules (or exclude_modules, "
            "layers_to_transform) leave this module out"
        )
    return found["module"], found["part"]


def _short(name: str) -> str:
    """Return a name of a multimodal model without the prefix that only some versions of transformers write."""
    return name.removeprefix("model.")
