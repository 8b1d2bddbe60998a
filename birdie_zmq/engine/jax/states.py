"""States in JAX: executables that create, copy and extend them, and the states of the steps of a plan."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.jax.device_model import DeviceModel
from birdie_zmq.engine.jax.sharding import argument_shardings, bytes_per_device
from birdie_zmq.engine.plan_states import PlanStates
from birdie_zmq.engine.planning.steps import Extend, Fork, Tree
from birdie_zmq.engine.prefix_cache import ANY_CAPACITY, PrefixCache, capacity_for


def create_state(model: DeviceModel, rows: int, capacity: int) -> Any:
    """Create an empty state of `rows` rows with a capacity of `capacity` tokens each."""
    return _creator(model, rows, capacity)(model.params)


def _creator(model: DeviceModel, rows: int, capacity: int) -> Any:
    """Return the executable that creates an empty state."""

    def create(params: Any) -> Any:
        assert model.functions.init_state is not None
        return model.sharding.shard_rows(model.functions.init_state(params, rows, capacity))

    return model.executables.get(("create", rows, capacity), create, model.params)


def copy_state(model: DeviceModel, state: Any, rows: int, capacity: int) -> Any:
    """Repeat the row of a one-row state `rows` times, in new memory."""

    def copy(state: Any) -> Any:
        return model.sharding.shard_rows(jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), state))

    return model.executables.run(("copy", rows, capacity), copy, state)


def extend_state(
    model: DeviceModel, tokens: jax.Array, lengths: jax.Array, state: Any, capacity: int
) -> tuple[Any, Any]:
    """Extend a state, which is overwritten, and return the hidden states and the new state.

    Args:
        model: The model.
        tokens: int32[rows, length], on the devices.
        lengths: int32[rows], the number of real tokens of each row, on the devices.
        state: A state of these rows.
        capacity: Its capacity in tokens.
    """
    sharding, extend = model.sharding, model.functions.extend
    assert extend is not None

    def extend_sharded(*arguments: Any) -> Any:
        return sharding.shard_rows(extend(*arguments))

    key = ("extend", tokens.shape, capacity)
    hidden, state = model.executables.run(key, extend_sharded, model.params, tokens, lengths, state, donated=3)
    return hidden, state


def has_fixed_size(model: DeviceModel) -> bool:
    """Return whether the size of a state does not depend on its capacity, as that of a recurrence; False without states."""
    return model.functions.init_state is not None and _row_shapes(model, 256) == _row_shapes(model, 2**14)


def _row_shapes(model: DeviceModel, capacity: int) -> Any:
    """Return the shapes and dtypes of the state of one row."""
    init_state = model.functions.init_state
    assert init_state is not None
    return jax.eval_shape(lambda params: init_state(params, 1, capacity), model.params)


def row_bytes(model: DeviceModel, capacity: int) -> int:
    """Return the bytes that one row of a state takes on each of its devices."""
    state = _row_shapes(model, capacity)
    if model.sharding.mesh is None:
        return _total_bytes(state)
    return bytes_per_device(state, _creator(model, 1, capacity).output_shardings)


def fixed_share(model: DeviceModel, capacity: int) -> float:
    """Return the share of a state's bytes that does not depend on its capacity, such as the states of recurrences."""
    once, twice = (_total_bytes(_row_shapes(model, size)) for size in (capacity, 2 * capacity))
    return max(0, 2 * once - twice) / once


