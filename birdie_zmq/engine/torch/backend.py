"""The PyTorch backend, which computes whole rows and scores them on the device.

Shape letters: b rows, t tokens of a row, q positions, v vocabulary, d the width of a hidden state.
"""

from __future__ import annotations

import inspect
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from birdie_zmq.engine.framework_check import only_framework
from birdie_zmq.engine.model_api import LoadedModel
from birdie_zmq.engine.numpy.row_backend import BUDGET, RowBackend, ScoreColumns
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Tokens

_ACCELERATOR_BUDGET = StepBudget(tokens=16_384, logits_bytes=2**31, rows=256)

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory")
"""Fragments of out-of-memory errors that are a plain RuntimeError, as on CPUs and devices without their own class."""


class TorchBackend(RowBackend):
    """A PyTorch model on the first CUDA device, or else on the CPU.

    The model may be a module, or any function from tokens int64[b, t] (PyTorch's own index type) to logits, or to an
    object with ``.logits``, as the models of transformers return. Modules are put into evaluation mode. Weights on the
    CPU, of a module or among the params, are moved to the device. Weights on another device stay there, and tokens are
    sent to them.

    Args:
        loaded: The resolved return value of load_model.
        max_length: The maximum length of a row, in tokens.

    Raises:
        ModelLoadError: The model provides neither logits, nor hidden and unembed, nor score.
        ModelCallError: A function raised on a small probe row.
        ModelOutputError: A function returned an array of the wrong shape or dtype.
    """

    name = "torch"

    def __init__(self, loaded: LoadedModel, max_length: int) -> None:
        default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # The module itself, if logits is its bound method ``forward``.
        logits = loaded.model.logits
        owner = getattr(logits, "__self__", logits)
        params = _to_device(loaded.model.params, default)
        weights = list(_tensors(params if loaded.jit else _to_device(owner, default)))
        self._device = weights[0].device if weights else default
        self._keywords = _keywords_of(logits)
        if weights:
            self.num_parameters = sum(weight.numel() for weight in weights)
            bytes_of = Counter[str]()
            for weight in weights:
                bytes_of[str(weight.dtype).removeprefix("torch.")] += weight.nbytes
            self.dtype = max(bytes_of, key=bytes_of.__getitem__)
        loaded = replace(loaded, model=replace(loaded.model, params=params))
        super().__init__(loaded, max_length, BUDGET if self._device.type == "cpu" else _ACCELERATOR_BUDGET)

    def find_devices(self) -> list[str]:
        """Return the name of the device on which the model computes, for results."""
        device = self._device
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return [f"{device.type}:{device.index or 0} {kind}"]

    def find_versions(self) -> dict[str, str]:
        """Return the versions of the framework's packages, for results."""
        versions = {"torch": str(torch.__version__)}
        if "transformers" in sys.modules:  # the user module loads its model with it
            versions["transformers"] = version("transformers")
        return versions

    def to_device(self, array: Tokens) -> Any:
        """Convert a NumPy array to a tensor int64 on the model's device."""
        return torch.from_numpy(array).to(self._device, torch.int64)

    def call_score(self, input_ids: Any, label_ids: Any, loss_mask: Any) -> Any:
        """Call the model's own `score` on rows int64[b, t]."""
        with torch.inference_mode():
            return super().call_score(input_ids, label_ids, loss_mask)

    def forward(self, tokens: Tokens) -> Any:
        """Call the model on tokens int32[b, t]; return logits [b, t, v], or hidden states [b, t, d]."""
        with torch.inference_mode():
            returned = self.call(self.to_device(tokens), **self._keywords)
        return returned if isinstance(returned, torch.Tensor) else getattr(returned, "logits", returned)

    def logits_at(self, output: Any, rows: Tokens, positions: Tokens) -> Any:
        """Return the logits float32[q, v] at positions int32[q] of the model's output."""
        with torch.inference_mode():
            where = [torch.from_numpy(index).to(output.device, torch.int64) for index in (rows, positions)]
            at = output[where[0], where[1]]
            if self.unembed is not None:
                at = self.unembed(self.params, at)
            return at[:, : self.vocab_size].float()

    def score(self, logits: Any, targets: Tokens) -> ScoreColumns:
        """Score targets int32[q] by logits float32[q, v]."""
        on_device = torch.from_numpy(targets).to(logits.device, torch.int64)
        normaliser = torch.logsumexp(logits, dim=-1)
        chosen = logits.gather(-1, on_device[:, None])[:, 0]
        return ScoreColumns(chosen - normaliser, logits.argmax(dim=-1) == on_device, torch.isfinite(normaliser))

    def greedy_tokens(self, logits: Any) -> tuple[Any, Any]:
        """Return the most likely tokens [q] by logits float32[q, v], and whether the logits are finite, bool[q]."""
        return logits.argmax(dim=-1), torch.isfinite(torch.logsumexp(logits, dim=-1))

    def is_floating(self, array: Any) -> bool:
        """Return whether a value is a tensor of floating-point numbers."""
        return isinstance(array, torch.Tensor) and array.is_floating_point()

    def to_host(self, array: Any) -> npt.NDArray[Any]:
        """Convert a tensor to a NumPy array."""
        return np.asarray(array.cpu())

    def is_out_of_memory(self, error: Exception) -> bool:
        """Return whether an error means that the device is out of memory."""
        if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
            return True
        return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)

    def update(self, params: Any) -> None:
        """Replace the weights by others with the same tree, shapes and dtypes; None keeps them."""
        super().update(None if params is None else _to_device(params, self._device))

    def free_memory(self) -> None:
        """Release the memory that PyTorch's allocator caches."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def make_backend(model: LoadedModel, max_length: int) -> TorchBackend:
    """Make the backend of a PyTorch model; called by `birdie_zmq.worker.engine_registry`."""
    with only_framework(model, "torch"):
        return TorchBackend(model, max_length)


def _to_device(value: Any, device: torch.device) -> Any:
    """Move tensors and modules from the CPU to a device, within nested containers, and put modules into evaluation mode."""
    if isinstance(value, torch.nn.Module):
        on_cpu = all(tensor.device.type == "cpu" for tensor in _tensors(value))
        return (value.to(device) if on_cpu else value).eval()
    if isinstance(value, torch.Tensor):
        return value.to(device) if value.device.type == "cpu" else value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).to(device)
    if isinstance(value, dict):
        return {name: _to_device(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_to_device(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors of a module or of nested containers."""
    if isinstance(value, torch.nn.Module):
        yield from value.parameters()
    elif isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _keywords_of(function: Any) -> dict[str, Any]:
    """Return the keyword arguments for a module: models of transformers make no KV cache, which nothing here would reuse."""
    if not isinstance(function, torch.nn.Module):
        return {}
    return {"use_cache": False} if "use_cache" in inspect.signature(function.forward).parameters else {}
