"""The PyTorch backend: whole rows, or states and trees of models that provide them, scored on the device.

Shape letters: b rows, t tokens of a row, q positions, v vocabulary, d the width of a hidden state.
"""

from __future__ import annotations

import inspect
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from birdie_zmq.engine.backend import GREEDY, Decoding, TokenChoice
from birdie_zmq.engine.decoding_memory import rows_that_fit
from birdie_zmq.engine.framework_check import only_framework
from birdie_zmq.engine.host_memory import host_free_bytes
from birdie_zmq.engine.model_api import LoadedModel, Model
from birdie_zmq.engine.numpy.row_backend import RowBackend, ScoreColumns
from birdie_zmq.engine.output_checks import check_hidden
from birdie_zmq.engine.planning.execution_mode import FORKS, TREES
from birdie_zmq.engine.planning.shape_buckets import LEAST_DECODING_ROWS, StepBudget
from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tokens, Tree
from birdie_zmq.engine.prefix_cache import PrefixCache, capacity_for
from birdie_zmq.engine.torch import exact_rows
from birdie_zmq.engine.torch.decoding import TorchDecoding
from birdie_zmq.engine.torch.exact_rows import ExactRows
from birdie_zmq.engine.torch.states import StateModel, TorchPlanStates, size_bytes, trim
from birdie_zmq.engine.torch.tensors import to_device, weights_of

_BUDGET = StepBudget(tokens=1024, decoding_rows=64, decoding_bytes=2**31)
_ACCELERATOR_BUDGET = StepBudget(
    tokens=16_384, call_tokens=1024, row_tokens=1, logits_bytes=2**31, rows=256, decoding_rows=256
)

