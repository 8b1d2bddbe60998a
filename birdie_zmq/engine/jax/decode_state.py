"""The state of the rows of a decode batch in JAX.

A state for the longest possible answers can be many times as large as what is filled. On a CPU, creating and copying it
takes as long as several decode steps. If the model can resize states, the state has room for a few tokens at first, and
is enlarged when a row needs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from birdie_zmq.engine.jax.device_model import DeviceModel
from birdie_zmq.engine.jax.sharding import MeshSharding
from birdie_zmq.engine.jax.states import create_state
from birdie_zmq.engine.planning.steps import Step, Tokens, Tree
from birdie_zmq.engine.prefix_cache import capacity_for

FIRST_TOKENS = 64
"""The tokens that a state has room for at first, beyond those of the first text."""

_SHORTEST_PATH = 64
"""Paths are padded to this length or four, sixteen, … times as much, since each length is compiled separately."""


@dataclass(frozen=True)
class PrefilledTrees:
    """The tokens of a step of trees.

    Attributes:
        prefix: The state of the prefix that the trees continue and that rows hold too; None without one.
        base: The number of its tokens.
        capacity: The capacity of that state in tokens; 0 without one.
        entries: What a state holds of each token of the step.
        step: The step.
        kind: The kind of the step.
    """

    prefix: Any
    base: int
    capacity: int
    entries: Any
    step: Step
    kind: Tree

    def path(self, position: int, capacity: int) -> tuple[Tokens, int]:
        """Return the tokens of a text, as numbers int32[n] in the step with padding at the end, and their number.

        Args:
            position: The position of the step that is the last of the text.
            capacity: The capacity in tokens of the state that they are appended to.
        """
        row, last = self.step.rows[position], self.step.positions[position]
        found = np.flatnonzero(self.kind.ends[row, : last + 1] > last)
        size = _SHORTEST_PATH
        while size < len(found):
            size *= 4
        size = min(size, capacity - self.base)
        path = np.zeros(size, np.int32)
        path[: len(found)] = row * self.step.shape[1] + found
        return path, len(found)


@dataclass(frozen=True)
class PrefilledRows:
    """A state with a capacity in tokens, and the row of each position of a step in it."""

    state: Any
    capacity: int
    rows: Tokens


class DecodeState:
    """The state of some rows, created when the first text is put into one.

    Args:
        model: The model.
        rows: The number of rows.
        most: The capacity in tokens that a row may need.
        is_resizable: Whether the state may have less capacity and be enlarged; the model has `resize` then.

    Attributes:
        rows: The number of rows.
        capacity: The capacity of each row in tokens; 0 before the state is created.
        arrays: The state; None before it is created.
    """

    def __init__(self, model: DeviceModel, rows: int, most: int, *, is_resizable: bool) -> None:
        self._model = model
        self._most = most
        self._is_resizable = is_resizable
        self.rows = rows
        self.capacity = 0
        self.arrays: Any = None

    def create(self, tokens: int) -> None:
        """Create the state, where the first text has this many tokens."""
        self.capacity = self._capacity_for(tokens + FIRST_TOKENS)
        self.arrays = create_state(self._model, self.rows, self.capacity)

    def make_room(self, tokens: int) -> None:
        """Enlarge the state if its rows have no capacity for this many tokens."""
        if tokens <= self.capacity:
            return
        before, self.capacity = self.capacity, self._capacity_for(tokens)
        key = ("enlarge", self.rows, before, self.capacity)
        self.arrays = self._model.executables.run(key, self._enlarge, self._model.params, self.arrays)

    def put(self, row: int, prefilled: PrefilledTrees | PrefilledRows, position: int) -> None:
        """Replace a row by a text, whose last token is at a position of a prefilled step."""
        run, replicate = self._model.executables.run, self._model.sharding.replicate
        match prefilled:
            case PrefilledTrees() as trees:
                path, length = trees.path(position, self.capacity)
                sizes = (self.rows, self.capacity, trees.capacity, trees.step.shape, len(path))
                where = map(replicate, (path, np.int32(length), np.int32(row)))
                arguments = (self.arrays, self._model.params, trees.prefix, trees.entries, *where)
                put_path = partial(self._put_path, trees.capacity)
                self.arrays = run(("put-path", *sizes), put_path, *arguments, donated=0)
            case PrefilledRows(state, capacity, rows):
                count = int(jax.tree.leaves(state)[0].shape[0])
                where = map(replicate, (np.int32(rows[position]), np.int32(row)))
                key = ("put-row", self.rows, count, self.capacity, capacity)
                put_row = partial(self._put_row, capacity)
                self.arrays = run(key, put_row, self.arrays, self._model.params, state, *where, donated=0)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only some rows, and renumber them in this order."""
        if self.arrays is not None:
            key, sharding = ("narrow", self.rows, len(rows), self.capacity), self._model.sharding
            kept, take = sharding.replicate(np.asarray(rows, np.int32)), partial(take_rows, sharding)
            self.arrays = self._model.executables.run(key, take, self.arrays, kept)
        self.rows = len(rows)

    def _capacity_for(self, tokens: int) -> int:
        return min(self._most, capacity_for(tokens)) if self._is_resizable else self._most

    # --- Executables --------------------------------------------------------------------------------------------------

    def _resized(self, params: Any, state: Any, capacity: int) -> Any:
        """Return a state of a capacity in tokens with the capacity of this one."""
        if capacity == self.capacity:
            return state
        assert self._model.functions.resize is not None
        return self._model.functions.resize(params, state, self.capacity)

    def _enlarge(self, params: Any, state: Any) -> Any:
        """Return the state with its new capacity."""
        assert self._model.functions.resize is not None
        return self._model.sharding.shard_rows(self._model.functions.resize(params, state, self.capacity))

    def _put_path(
        self,
        capacity: int,
        state: Any,
        params: Any,
        prefix: Any,
        entries: Any,
        path: jax.Array,
        length: jax.Array,
        row: jax.Array,
    ) -> Any:
        """Replace a row by a prefix, of a state of this capacity in tokens, and the first tokens of a path int32[n] after it."""
        init_state, append = self._model.functions.init_state, self._model.functions.append
        assert init_state is not None
        assert append is not None
        one = init_state(params, 1, self.capacity) if prefix is None else self._resized(params, prefix, capacity)
        return replace_row(self._model.sharding, state, append(params, one, entries, path, length), row)

    def _put_row(self, capacity: int, state: Any, params: Any, other: Any, index: jax.Array, row: jax.Array) -> Any:
        """Replace a row by the row `index` of another state, of this capacity in tokens."""
        one = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1), other)
        return replace_row(self._model.sharding, state, self._resized(params, one, capacity), row)


def replace_row(sharding: MeshSharding, state: Any, one: Any, row: jax.Array) -> Any:
    """Return a state with a row replaced by row 0 of another state."""

    def replace(all_: jax.Array, x: jax.Array) -> jax.Array:
        if sharding.mesh is None:
            return jax.lax.dynamic_update_index_in_dim(all_, x[0], row, 0)  # type: ignore[no-any-return]
        # With sharded rows, each device checks whether the row is its own, so that no row is transferred.
        is_row = jnp.expand_dims(jnp.arange(len(all_)) == row, range(1, all_.ndim))
        return jnp.where(is_row, x, all_)

    return sharding.shard_rows(jax.tree.map(replace, state, one))


def take_rows(sharding: MeshSharding, state: Any, rows: jax.Array) -> Any:
    """Return some rows of a state."""
    return sharding.shard_rows(jax.tree.map(partial(jnp.take, indices=rows, axis=0), state))
