"""States in PyTorch: the states of the steps of a plan, and what `birdie_zmq.Model` computes from them.

A state may be overwritten by `extend` and `append`, so a cached one is copied first. The engine is not bound to the shapes
of steps, so what is only padding at the end of rows is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from birdie_zmq.engine.model_api import Function, Model
from birdie_zmq.engine.plan_states import PlanStates
from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tokens, Tree
from birdie_zmq.engine.prefix_cache import PrefixCache
from birdie_zmq.engine.torch.tensors import map_tensors, state_tensors

ModelCall = Callable[[str], AbstractContextManager[None]]


class StateModel:
    """The functions of a model with a state.

    Args:
        model: The functions, and the params.
        device: The device of the params.
        model_call: The context that converts errors of calls, for a description of their inputs.
    """

    def __init__(self, model: Model, device: torch.device, model_call: ModelCall) -> None:
        self.params = model.params
        self._model = model
        self._device = device
        self._model_call = model_call

    @contextmanager
    def guard(self, inputs: str) -> Iterator[None]:
        """Run calls without gradients, and convert their errors, which name the inputs."""
        with self._model_call(inputs), torch.inference_mode():
            yield

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the model, with NumPy arrays as int64 on its device."""
        function: Function = getattr(self._model, name)
        return function(self.params, *(self._tensor(argument) for argument in arguments))

    def _tensor(self, value: Any) -> Any:
        return torch.from_numpy(value).to(self._device, torch.int64) if isinstance(value, np.ndarray) else value


def take_rows(state: Any, rows: Tokens) -> Any:
    """Return a copy of some rows int32[n] of a state."""
    numbers = torch.from_numpy(np.asarray(rows, np.int64))
    return map_tensors(lambda tensor: tensor.index_select(0, numbers.to(tensor.device)), state)


def put_row(state: Any, row: int, source: Any, index: int) -> None:
    """Replace a row of a state by a row of another."""

    def put(tensor: torch.Tensor, other: torch.Tensor) -> None:
        tensor[row] = other[index]

    map_tensors(put, state, source)


def row_of(state: Any, row: int) -> Any:
    """Return a state of one row that shares its memory with a row of another."""
    return map_tensors(lambda tensor: tensor[row : row + 1], state)


def keep_rows(state: Any, rows: Sequence[int]) -> Any:
    """Return the state of some rows, which are ascending, in the memory of a state that is not used any more.

    On a CPU, fresh memory takes longer than to move the rows.
    """

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        for place, row in enumerate(rows):
            if place != row:  # a row moves only to a place of a lower number, whose own row has moved already
                tensor[place] = tensor[row]
        return tensor[: len(rows)]

    return map_tensors(keep, state)


def size_bytes(state: Any) -> int:
    """Return the size of a state."""
    return sum(tensor.nbytes for tensor in state_tensors(state))


def trim(step: Step) -> Step:
    """Return a step without the padding at the end of all its rows, and without rows of padding that no state has."""
    match step.kind:
        case Tree(depths, ends, prefix):
            rows, length = int(step.rows.max()) + 1, int(step.positions.max()) + 1
            kind: Any = Tree(depths[:rows, :length], ends[:rows, :length], prefix)
        case Extend(lengths):
            rows, length, kind = step.shape[0], max(1, int(lengths.max())), step.kind
        case Fork(parents, lengths, capacity):
            rows, length = int(np.flatnonzero(lengths)[-1]) + 1, int(lengths.max())
            kind = Fork(parents[:rows], lengths[:rows], capacity)
        case _:
            return step
    return replace(step, tokens=step.tokens[:rows, :length], kind=kind)


class TorchPlanStates(PlanStates):
    """The states of the steps of a plan.

    Args:
        model: The model.
        cache: The prefix cache.
    """

    def __init__(self, model: StateModel, cache: PrefixCache[Any]) -> None:
        super().__init__(cache)
        self._model = model

    def branch(self, tokens: Tokens, kind: Tree) -> Any:
        """Return the hidden states of trees of tokens int32[rows, length]."""
        return self._model.call("branch", tokens, kind.depths, kind.ends, self._state_of(kind.prefix))

    def prefill(self, tokens: Tokens, kind: Tree) -> tuple[Any, Any]:
        """Return the hidden states of trees of tokens int32[rows, length], and what a state holds of each token."""
        hidden, entries = self._model.call("prefill", tokens, kind.depths, kind.ends, self._state_of(kind.prefix))
        return hidden, entries

    def extend(self, tokens: Tokens, kind: Extend) -> Any:
        """Extend a state by tokens int32[rows, length], and return their hidden states."""
        start = self._state_to_extend(kind)
        hidden, state = self._model.call("extend", tokens, kind.lengths, start.state)
        self._keep(kind, state, start.capacity)
        return hidden

    def fork(self, tokens: Tokens, kind: Fork) -> tuple[Any, Any]:
        """Extend copies of rows of the current state by tokens int32[rows, length]; return hidden states and the state."""
        hidden, state = self._model.call("extend", tokens, kind.lengths, self.take_current(kind.parents))
        return hidden, state

    def take_current(self, rows: Tokens) -> Any:
        """Return a copy of some rows int32[n] of the current state."""
        assert self._current is not None
        return take_rows(self._current.state, rows)

    def _state_of(self, prefix: bytes) -> Any:
        return self._cache.get(prefix).state if prefix else None

    def _create(self, rows: int, capacity: int) -> Any:
        return self._model.call("init_state", rows, capacity)

    def _copy(self, state: Any, rows: int, capacity: int) -> Any:
        del capacity
        return take_rows(state, np.zeros(rows, np.int32))

    def _size_bytes(self, state: Any) -> int:
        return size_bytes(state)
