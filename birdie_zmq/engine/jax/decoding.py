"""Generation in JAX: rows of one state, continued side by side.

Several tokens are decoded in one call, so that the host is asked once for all of them. A row that is not active keeps
its state: it reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import NextTokens
from birdie_zmq.engine.jax import lm_head, sampling
from birdie_zmq.engine.jax.executables import Compiled, Executables, named
from birdie_zmq.engine.jax.sharding import bytes_on_a_device, places
from birdie_zmq.engine.model_api import Model
from birdie_zmq.engine.planning.prefill_planner import PrefillChunk
from birdie_zmq.engine.planning.steps import PAD, Tokens
from birdie_zmq.engine.prefix_cache import CachedPrefix, PrefixCache
from birdie_zmq.types import SamplingParams


def create_state(programs: Executables, model: Model, params: Any, rows: int, room: int) -> Any:
    """A state of rows that have read nothing, with room for so many tokens each."""
    return creator(programs, model, params, rows, room)(params)


def creator(programs: Executables, model: Model, params: Any, rows: int, room: int) -> Any:
    """The program for it."""

    def create(params: Any) -> Any:
        assert model.init_state is not None
        return programs.placement.dealt(model.init_state(params, rows, room))

    return programs.get(("create", rows, room), create, params)


def copy_state(programs: Executables, state: Any, rows: int, room: int) -> Any:
    """A state of one row, as often as said, in memory of its own."""

    def copy(state: Any) -> Any:
        return programs.placement.dealt(jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), state))

    return programs.run(("copy", rows, room), copy, state)


def reader(programs: Executables, model: Model) -> Compiled:
    """The model's `extend`, whose state keeps lying as states lie."""
    assert model.extend is not None
    if programs.placement.mesh is None:
        return model.extend
    extend = model.extend

    def read(params: Any, tokens: jax.Array, lengths: jax.Array, state: Any) -> Any:
        hidden, state = extend(params, tokens, lengths, state)
        return programs.placement.dealt((hidden, state))

    return read


def limits_of(drawing: SamplingParams) -> sampling.Limits:
    """The limits as arguments of a program, so that one program serves all of them."""
    return sampling.Limits(
        jnp.float32(drawing.temperature),
        jnp.int32(min(drawing.top_k, 2**31 - 1)),
        jnp.float32(drawing.top_p),
        jnp.float32(drawing.min_p),
    )


def key_data(key: int) -> tuple[int, int]:
    """A key of at most 64 bits as two of 32."""
    return key >> 32, key & 0xFFFFFFFF


