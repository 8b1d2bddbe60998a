"""Models in PyTorch: whole rows, scored on the device.

Shape letters: b rows, t tokens of a row, q places, v vocabulary, d the width of a hidden state.
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
from birdie_zmq.engine.numpy.row_backend import BUDGET, Columns, RowsBackend
from birdie_zmq.engine.planning.shape_buckets import StepBudget
from birdie_zmq.engine.planning.steps import Tokens

_ACCELERATOR_BUDGET = StepBudget(tokens=16_384, logits_bytes=2**31, rows=256)

_NO_ROOM = ("DefaultCPUAllocator", "not enough memory", "out of memory")
"""What allocators say in a plain RuntimeError: those of CPUs, and of devices that have no error of their own."""


class TorchBackend(RowsBackend):
    """A model's function on the first CUDA device, else on the CPU.

    What is called may be a module, or any function from tokens int64[b, t] (PyTorch's own type for them) to logits, or to
    an object with ``.logits``, as transformers' models give. Modules are put into evaluation mode. Weights that lie on the
    CPU, of a module or among the params, are moved to the device; those that lie elsewhere stay, and tokens go to them.

    Args:
        model: What load_model returned, resolved.
        max_length: The longest row there will be.

    Raises:
        ModelLoadError: The model gives neither logits, nor hidden states and their head.
        ModelCallError: A function raised on a small trial row.
        ModelOutputError: It returned what has not the right form.
    """

    name = "torch"

    def __init__(self, model: LoadedModel, max_length: int) -> None:
        default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        owner = getattr(model.parts.logits, "__self__", model.parts.logits)  # the module of module.forward, or it
        model = replace(model, parts=replace(model.parts, params=_placed(model.parts.params, default)))
        weights = list(_tensors(model.parts.params if model.jit else _placed(owner, default)))
        self._device = weights[0].device if weights else default
        self._keywords = _keywords_of(model.parts.logits)
        if weights:
            self.num_parameters = sum(weight.numel() for weight in weights)
            bytes_of = Counter[str]()
            for weight in weights:
                bytes_of[str(weight.dtype).removeprefix("torch.")] += weight.nbytes
            self.dtype = max(bytes_of, key=bytes_of.__getitem__)
        super().__init__(model, max_length, BUDGET if self._device.type == "cpu" else _ACCELERATOR_BUDGET)

    def find_devices(self) -> list[str]:
        """Where the model computes, for results."""
        device = self._device
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return [f"{device.type}:{device.index or 0} {kind}"]

    def find_versions(self) -> dict[str, str]:
        """The versions of the framework's packages, for results."""
        versions = {"torch": str(torch.__version__)}
        if "transformers" in sys.modules:  # the page has its model from there
            versions["transformers"] = version("transformers")
        return versions

    def place(self, array: Tokens) -> Any:
        """An array of NumPy as a tensor int64, where the model computes."""
        return torch.from_numpy(array).to(self._device, torch.int64)

    def call_score(self, input_ids: Any, label_ids: Any, loss_mask: Any) -> Any:
        """The model's own score of rows int64[b, t]."""
        with torch.inference_mode():
            return super().call_score(input_ids, label_ids, loss_mask)

    def read(self, tokens: Tokens) -> Any:
        """What the model returns for tokens int32[b, t]: logits [b, t, v], or hidden states [b, t, d]."""
        with torch.inference_mode():
            returned = self.call(self.place(tokens), **self._keywords)
        return returned if isinstance(returned, torch.Tensor) else getattr(returned, "logits", returned)

    def logits_at(self, read: Any, rows: Tokens, positions: Tokens) -> Any:
        """Logits float32[q, v] at places int32[q] of what was read."""
        with torch.inference_mode():
            where = [torch.from_numpy(index).to(read.device, torch.int64) for index in (rows, positions)]
            at = read[where[0], where[1]]
            if self.unembed is not None:
                at = self.unembed(self.params, at)
            return at[:, : self.vocab_size].float()

    def score(self, logits: Any, targets: Tokens) -> Columns:
        """Log-probability, greediness and finiteness of targets int32[q] by logits float32[q, v]."""
        wanted = torch.from_numpy(targets).to(logits.device, torch.int64)
        normaliser = torch.logsumexp(logits, dim=-1)
        chosen = logits.gather(-1, wanted[:, None])[:, 0]
        finite = torch.isfinite(chosen) & torch.isfinite(normaliser)
        return Columns(chosen - normaliser, logits.argmax(dim=-1) == wanted, finite)

    def choose(self, logits: Any) -> tuple[Any, Any]:
        """The greedy tokens [q] by logits float32[q, v], and whether they can be told, bool[q]."""
        return logits.argmax(dim=-1), torch.isfinite(torch.logsumexp(logits, dim=-1))

    def is_floating(self, array: Any) -> bool:
        """Whether a tensor holds floating-point numbers; what is no tensor does not."""
        return isinstance(array, torch.Tensor) and array.is_floating_point()

    def to_host(self, array: Any) -> npt.NDArray[Any]:
        """A tensor as an array of NumPy."""
        return np.asarray(array.cpu())

    def has_no_room(self, error: Exception) -> bool:
        """Whether an error says that the device has no room."""
        if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
            return True
        return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM)

    def update(self, params: Any) -> None:
        """Compute with other weights of the same form from now on; None where they are no argument of the functions."""
        super().update(None if params is None else _placed(params, self._device))

    def free_memory(self) -> None:
        """Give back what PyTorch keeps for later tensors."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def make_backend(model: LoadedModel, max_length: int) -> TorchBackend:
    """The engine for models in PyTorch; as `birdie_zmq.worker.engine_registry` asks for it."""
    with only_framework(model, "torch"):
        return TorchBackend(model, max_length)


def _placed(value: Any, device: torch.device) -> Any:
    """The same with what lies on the CPU on a device, modules ready to evaluate; in containers of the same kind."""
    if isinstance(value, torch.nn.Module):
        on_cpu = all(tensor.device.type == "cpu" for tensor in _tensors(value))
        return (value.to(device) if on_cpu else value).eval()
    if isinstance(value, torch.Tensor):
        return value.to(device) if value.device.type == "cpu" else value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).to(device)
    if isinstance(value, dict):
        return {name: _placed(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_placed(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The floating-point weights of a module, or of nested containers."""
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
    """What a module of transformers is told: to keep no keys and values, which nothing here would read again."""
    if not isinstance(function, torch.nn.Module):
        return {}
    return {"use_cache": False} if "use_cache" in inspect.signature(function.forward).parameters else {}