def _total_bytes(state: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


class JaxPlanStates(PlanStates):
    """The states of the steps of a plan.

    Args:
        model: The model.
        cache: The prefix cache.
    """

    def __init__(self, model: DeviceModel, cache: PrefixCache[Any]) -> None:
        super().__init__(cache)
        self._model = model
        self._has_fixed_size = has_fixed_size(model)

    def capacity_for(self, tokens: int) -> int:
        """Return the capacity in tokens of a state for this many tokens.

        States of a fixed size have any, so that nothing is compiled for a capacity and cached states can always be used.
        """
        return ANY_CAPACITY if self._has_fixed_size else capacity_for(tokens)

    def branch(self, tokens: jax.Array, kind: Tree) -> Any:
        """Return the hidden states of trees of tokens int32[rows, length]."""
        return self._call_tree("tree", self._model.functions.branch, tokens, kind)

    def prefill(self, tokens: jax.Array, kind: Tree) -> tuple[Any, Any]:
        """Return the hidden states of trees of tokens int32[rows, length], and what a state holds of each token."""
        hidden, entries = self._call_tree("prefill", self._model.functions.prefill, tokens, kind)
        return hidden, entries

    def _call_tree(self, name: str, function: Any, tokens: jax.Array, kind: Tree) -> Any:
        model = self._model
        cached = self._cache.get(kind.prefix) if kind.prefix else None
        layout = map(model.sharding.put_rows, (kind.depths, kind.ends))
        state, capacity = (cached.state, cached.capacity) if cached else (None, 0)
        return model.executables.run((name, tokens.shape, capacity), function, model.params, tokens, *layout, state)

    def take_current(self, rows: npt.NDArray[np.int32]) -> tuple[Any, int]:
        """Return a copy of some rows int32[n] of the current state, and its capacity in tokens."""
        assert self._current is not None
        model, current = self._model, self._current

        def take(state: Any, rows: jax.Array) -> Any:
            return model.sharding.shard_rows(jax.tree.map(lambda x: jnp.take(x, rows, axis=0), state))

        key = ("take", _row_count(current.state), len(rows), current.capacity)
        return model.executables.run(key, take, current.state, model.sharding.replicate(rows)), current.capacity

    def extend(self, tokens: jax.Array, kind: Extend) -> Any:
        """Extend a state by tokens int32[rows, length], and return their hidden states."""
        start = self._state_to_extend(kind)
        lengths = self._model.sharding.put_rows(kind.lengths)
        hidden, state = extend_state(self._model, tokens, lengths, start.state, start.capacity)
        self._keep(kind, state, start.capacity)
        return hidden

    def fork(self, tokens: jax.Array, kind: Fork) -> Any:
        """Extend copies of rows of the current state by tokens int32[rows, length], and return their hidden states."""
        return self._call_fork("fork", lambda *arguments: self._fork(*arguments)[0], tokens, kind)

    def keep_fork(self, tokens: jax.Array, kind: Fork) -> tuple[Any, Any, int]:
        """Extend copies of rows as `fork` does; return their hidden states, their state, and its capacity in tokens."""
        assert self._current is not None
        hidden, state = self._call_fork("keep-fork", self._fork, tokens, kind)
        return hidden, state, self._current.capacity

    def _call_fork(self, name: str, function: Any, tokens: jax.Array, kind: Fork) -> Any:
        assert self._current is not None
        model, state = self._model, self._current.state
        forked = (model.sharding.put_rows(kind.lengths), model.sharding.replicate(kind.parents), state)
        key = (name, tokens.shape, _row_count(state), self._current.capacity)
        return model.executables.run(key, function, model.params, tokens, *forked)

    def _fork(self, params: Any, tokens: Any, lengths: Any, parents: Any, state: Any) -> Any:
        sharding, extend = self._model.sharding, self._model.functions.extend
        assert extend is not None
        forked = sharding.shard_rows(jax.tree.map(lambda x: x[parents], state))
        hidden, state = extend(params, tokens, lengths, forked)
        return hidden, sharding.shard_rows(state)

    def _create(self, rows: int, capacity: int) -> Any:
        return create_state(self._model, rows, capacity)

    def _copy(self, state: Any, rows: int, capacity: int) -> Any:
        return copy_state(self._model, state, rows, capacity)

    def _size_bytes(self, state: Any) -> int:
        return bytes_per_device(state, argument_shardings(state))


def _row_count(state: Any) -> int:
    return int(jax.tree.leaves(state)[0].shape[0])