class JaxDecoding:
    """Rows of one state that are continued side by side.

    Args:
        model: The model's functions.
        params: Their first argument.
        programs: Where compiled programs are.
        states: Where states of shared beginnings are kept.
        vocab_size: How many tokens there are to choose from.
        decoded: How many tokens a call decodes for each row.
        rows: How many rows there are at first.
        room: The slots of a row.
        drawing: How tokens are drawn; None takes the most likely one.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        programs: Executables,
        states: PrefixCache[Any],
        *,
        vocab_size: int,
        decoded: int,
        rows: int,
        room: int,
        drawing: SamplingParams | None,
    ) -> None:
        self._model = model
        self._params = params
        self._programs = programs
        self._states = states
        self._vocab_size = vocab_size
        self._decoded = decoded
        self._room = room
        self._place = programs.placement
        self._limits = None if drawing is None else self._place.whole(limits_of(drawing))
        with named(f"the state of {rows} rows of {room} tokens"):
            self._state = create_state(programs, model, params, rows, room)
        self._last = np.zeros(rows, np.int32)
        self._drawn = np.zeros(rows, np.int32)
        self._keys = np.zeros((rows, 2), np.uint32)

    def put(self, row: int, prompt: Tokens, pieces: Sequence[PrefillChunk], key: int = 0, drawn: int = 0) -> list[int]:
        """Read a prompt int32[n] in pieces, and let a row continue it; the lengths of the steps that it took.

        Its last token is read together with the first that is decoded. Pieces of a beginning whose state is kept are
        not read again.
        """
        with named("a prompt"):
            one, begin = self._prefix(prompt, pieces)
            read = []
            for piece in pieces:
                if piece.begin < begin:
                    continue
                tokens = np.full((1, piece.size), PAD, np.int32)
                real = piece.end - piece.begin
                tokens[0, :real] = prompt[piece.begin : piece.end]
                arguments = (self._params, self._place.rows(tokens), self._place.rows(np.array([real], np.int32)), one)
                function = reader(self._programs, self._model)
                _, one = self._programs.run(("read", (1, piece.size), self._room), function, *arguments, donated=3)
                read.append(piece.size)
                if piece.is_kept:
                    self._keep(prompt[: piece.end].tobytes(), one)
                    one = copy_state(self._programs, one, 1, self._room)
            together = (self._state, one, self._place.whole(np.int32(row)))
            self._state = self._programs.run(("put", len(self._last), self._room), self._put, *together, donated=0)
        self._last[row], self._drawn[row], self._keys[row] = prompt[-1], drawn, key_data(key)
        return read

    def _prefix(self, prompt: Tokens, pieces: Sequence[PrefillChunk]) -> tuple[Any, int]:
        """A state that may be written into, of the longest beginning that is kept; and how many tokens it has read."""
        known = set(self._states.known(self._room, exactly=True))
        for piece in reversed(pieces):
            name = prompt[: piece.end].tobytes()
            if piece.is_kept and name in known:
                return copy_state(self._programs, self._states.get(name).state, 1, self._room), piece.end
        return create_state(self._programs, self._model, self._params, 1, self._room), 0

    def _keep(self, name: bytes, state: Any) -> None:
        self._states.put(name, CachedPrefix(state, self._room, bytes_on_a_device(state, places(state))))
        self._states.trim({name})

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """The next tokens [rows, k] of the active rows, k of them at once."""
        with named("a step of decoding"):
            chance = None
            if self._limits is not None:
                chance = sampling.Chance(self._place.rows(self._keys), self._place.rows(self._drawn))
            arguments = (
                self._params,
                self._state,
                self._place.rows(self._last),
                self._place.rows(active.astype(np.int32)),
                self._limits,
                chance,
            )
            key = ("decode", len(self._last), self._room, self._decoded, chance is None)
            self._state, tokens, finite = self._programs.run(key, self._decode, *arguments, donated=1)
            chosen = NextTokens(np.asarray(tokens).T, np.asarray(finite).T)
        self._last = chosen.tokens[:, -1].copy()
        self._drawn += self._decoded
        return chosen

    def narrow(self, rows: Sequence[int]) -> None:
        """Go on with some rows alone, which are numbered anew in this order."""
        kept = np.asarray(rows, np.int32)
        with named("fewer rows"):
            key = ("narrow", len(self._last), len(kept), self._room)
            self._state = self._programs.run(key, self._take, self._state, self._place.whole(kept))
        self._last, self._drawn, self._keys = self._last[kept], self._drawn[kept], self._keys[kept]

    def _decode(
        self,
        params: Any,
        state: Any,
        last: jax.Array,
        active: jax.Array,
        limits: sampling.Limits | None,
        chance: sampling.Chance | None,
    ) -> Any:
        extend, unembed = self._model.extend, self._model.unembed
        assert extend is not None
        assert unembed is not None

        def step(carry: tuple[Any, jax.Array], number: jax.Array) -> tuple[tuple[Any, jax.Array], Any]:
            state, last = carry
            hidden, state = extend(params, last[:, None], active, state)
            logits = unembed(params, hidden[:, 0])[:, : self._vocab_size]
            if limits is None or chance is None:
                token, finite = lm_head.choose(logits)
            else:
                token, finite = sampling.draw(logits, limits, chance._replace(drawn=chance.drawn + number))
            return self._place.dealt((state, token)), (token, finite)

        numbers = jnp.arange(self._decoded, dtype=jnp.int32)
        (state, _), (tokens, finite) = jax.lax.scan(step, (state, last), numbers)
        return self._place.dealt(state), *self._place.fetched((tokens, finite))

    def _put(self, state: Any, one: Any, row: jax.Array) -> Any:
        """Row 0 of one state in place of a row of another."""

        def put(all_: jax.Array, x: jax.Array) -> jax.Array:
            if self._place.mesh is None:
                return jax.lax.dynamic_update_index_in_dim(all_, x[0], row, 0)  # type: ignore[no-any-return]
            # Where rows are dealt out, each device looks whether the row is one of its own: no row travels.
            is_row = jnp.expand_dims(jnp.arange(len(all_)) == row, range(1, all_.ndim))
            return jnp.where(is_row, x, all_)

        return self._place.dealt(jax.tree.map(put, state, one))

    def _take(self, state: Any, rows: jax.Array) -> Any:
        return self._place.dealt(jax.tree.map(partial(jnp.take, indices=rows, axis=0), state))
