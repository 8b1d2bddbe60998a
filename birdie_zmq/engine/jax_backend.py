"""Models in JAX: the compiled steps.

Hidden states, or logits where the model gives no more, stay on the device. Only the positions that are scored are
gathered, brought to float32 and normalised there, so that a few numbers a request cross to the host. Every program is
compiled before it is called, once for each shape, and the seconds are counted.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from birdie_zmq.engine import head
from birdie_zmq.engine.backend import Ability, Decoding, NextTokens, PendingScores, PlaceScores
from birdie_zmq.engine.buckets import PROMPT_PIECES, SHORTEST, StepBudget
from birdie_zmq.engine.contract import LoadedModel
from birdie_zmq.engine.planning import PAD, Branch, Fork, Read, Rows, Step, Tokens
from birdie_zmq.engine.prefixes import long_pieces
from birdie_zmq.engine.states import Kept, StateStore
from birdie_zmq.errors import BirdieError, ModelCallError, ModelOutputError, OutOfDeviceMemory

_BUDGETS = {"cpu": StepBudget(tokens=1024)}
_ACCELERATOR_BUDGET = StepBudget(
    tokens=16_384,
    call_tokens=1024,
    logits_bytes=2**31,
    head_bytes=2**28,
    rows=256,
    decoded=8,
    decoding_rows=64,
)

_STATE_BYTES = 2**30
"""What the states of beginnings may take while no batch needs them."""

_PLACE_COUNTS = tuple(32 << power for power in range(8))
"""How many positions are unembedded at once."""

_PLACES_BYTES = 2**27
"""The memory that the gathered float32 logits of one call may take, where a model gives them all at once."""

_SMALLEST_BLOCK = 1024
"""The fewest tokens of a block of the vocabulary."""

_NO_ROOM = ("RESOURCE_EXHAUSTED", "Out of memory")
"""What runtimes say; the CPU's calls it INTERNAL where a later program meets what could not be computed."""

Compiled = Callable[..., Any]


class _Pending:
    """The scores of a step, in chunks that are on the device."""

    def __init__(self, parts: list[tuple[int, Any]]) -> None:
        self._parts = parts

    def result(self) -> PlaceScores:
        """Wait for them."""
        with _named("a step"):
            columns = zip(
                *([np.asarray(column)[:count] for column in part] for count, part in self._parts), strict=True
            )
            return PlaceScores(*(np.concatenate(column) for column in columns))


class _NothingAsked:
    def result(self) -> PlaceScores:
        """Nothing: the step has no places."""
        return PlaceScores(np.zeros(0, np.float32), np.zeros(0, np.bool_), np.zeros(0, np.bool_))


@dataclass
class _Register:
    """Where the last `Read` came to; ``is_kept`` forbids to write into its memory."""

    state: Any
    room: int
    is_kept: bool


