"""States in PyTorch: the states of the steps of a plan, and what `birdie_zmq.Model` computes from them.

A state may be overwritten by `extend` and `append`, so a cached one is copied first. The engine is not bound to the shapes
of steps, so what is only padding at the end of rows is cut off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from birdie_zmq.engine.model_api import Function, Model
from birdie_zmq.engine.planning.steps import Extend, Fork, Step, Tokens, Tree
from birdie_zmq.engine.prefix_cache import CachedPrefix, PrefixCache, capacity_for
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


@dataclass
class _CurrentState:
    """The state that the last `Extend` left; it must be copied before it is extended if ``is_cached``."""

    state: Any
    capacity: int
    is_cached: bool = False


class PlanStates:
    """The states of the steps of a plan: the current one, and those of the prefix cache.

    Args:
        model: The model.
        cache: The prefix cache.
    """

    def __init__(self, model: StateModel, cache: PrefixCache[Any]) -> None:
        self._model = model
        self._cache = cache
        self._current: _CurrentState | None = None
        self._pending_uses = Counter[bytes]()  # remaining steps of the plan that start from each prefix
        self._capacity = 0

    def start_plan(self, steps: Sequence[Step], capacity: int = 0) -> None:
        """Prepare for a plan with states of at least this capacity in tokens; its steps are computed next, in order."""
        self._current = None
        self._pending_uses = Counter(name for step in steps if (name := _prefix_of(step)))
        capacities = [step.kind.capacity for step in steps if isinstance(step.kind, Extend | Fork)]
        self._capacity = capacity_for(max([capacity, *capacities]))
        self._cache.trim(self._pending_uses)

    def clear(self) -> None:
        """Drop all states."""
        self._cache.clear()
        self._current = None

    def release(self, step: Step) -> None:
        """Count down the uses of a step's prefix; a state without uses left may be evicted."""
        name = _prefix_of(step)
        if name:
            self._pending_uses[name] -= 1
            self._pending_uses += Counter()  # drops counts of zero

    def cached_state(self, prefix: bytes) -> CachedPrefix[Any]:
        """Return the cached state of a prefix, as the bytes of its tokens."""
        return self._cache.get(prefix)

    def branch(self, tokens: Tokens, kind: Tree) -> Any:
        """Return the hidden states of trees of tokens int32[rows, length]."""
        return self._model.call("branch", tokens, kind.depths, kind.ends, self._state_of(kind.prefix))

    def prefill(self, tokens: Tokens, kind: Tree) -> tuple[Any, Any]:
        """Return the hidden states of trees of tokens int32[rows, length], and what a state holds of each token."""
        hidden, entries = self._model.call("prefill", tokens, kind.depths, kind.ends, self._state_of(kind.prefix))
        return hidden, entries

    def extend(self, tokens: Tokens, kind: Extend) -> Any:
        """Extend a state by tokens int32[rows, length], and return their hidden states."""
        start = self._state_to_extend(kind.before, len(kind.lengths))
        hidden, state = self._model.call("extend", tokens, kind.lengths, start.state)
        self._current = _CurrentState(state, start.capacity)
        if kind.after is not None and kind.after in self._pending_uses:
            self._cache.put(kind.after, CachedPrefix(state, start.capacity, size_bytes(state)))
            self._current.is_cached = True
            self._cache.trim(self._pending_uses)
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

    def _state_to_extend(self, before: bytes | None, rows: int) -> _CurrentState:
        """Return a state of `rows` rows that may be overwritten."""
        if before == b"":
            return _CurrentState(self._model.call("init_state", rows, self._capacity), self._capacity)
        if before is not None:
            cached = self._cache.get(before)
            return _CurrentState(take_rows(cached.state, np.zeros(rows, np.int32)), cached.capacity)
        current = self._current
        assert current is not None
        if not current.is_cached:
            return current
        return _CurrentState(take_rows(current.state, np.zeros(1, np.int32)), current.capacity)


def _prefix_of(step: Step) -> bytes | None:
    """Return the prefix whose cached state a step starts from, or None."""
    match step.kind:
        case Tree(prefix=name) | Extend(before=name):
            return name or None
    return None