_PREFIX_CACHE_BYTES = 2**30
"""Size limit of the prefix cache, beyond the states that the current batch needs."""

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
        params = to_device(loaded.model.params, default)
        weights = list(weights_of(params if loaded.jit else to_device(owner, default)))
        self._device = weights[0].device if weights else default
        self._keywords = _keywords_of(logits)
        if weights:
            self.num_parameters = sum(weight.numel() for weight in weights)
            bytes_of = Counter[str]()
            for weight in weights:
                bytes_of[str(weight.dtype).removeprefix("torch.")] += weight.nbytes
            self.dtype = max(bytes_of, key=bytes_of.__getitem__)
        model = replace(loaded.model, params=params)
        self._states: TorchPlanStates | None = None
        self._prefix_cache = PrefixCache[Any](_PREFIX_CACHE_BYTES)
        if model.extend is not None:
            self._state_model = StateModel(model, self._device, self.model_call)
            self._states = TorchPlanStates(self._state_model, self._prefix_cache)
            model = replace(model, hidden=model.hidden or _hidden_by_extend(model))
        budget = _BUDGET if self._device.type == "cpu" else _ACCELERATOR_BUDGET
        super().__init__(replace(loaded, model=model), max_length, budget)
        if self._states is not None:
            self.text_mode = self.generation_mode = TREES if model.branch else FORKS
            if model.score is None:
                self.pair_mode = self.text_mode
            if model.prefill is None:
                self.generation_mode = FORKS
            self.shares_prefixes = self.generation_mode is TREES and model.extend_after is not None

    @property
    def states_evicted(self) -> int:  # type: ignore[override]
        """Number of states evicted from the prefix cache because of its size limit."""
        return self._prefix_cache.evicted

    # --- States -------------------------------------------------------------------------------------------------------

    def cached_prefixes(self) -> Mapping[bytes, int]:
        """Return the capacity in tokens of each cached state, by the bytes of the tokens of its prefix."""
        return self._prefix_cache.capacities()

    def start_plan(self, steps: Sequence[Step], capacity: int = 0) -> None:
        """Prepare for a plan with states of at least this capacity in tokens; its steps are computed next, in order."""
        if self._states is not None:
            self._states.start_plan(steps, capacity)

    def arrange(self, step: Step) -> Step:
        """Return a step without unnecessary padding; with a row for each text, if texts are computed alone."""
        if isinstance(self.function, ExactRows):
            return exact_rows.separate(step)
        return step if self._states is None else trim(step)

    def compute(self, step: Step) -> Any:
        """Return the model's output for an arranged step: logits [b, t, v], or hidden states [b, t, d]."""
        if isinstance(self.function, ExactRows):
            return exact_rows.compute(self._forward, step)
        if self._states is None or not isinstance(step.kind, Tree | Extend | Fork):
            return super().compute(step)
        with torch.inference_mode():
            match step.kind:
                case Tree() as kind:
                    hidden = self._states.branch(step.tokens, kind)
                case Extend() as kind:
                    hidden = self._states.extend(step.tokens, kind)
                case Fork() as kind:
                    hidden = self._states.fork(step.tokens, kind)[0]
        self._states.release(step)
        check_hidden(hidden, step.tokens.shape)
        return hidden

    def decoding_rows(self, capacity: int, wanted: int, spare: int = 0) -> int:
        """Return how many rows of `capacity` tokens are decoded together: at most `wanted`, and as many as fit.

        Memory is left for one further row that is being prefilled and one that is cached, and for the spare rows.

        Raises:
            OutOfDeviceMemory: Not even one row fits. The message names the number of tokens that would fit.
        """
        state_capacity = capacity_for(capacity)
        with self._state_model.guard(f"the state of a row of {state_capacity} tokens"):
            row_bytes = size_bytes(self._state_model.call("init_state", 1, state_capacity))
        if self.budget.decoding_bytes is not None and row_bytes:
            wanted = min(wanted, max(LEAST_DECODING_ROWS, self.budget.decoding_bytes // row_bytes))
        device = self._device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_free_bytes()
        if free is None or not row_bytes:
            return wanted
        return min(wanted, rows_that_fit(free, row_bytes, state_capacity, capacity) - spare)

    def decoding(self, rows: int, capacity: int, choice: TokenChoice = GREEDY, shared: bytes = b"") -> Decoding:
        """Create a decode batch of rows with a capacity of `capacity` tokens each, after a shared prefix."""
        assert self._states is not None
        shape = (rows, capacity_for(capacity))
        return TorchDecoding(self._state_model, self._states, self.choose, shape, choice, shared)

    # --- The part of the framework ------------------------------------------------------------------------------------

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

    def top(self, logits: Any, count: int) -> tuple[Any, Any]:
        """Return the most likely tokens int32[q, count] by logits float32[q, v], and their log-probabilities."""
        values, ids = torch.topk(logits, count, dim=-1)
        return ids.int(), values - torch.logsumexp(logits, dim=-1, keepdim=True)

    def greedy_tokens(self, logits: Any) -> tuple[Any, Any]:
        """Return the most likely tokens [q] by logits float32[q, v], and whether the logits are finite, bool[q]."""
        greatest, tokens = logits.max(dim=-1)  # NaN is the greatest
        return tokens, torch.isfinite(greatest)

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
        moved = None if params is None else to_device(params, self._device)
        super().update(moved)
        if self._states is not None:
            self._states.clear()
            self._state_model.params = self.params

    def halve_budget(self) -> bool:
        """Halve the size of later steps and clear the prefix cache; return False if steps are as small as possible."""
        if self._states is not None:
            self._states.clear()
        return super().halve_budget()

    def free_memory(self) -> None:
        """Release the memory that PyTorch's allocator caches."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def make_backend(model: LoadedModel, max_length: int) -> TorchBackend:
    """Make the backend of a PyTorch model; called by `birdie_zmq.worker.engine_registry`."""
    with only_framework(model, "torch"):
        return TorchBackend(model, max_length)


def _hidden_by_extend(model: Model) -> Any:
    """Return a function from whole rows to hidden states, for a model that has only a state."""
    init_state, extend = model.init_state, model.extend
    assert init_state is not None
    assert extend is not None

    def hidden(params: Any, tokens: Any) -> Any:
        rows, length = tokens.shape
        lengths = torch.full((rows,), length, dtype=torch.int64, device=tokens.device)
        return extend(params, tokens, lengths, init_state(params, rows, capacity_for(length)))[0]

    return hidden


def _keywords_of(function: Any) -> dict[str, Any]:
    """Return the keyword arguments for a module: models of transformers make no KV cache, which nothing here would reuse."""
    if not isinstance(function, torch.nn.Module):
        return {}
    return {"use_cache": False} if "use_cache" in inspect.signature(function.forward).parameters else {}