class JaxBackend:
    """A model's functions on JAX's default device.

    Args:
        model: What load_model returned, resolved.
        max_length: The longest row there will be.

    Raises:
        ModelCallError: A function raised on a small trial row.
        ModelOutputError: It returned what has not the right form.
    """

    name = "jax"

    def __init__(self, model: LoadedModel, max_length: int) -> None:
        parts = model.parts
        # Arrays of NumPy would be copied to the device in every step.
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, parts.params)
        self._params = params
        self._model = parts
        self._is_jitted = model.jit
        self._programs: dict[Any, Compiled] = {}
        self.compile_seconds = 0.0
        self.ability: Ability = "branches" if parts.branch else "forks" if parts.extend else "rows"
        self.makes_logits = parts.unembed is None or (self.ability == "rows" and parts.hidden is None)
        trial = (1, min(SHORTEST, max_length))
        self._in_blocks = parts.unembed_part is not None and not self.makes_logits
        found = self._trial(trial)
        self.trial_shapes = frozenset() if model.jit else frozenset({trial})
        if parts.vocab_size is not None and parts.vocab_size > found:
            raise ModelOutputError(f"the model names vocab_size {parts.vocab_size}, but its logits have {found}")
        self.vocab_size = parts.vocab_size or found
        self.budget = _BUDGETS.get(jax.default_backend(), _ACCELERATOR_BUDGET)
        self._states = StateStore[Any](_STATE_BYTES)
        self._register: _Register | None = None
        self._uses = Counter[bytes]()  # how many steps of the plan still start from a state
        self._room = 0
        self.devices = [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]
        self.versions = {"jax": jax.__version__, "jaxlib": version("jaxlib")}
        weights = _weights(params if model.jit else parts.logits)
        self.num_parameters = sum(leaf.size for leaf in weights) if weights else None
        bytes_of = Counter[str]()
        for leaf in weights:
            bytes_of[str(leaf.dtype)] += leaf.nbytes
        self.dtype = max(bytes_of, key=bytes_of.__getitem__) if bytes_of else None

    @property
    def states_evicted(self) -> int:
        """How many states of beginnings had to go because of the bound."""
        return self._states.evicted

    # --- Plans and their states --------------------------------------------------------------------------------------

    def known(self, room: int) -> Collection[bytes]:
        """The beginnings whose states are there and have this many slots a row, by the bytes of their tokens."""
        return self._states.known(room)

    def open(self, steps: Sequence[Step]) -> None:
        """Make ready for a plan, whose steps are submitted next, in order."""
        self._register = None
        self._uses = Counter(name for step in steps if (name := _state_of(step)))
        rooms = [step.how.room for step in steps if isinstance(step.how, Read | Fork)]
        self._room = _rounded(max(rooms, default=0))
        self._states.trim(self._uses)

    def halve_budget(self) -> bool:
        """Make later steps smaller, and forget all states; False if they are as small as can be."""
        self._states.clear()
        self._register = None
        if self.budget.tokens <= SHORTEST:
            return False
        self.budget = replace(self.budget, tokens=self.budget.tokens // 2)
        return True

    # --- Scores ------------------------------------------------------------------------------------------------------

    def submit(self, step: Step) -> PendingScores:
        """Begin to compute the log-probabilities of a step's targets at its places."""
        with _named(f"tokens int32{list(step.shape)}"):
            read = self._run(step)
            self._used(step)
            if len(step.targets) == 0:
                return _NothingAsked()
            return _Pending(
                [
                    (count, self._at("score", self._score, read, rows, positions, targets))
                    for count, (rows, positions, targets) in self._chunks(step.rows, step.positions, step.targets)
                ]
            )

    def next_tokens(self, step: Step) -> NextTokens:
        """Greedy choices at the places of a step of whole rows."""
        with _named(f"tokens int32{list(step.shape)}"):
            read = self._run(step)
            parts = [
                [np.asarray(x)[:count] for x in self._at("choose", self._choose, read, rows, positions)]
                for count, (rows, positions) in self._chunks(step.rows, step.positions)
            ]
        return NextTokens(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _used(self, step: Step) -> None:
        """A state that no later step starts from may go when there is no room."""
        name = _state_of(step)
        if name:
            self._uses[name] -= 1
            self._uses += Counter()  # leaves out what has come to zero

    def _chunks(self, *columns: Tokens) -> Iterator[tuple[int, list[Tokens]]]:
        """Cut columns of one length into pieces of few sizes, the last padded by its zeros; with each what is real."""
        most = _PLACE_COUNTS[-1] if self._in_blocks else max(_PLACE_COUNTS[0], _PLACES_BYTES // (4 * self.vocab_size))
        begin = 0
        for size in long_pieces(len(columns[0]), tuple(count for count in _PLACE_COUNTS if count <= most), 16):
            real = min(size, len(columns[0]) - begin)
            yield real, [np.pad(column[begin : begin + real], (0, size - real)) for column in columns]
            begin += real

    def _at(self, kind: str, function: Compiled, read: Any, rows: Tokens, positions: Tokens, *others: Tokens) -> Any:
        """Apply the head, and a function of its logits, at some places of a step.

        The places are gathered by a program of their own, so that the head is not compiled again for each step's shape.
        """
        where = (jnp.asarray(rows), jnp.asarray(positions))
        gather = self._compiled(("gather", read.shape, str(read.dtype), len(rows)), head.gather, read, *where)
        arguments = (None if self.makes_logits else self._params, gather(read, *where), *map(jnp.asarray, others))
        return self._compiled((kind, str(read.dtype), len(rows)), function, *arguments)(*arguments)

    def _logits(self, params: Any, at: jax.Array) -> jax.Array:
        """Logits [q, v] of what was gathered [q, …]: hidden states, or logits already."""
        if not self.makes_logits:
            assert self._model.unembed is not None
            at = self._model.unembed(params, at)
        return jnp.asarray(at[:, : self.vocab_size])

    def _score(self, params: Any, at: jax.Array, targets: jax.Array) -> Any:
        row_bytes = 4 * len(targets)
        if not self._in_blocks or row_bytes * self.vocab_size <= self.budget.head_bytes:
            return head.score(self._logits(params, at), targets)
        assert self._model.unembed_part is not None
        part = functools.partial(self._model.unembed_part, params, at)
        block = max(_SMALLEST_BLOCK, self.budget.head_bytes // (4 * row_bytes))
        return head.score_in_blocks(part, targets, self.vocab_size, min(block, self.vocab_size))

    def _choose(self, params: Any, at: jax.Array) -> Any:
        return head.choose(self._logits(params, at))

    # --- Steps -------------------------------------------------------------------------------------------------------

    def _run(self, step: Step) -> Any:
        """The hidden states or logits [rows, length, …] of a step; states are taken, made and kept on the way."""
        tokens = jnp.asarray(step.tokens)
        match step.how:
            case Rows():
                read = self._rows(tokens)
                if self.makes_logits:
                    _vocabulary(read, step.shape)
                return jnp.asarray(read)
            case Branch(depths=depths, ends=ends, state=name):
                assert self._model.branch is not None
                kept = self._states.get(name) if name else None
                where = (jnp.asarray(depths), jnp.asarray(ends), kept.state if kept else None)
                program = self._compiled(
                    ("branch", step.shape, kept.room if kept else 0), self._model.branch, self._params, tokens, *where
                )
                return program(self._params, tokens, *where)
            case Read(lengths=lengths, before=before, after=after):
                register = self._start(before, len(lengths))
                arguments = (self._params, tokens, jnp.asarray(lengths), register.state)
                program = self._compiled(("read", step.shape, register.room), self._model.extend, *arguments, donated=3)
                hidden, state = program(*arguments)
                self._register = _Register(state, register.room, is_kept=False)
                if after is not None and after in self._uses:
                    self._states.put(after, Kept(state, register.room, sum(x.nbytes for x in jax.tree.leaves(state))))
                    self._register.is_kept = True
                    self._states.trim(self._uses)
                return hidden
            case Fork(parents=parents, lengths=lengths):
                assert self._register is not None
                state = self._register.state
                forked = (jnp.asarray(lengths), jnp.asarray(parents), state)
                program = self._compiled(
                    ("fork", step.shape, _batch(state), self._register.room), self._fork, self._params, tokens, *forked
                )
                return program(self._params, tokens, *forked)

    def _rows(self, tokens: jax.Array) -> Any:
        if not self._is_jitted:
            assert self._model.logits is not None
            return self._model.logits(tokens)
        function = self._model.logits if self.makes_logits else self._model.hidden
        return self._compiled(("rows", tokens.shape), function, self._params, tokens)(self._params, tokens)

    def _start(self, before: bytes | None, rows: int) -> _Register:
        """A state that may be written into, for so many rows."""
        if before is None:
            register = self._register
            assert register is not None
            return self._copied(register.state, 1, register.room) if register.is_kept else register
        if before:
            kept = self._states.get(before)
            return self._copied(kept.state, rows, kept.room)
        return self._new_state(rows, self._room)

    def _new_state(self, rows: int, room: int) -> _Register:
        def create(params: Any) -> Any:
            assert self._model.init_state is not None
            return self._model.init_state(params, rows, room)

        return _Register(
            self._compiled(("create", rows, room), create, self._params)(self._params), room, is_kept=False
        )

    def _copied(self, state: Any, rows: int, room: int) -> _Register:
        def copy(state: Any) -> Any:
            return jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), state)

        return _Register(self._compiled(("copy", rows, room), copy, state)(state), room, is_kept=False)

    def _fork(self, params: Any, tokens: Any, lengths: Any, parents: Any, state: Any) -> Any:
        assert self._model.extend is not None
        return self._model.extend(params, tokens, lengths, jax.tree.map(lambda x: x[parents], state))[0]

    def _compiled(self, key: Any, function: Any, *arguments: Any, donated: int | None = None) -> Compiled:
        """The program for arguments of these shapes, which the key tells apart."""
        program = self._programs.get(key)
        if program is None:
            lowered = jax.jit(function, donate_argnums=() if donated is None else donated).lower(*arguments)
            began = time.monotonic()
            program = self._programs[key] = lowered.compile()
            self.compile_seconds += time.monotonic() - began
        return program

    # --- Generation --------------------------------------------------------------------------------------------------

    def decoding(self, rows: int, capacity: int) -> Decoding:
        """Rows with room for `capacity` tokens each, for models with a state."""
        return _Decoding(self, rows, _rounded(capacity + 2 * self.budget.decoded))

    # --- The trial ---------------------------------------------------------------------------------------------------

    def _trial(self, shape: tuple[int, int]) -> int:
        """The size of the vocabulary, from a row that costs little; jitted functions are only traced for it."""
        if not self._is_jitted:
            assert self._model.logits is not None
            with _named(f"tokens int32{list(shape)}"):
                returned = self._model.logits(jnp.zeros(shape, jnp.int32))
            return _vocabulary(returned, shape)
        with _named(f"tokens int32{list(shape)}"):
            returned = jax.eval_shape(functools.partial(self._trial_logits, shape), self._params)
        return _vocabulary(returned, shape)

    def _trial_logits(self, shape: tuple[int, int], params: Any) -> Any:
        model, tokens = self._model, jnp.zeros(shape, jnp.int32)
        if self.makes_logits:
            assert model.logits is not None
            return model.logits(params, tokens)
        assert model.unembed is not None
        if self.ability == "rows":
            assert model.hidden is not None
            read = model.hidden(params, tokens)
        else:
            assert model.init_state is not None
            assert model.extend is not None
            state = model.init_state(params, shape[0], _rounded(shape[1]))
            returned = model.extend(params, tokens, jnp.full(shape[0], shape[1], jnp.int32), state)
            read = _extended(returned, state)
        if getattr(read, "shape", ())[:2] != shape or len(read.shape) != 3:
            raise ModelOutputError(
                f"for tokens int32{list(shape)} the model must return hidden states float[{shape[0]}, {shape[1]}, width], "
                f"but returned {_described(read)}"
            )
        return model.unembed(params, read.reshape(-1, read.shape[-1])).reshape(*shape, -1)


class _Decoding:
    """Rows of one state that are continued side by side."""

    def __init__(self, backend: JaxBackend, rows: int, capacity: int) -> None:
        self._backend = backend
        self._rows = rows
        self._capacity = capacity
        self._state = backend._new_state(rows, capacity).state
        self._last = np.zeros(rows, np.int32)

    def put(self, row: int, prompt: Tokens) -> list[int]:
        """Read a prompt int32[n], and let a row continue it; the lengths of the steps that it took.

        Its last token is read together with the first that is decoded.
        """
        backend = self._backend
        self._last[row] = prompt[-1]
        tokens = prompt[:-1]
        sizes = long_pieces(len(tokens), PROMPT_PIECES, backend.budget.call_tokens) if len(tokens) else []
        with _named("a prompt"):
            one, at = backend._new_state(1, self._capacity).state, 0
            for size in sizes:
                real = min(size, len(tokens) - at)
                piece = np.full((1, size), PAD, np.int32)
                piece[0, :real] = tokens[at : at + real]
                arguments = (backend._params, jnp.asarray(piece), jnp.asarray([real], jnp.int32), one)
                key = ("read", (1, size), self._capacity)
                _, one = backend._compiled(key, backend._model.extend, *arguments, donated=3)(*arguments)
                at += real
            together = (self._state, one, jnp.int32(row))
            program = backend._compiled(("put", self._rows, self._capacity), _put, *together, donated=0)
            self._state = program(*together)
        return sizes

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """The next tokens [rows, k] of the active rows, greedily, k of them at once."""
        backend = self._backend
        with _named("a step of decoding"):
            arguments = (backend._params, self._state, jnp.asarray(self._last), jnp.asarray(active))
            program = backend._compiled(("decode", self._rows, self._capacity), self._decode, *arguments, donated=1)
            self._state, tokens, finite = program(*arguments)
            chosen = NextTokens(np.asarray(tokens).T, np.asarray(finite).T)
        self._last = chosen.tokens[:, -1].copy()
        return chosen

    def _decode(self, params: Any, state: Any, last: jax.Array, active: jax.Array) -> Any:
        model = self._backend._model
        assert model.extend is not None
        assert model.unembed is not None

        def step(carry: tuple[Any, jax.Array], _: None) -> tuple[tuple[Any, jax.Array], tuple[jax.Array, jax.Array]]:
            state, last = carry
            hidden, state = model.extend(params, last[:, None], active.astype(jnp.int32), state)  # type: ignore[misc]
            token, finite = head.choose(model.unembed(params, hidden[:, 0])[:, : self._backend.vocab_size])  # type: ignore[misc]
            return (state, token), (token, finite)

        (state, _), (tokens, finite) = jax.lax.scan(step, (state, last), length=self._backend.budget.decoded)
        return state, tokens, finite


def _put(state: Any, one: Any, row: jax.Array) -> Any:
    """Row 0 of one state in place of a row of another."""
    return jax.tree.map(lambda all_, x: jax.lax.dynamic_update_index_in_dim(all_, x[0], row, 0), state, one)


def _state_of(step: Step) -> bytes | None:
    """The beginning whose state a step starts from, if there is one."""
    match step.how:
        case Branch(state=name) | Read(before=name):
            return name or None
    return None


def _rounded(room: int) -> int:
    """Slots for so many tokens; few numbers, since each is compiled for."""
    if room > 4096:
        return -(-room // 4096) * 4096
    return max(256, 1 << max(0, room - 1).bit_length())


def _batch(state: Any) -> int:
    return int(jax.tree.leaves(state)[0].shape[0])


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say of an error of the model's own function what it was called with.

    Raises:
        OutOfDeviceMemory: The device has no room for it.
        ModelCallError: Any other error that is not ours.
    """
    try:
        yield
    except BirdieError:
        raise
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and any(words in str(error) for words in _NO_ROOM):
            raise OutOfDeviceMemory(f"the device has no room for {what}: {str(error).splitlines()[0]}") from error
        raise ModelCallError(f"the model's function failed on {what}: {type(error).__name__}: {error}") from error


def _weights(tree: Any) -> list[Any]:
    """The floating-point arrays of a pytree; a function that is no pytree has none."""
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _described(value: Any) -> str:
    found, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return f"a {type(value).__name__}" if found is None or dtype is None else f"{dtype}{list(found)}"


def _extended(returned: Any, state: Any) -> Any:
    """The hidden states that `extend` returned, once its state is seen to be of the form that it was given.

    Raises:
        ModelOutputError: It did not return both, or its state has changed its form.
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ModelOutputError(f"extend must return (hidden, state), but returned a {type(returned).__name__}")
    forms = [
        (jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)])
        for tree in (state, returned[1])
    ]
    if forms[0] != forms[1]:
        raise ModelOutputError(
            f"extend must return a state of the form that it was given, but {forms[0][1]} became {forms[1][1]}"
        )
    return returned[0]


def _vocabulary(returned: Any, shape: tuple[int, ...]) -> int:
    """The last axis of what must be logits for tokens of this shape.

    Raises:
        ModelOutputError: It is not a floating-point array [*shape, vocabulary].
    """
    found, dtype = getattr(returned, "shape", None), getattr(returned, "dtype", None)
    if found is None or dtype is None:
        described = f"a {type(returned).__name__}"
        if isinstance(returned, tuple | list):
            described += f" of {len(returned)}; if it holds logits and something else, return the logits alone"
        raise ModelOutputError(f"the model must return an array of logits, but returned {described}")
    if len(found) != 3 or tuple(found[:2]) != tuple(shape) or found[2] < 1:
        raise ModelOutputError(
            f"for tokens int32{list(shape)} the model must return logits float[{shape[0]}, {shape[1]}, vocabulary], "
            f"but returned {dtype}{list(found)}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ModelOutputError(f"the model must return floating-point logits, but returned {dtype}{list(found)}")
    return int(found[2])
