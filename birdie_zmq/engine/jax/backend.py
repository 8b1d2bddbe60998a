"""Models in JAX: the compiled steps.

Hidden states, or logits where the model gives no more, stay on the device. Only the positions that are scored are
gathered, brought to float32 and normalised there, so that a few numbers a request cross to the host.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from birdie_zmq.engine.backend import Decoding, ExecutionMode, NextTokens, PendingScores, SamplingMetadata, TokenScores
from birdie_zmq.engine.framework_check import only_framework
from birdie_zmq.engine.host_memory import host_free_bytes
from birdie_zmq.engine.jax import lm_head
from birdie_zmq.engine.jax.compile_cache import keep_programs
from birdie_zmq.engine.jax.decoding import (
    JaxDecoding,
    copy_state,
    create_state,
    creator,
    key_data,
    limits_of,
    reader,
)
from birdie_zmq.engine.jax.executables import Compiled, Executables, named
from birdie_zmq.engine.jax.probe import check_leaves, check_logits, find_vocabulary, try_score
from birdie_zmq.engine.jax.sampling import Chance, Limits, draw
from birdie_zmq.engine.jax.sharding import Placement, bytes_on_a_device, places
from birdie_zmq.engine.jax.sharding import make_mesh as make_mesh
from birdie_zmq.engine.model_api import LoadedModel, Model
from birdie_zmq.engine.output_checks import chosen_vocabulary
from birdie_zmq.engine.planning.prefix_tree import long_pieces
from birdie_zmq.engine.planning.shape_buckets import SHORTEST, StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, Pairs, Step, Tokens, Tree
from birdie_zmq.engine.prefix_cache import CachedPrefix, PrefixCache, capacity_for
from birdie_zmq.errors import OutOfDeviceMemory, UsageError
from birdie_zmq.types import SamplingParams

_BUDGETS = {"cpu": StepBudget(tokens=1024)}
_ACCELERATOR_BUDGET = StepBudget(
    tokens=16_384,
    call_tokens=1024,
    row_tokens=1,
    logits_bytes=2**31,
    head_bytes=2**28,
    rows=256,
    decoded=8,
    decoding_rows=64,
)

_STATE_BYTES = 2**30
"""What the states of beginnings may take while no batch needs them."""

_SHARE_OF_FREE = 0.8
"""How much of the free memory the rows of a generation may take; the rest is for what a step needs."""

_OTHER_ROWS = 2
"""Beside the rows that are continued there is one that reads a prompt, and one that is kept."""

_PLACE_COUNTS = tuple(32 << power for power in range(8))
"""How many positions are unembedded at once."""

_PLACES_BYTES = 2**27
"""The memory that the gathered float32 logits of one call may take, where a model gives them all at once."""

_SMALLEST_BLOCK = 1024
"""The fewest tokens of a block of the vocabulary."""


class _Pending:
    """The scores of a step, in chunks that are on the device."""

    def __init__(self, parts: list[tuple[int, Any]]) -> None:
        self._parts = parts

    def result(self) -> TokenScores:
        """Wait for them."""
        with named("a step"):
            columns = zip(
                *([np.asarray(column)[:count] for column in part] for count, part in self._parts), strict=True
            )
            return TokenScores(*(np.concatenate(column) for column in columns))


class _PendingPairs:
    """What the model's own function says of each row, of which each place names one."""

    def __init__(self, scores: Any, rows: Tokens) -> None:
        self._scores = scores
        self._rows = rows

    def result(self) -> TokenScores:
        """Wait for them."""
        with named("a step"):
            loglikelihoods, greedy = (np.asarray(column)[self._rows] for column in self._scores)
        return TokenScores(loglikelihoods.astype(np.float32), greedy, np.isfinite(loglikelihoods))


class _NothingAsked:
    def result(self) -> TokenScores:
        """Nothing: the step has no places."""
        return TokenScores(np.zeros(0, np.float32), np.zeros(0, np.bool_), np.zeros(0, np.bool_))


@dataclass
class _Register:
    """Where the last `Extend` came to; ``is_kept`` forbids to write into its memory."""

    state: Any
    room: int
    is_kept: bool


class JaxBackend:
    """A model's functions on JAX's default device, or on a mesh of devices.

    Args:
        model: What load_model returned, resolved.
        max_length: The longest row there will be.
        mesh: Over whose axis ``data`` the rows of steps are dealt out.

    Raises:
        ModelLoadError: A leaf of the params holds no value that a compiled function takes.
        ModelCallError: A function raised on a small trial row.
        ModelOutputError: It returned what has not the right form.
    """

    name = "jax"

    def __init__(self, model: LoadedModel, max_length: int, mesh: Mesh | None = None) -> None:
        parts = model.parts
        if model.jit:
            check_leaves(parts.params)
        self._mesh = mesh
        # A bare callable is given its tokens as ever: where its weights lie, only it knows.
        self._place = Placement(mesh if model.jit else None)
        params = self._place.params(parts.params)
        self._params = params
        self._model = parts
        self._is_jitted = model.jit
        self._programs = Executables(self._place)
        self.ability: ExecutionMode = ability_of(parts)
        self.scores_pairs = parts.score is not None
        self.makes_logits = parts.unembed is None or (self.ability == "rows" and parts.hidden is None)
        self._in_blocks = parts.unembed_part is not None and not self.makes_logits
        trial = (1, min(SHORTEST, max_length))
        self.trial_shapes = frozenset() if model.jit else frozenset({trial})
        if self.scores_pairs:
            try_score(parts, params, trial)
        self.vocab_size = parts.vocab_size or 0
        if self.ability != "pairs":
            found = find_vocabulary(replace(parts, params=params), self.ability, trial, jit=model.jit)
            self.vocab_size = chosen_vocabulary(parts.vocab_size, found)
        self.budget = _BUDGETS.get(jax.default_backend(), _ACCELERATOR_BUDGET)
        if mesh is not None:
            self.budget = self.budget.times(Placement(mesh).data)
        self._states = PrefixCache[Any](_STATE_BYTES)
        self._register: _Register | None = None
        self._uses = Counter[bytes]()  # how many steps of the plan still start from a state
        self._room = 0
        self.devices = [f"{device.platform}:{device.id} {device.device_kind}" for device in self._devices()]
        self.versions = {"jax": jax.__version__, "jaxlib": version("jaxlib")}
        weights = _weights(params if model.jit else parts.logits)
        self.num_parameters = sum(leaf.size for leaf in weights) if weights else None
        bytes_of = Counter[str]()
        for leaf in weights:
            bytes_of[str(leaf.dtype)] += leaf.nbytes
        self.dtype = max(bytes_of, key=bytes_of.__getitem__) if bytes_of else None

    @property
    def compile_seconds(self) -> float:
        """How long compiling took."""
        return self._programs.seconds

    @property
    def tracing_seconds(self) -> float:
        """How long tracing took."""
        return self._programs.tracing_seconds

    @property
    def states_evicted(self) -> int:
        """How many states of beginnings had to go because of the bound."""
        return self._states.evicted

    def _devices(self) -> list[jax.Device]:
        return jax.devices() if self._mesh is None else list(self._mesh.devices.flat)

    # --- Plans and their states --------------------------------------------------------------------------------------

    def known(self, room: int) -> Collection[bytes]:
        """The beginnings whose states are there and have this many slots a row, by the bytes of their tokens."""
        return self._states.known(room)

    def open(self, steps: Sequence[Step]) -> None:
        """Make ready for a plan, whose steps are submitted next, in order."""
        self._register = None
        self._uses = Counter(name for step in steps if (name := _state_of(step)))
        rooms = [step.how.room for step in steps if isinstance(step.how, Extend | Fork)]
        self._room = capacity_for(max(rooms, default=0))
        self._states.trim(self._uses)

    def update(self, params: Any) -> None:
        """Compute with other weights of the same form from now on; None where they are no argument of the functions.

        Raises:
            UsageError: They have another form.
        """
        self._states.clear()
        self._register = None
        if params is None and self._params is None:
            return
        params = self._place.params(params)
        before, now = _form(self._params), _form(params)
        if before != now:
            raise UsageError(
                "the new params have another form than those before: other names, shapes or dtypes; make a new BirdieZMQ "
                "for another model"
            )
        if places(self._params) != places(params):
            self._programs.forget()  # They were compiled for where the weights lay.
        self._params = params

    def halve_budget(self) -> bool:
        """Make later steps smaller, and forget all states; False if they are as small as can be."""
        self._states.clear()
        self._register = None
        if self.budget.tokens <= SHORTEST * self.budget.row_unit:
            return False
        self.budget = replace(self.budget, tokens=self.budget.tokens // 2)
        return True

    # --- Scores ------------------------------------------------------------------------------------------------------

    def submit(self, step: Step) -> PendingScores:
        """Begin to compute the log-probabilities of a step's targets at its places."""
        with named(f"tokens int32{list(step.shape)}"):
            if isinstance(step.how, Pairs):
                return _PendingPairs(self._score_pairs(step.tokens, step.how), step.rows)
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

    def next_tokens(self, step: Step, drawing: SamplingMetadata | None = None) -> NextTokens:
        """The tokens that come next at the places of a step of whole rows: the most likely ones, or drawn."""
        columns = [step.rows, step.positions]
        kind: str = "choose"
        function: Compiled = self._choose
        limits = None
        if drawing is not None:
            kind, function, limits = "draw", self._draw, limits_of(drawing.sampling)
            keys = np.array([key_data(key) for key in drawing.keys], np.uint32).reshape(-1, 2)
            columns += [*keys.T, drawing.drawn]
        with named(f"tokens int32{list(step.shape)}"):
            read = self._run(step)
            parts = []
            for count, (rows, positions, *by) in self._chunks(*columns):
                chosen = self._at(kind, function, read, rows, positions, *([limits] if limits else []), *by)
                parts.append([np.asarray(x)[:count] for x in chosen])
        return NextTokens(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _used(self, step: Step) -> None:
        """A state that no later step starts from may go when there is no room."""
        name = _state_of(step)
        if name:
            self._uses[name] -= 1
            self._uses += Counter()  # leaves out what has come to zero

    def _chunks(self, *columns: npt.NDArray[Any]) -> Iterator[tuple[int, list[npt.NDArray[Any]]]]:
        """Cut columns of one length into pieces of few sizes, the last padded by its zeros; with each what is real."""
        fitting = _PLACES_BYTES * self._place.size // (4 * self.vocab_size)
        most = _PLACE_COUNTS[-1] if self._in_blocks else max(_PLACE_COUNTS[0], fitting)
        begin = 0
        for size in long_pieces(len(columns[0]), tuple(count for count in _PLACE_COUNTS if count <= most), 16):
            real = min(size, len(columns[0]) - begin)
            yield real, [np.pad(column[begin : begin + real], (0, size - real)) for column in columns]
            begin += real

    def _at(self, kind: str, function: Compiled, read: Any, rows: Tokens, positions: Tokens, *others: Any) -> Any:
        """Apply the head, and a function of its logits, at some places of a step.

        The places are gathered by a program of their own, so that the head is not compiled again for each step's shape.
        """
        where = (self._place.whole(rows), self._place.whole(positions))
        key = (str(read.dtype), len(rows))
        at = self._programs.run(("gather", read.shape, *key), self._gather, read, *where)
        params = None if self.makes_logits else self._params
        return self._programs.run((kind, *key), function, params, at, *map(self._place.whole, others))

    def _gather(self, read: jax.Array, rows: jax.Array, positions: jax.Array) -> jax.Array:
        """The places are dealt out as rows are, so that each group of devices has its share of the head's work."""
        return jnp.asarray(self._place.dealt(lm_head.gather(read, rows, positions)))

    def _logits(self, params: Any, at: jax.Array) -> jax.Array:
        """Logits [q, v] of what was gathered [q, …]: hidden states, or logits already."""
        if not self.makes_logits:
            assert self._model.unembed is not None
            at = self._model.unembed(params, at)
        return jnp.asarray(at[:, : self.vocab_size])

    def _score(self, params: Any, at: jax.Array, targets: jax.Array) -> Any:
        row_bytes = 4 * len(targets)
        if not self._in_blocks or row_bytes * self.vocab_size <= self.budget.head_bytes:
            return self._place.fetched(lm_head.score(self._logits(params, at), targets))
        assert self._model.unembed_part is not None
        part = functools.partial(self._model.unembed_part, params, at)
        block = max(_SMALLEST_BLOCK, self.budget.head_bytes // (4 * row_bytes))
        return self._place.fetched(lm_head.score_in_blocks(part, targets, self.vocab_size, min(block, self.vocab_size)))

    def _score_pairs(self, input_ids: Tokens, how: Pairs) -> Any:
        arguments = map(self._place.rows, (input_ids, how.label_ids, how.loss_mask))
        return self._programs.run(("pairs", input_ids.shape), self._pair_scores, self._params, *arguments)

    def _pair_scores(self, *arguments: Any) -> Any:
        assert self._model.score is not None
        return self._place.fetched(self._model.score(*arguments))

    def _choose(self, params: Any, at: jax.Array) -> Any:
        return self._place.fetched(lm_head.choose(self._logits(params, at)))

    def _draw(
        self, params: Any, at: jax.Array, limits: Limits, high: jax.Array, low: jax.Array, drawn: jax.Array
    ) -> Any:
        chance = Chance(jnp.stack([high, low], axis=1), drawn)
        return self._place.fetched(draw(self._logits(params, at), limits, chance))

    # --- Steps -------------------------------------------------------------------------------------------------------

    def _run(self, step: Step) -> Any:
        """The hidden states or logits [rows, length, …] of a step; states are taken, made and kept on the way."""
        tokens = self._place.rows(step.tokens)
        match step.how:
            case Dense():
                read = self._rows(tokens)
                if self.makes_logits:
                    check_logits(read, step.shape)
                return jnp.asarray(read)
            case Tree(depths=depths, ends=ends, state=name):
                assert self._model.branch is not None
                kept = self._states.get(name) if name else None
                where = (self._place.rows(depths), self._place.rows(ends), kept.state if kept else None)
                key = ("branch", step.shape, kept.room if kept else 0)
                return self._programs.run(key, self._model.branch, self._params, tokens, *where)
            case Extend(lengths=lengths, before=before, after=after):
                register = self._start(before, len(lengths))
                arguments = (self._params, tokens, self._place.rows(lengths), register.state)
                key = ("read", step.shape, register.room)
                function = reader(self._programs, self._model)
                hidden, state = self._programs.run(key, function, *arguments, donated=3)
                self._register = _Register(state, register.room, is_kept=False)
                if after is not None and after in self._uses:
                    self._states.put(after, CachedPrefix(state, register.room, bytes_on_a_device(state, places(state))))
                    self._register.is_kept = True
                    self._states.trim(self._uses)
                return hidden
            case Pairs():
                raise AssertionError("a step of pairs gives scores, and nothing to be read")
            case Fork(parents=parents, lengths=lengths):
                assert self._register is not None
                state = self._register.state
                forked = (self._place.rows(lengths), self._place.whole(parents), state)
                which = ("fork", step.shape, _batch(state), self._register.room)
                return self._programs.run(which, self._fork, self._params, tokens, *forked)

    def _rows(self, tokens: jax.Array) -> Any:
        if not self._is_jitted:
            assert self._model.logits is not None
            return self._model.logits(tokens)
        function = self._model.logits if self.makes_logits else self._model.hidden
        return self._programs.run(("rows", tokens.shape), function, self._params, tokens)

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
        return _Register(create_state(self._programs, self._model, self._params, rows, room), room, is_kept=False)

    def _copied(self, state: Any, rows: int, room: int) -> _Register:
        return _Register(copy_state(self._programs, state, rows, room), room, is_kept=False)

    def _fork(self, params: Any, tokens: Any, lengths: Any, parents: Any, state: Any) -> Any:
        assert self._model.extend is not None
        forked = self._place.dealt(jax.tree.map(lambda x: x[parents], state))
        return self._model.extend(params, tokens, lengths, forked)[0]

    # --- Generation --------------------------------------------------------------------------------------------------

    def decoding_rows(self, capacity: int, wanted: int) -> int:
        """How many rows of so many tokens there is room for beside one that is being read and one that is kept.

        Raises:
            OutOfDeviceMemory: For none. It says how many tokens there is room for.
        """
        room = capacity_for(capacity)
        row_bytes = self._row_bytes(room)
        free = _free_bytes(jax.devices()[:1] if self._mesh is None else self._mesh.local_devices)
        if free is None or row_bytes == 0:
            return wanted
        rows = int(free * _SHARE_OF_FREE / row_bytes) - _OTHER_ROWS
        if rows < 1:
            fitting = int(room * free * _SHARE_OF_FREE / row_bytes / (_OTHER_ROWS + 1))
            raise OutOfDeviceMemory(
                f"a prompt and its answer of {capacity} tokens need a state of {row_bytes / 2**20:,.0f} MiB, "
                f"{_OTHER_ROWS + 1} times, and {free / 2**20:,.0f} MiB are free: about {fitting} tokens would fit; lower "
                "max_gen_toks or max_length"
            )
        # The others are one row each, which lies on all devices; rows that cannot be dealt out do so too.
        return min(wanted, rows * self._place.data if wanted % self._place.data == 0 else rows)

    def _row_bytes(self, room: int) -> int:
        """What a row of a state takes of each device that it lies on."""
        assert self._model.init_state is not None
        state = jax.eval_shape(lambda params: self._model.init_state(params, 1, room), self._params)  # type: ignore[misc]
        if self._place.mesh is None:
            return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        program = creator(self._programs, self._model, self._params, 1, room)
        return bytes_on_a_device(state, program.output_shardings)

    def decoding(self, rows: int, capacity: int, sampling: SamplingParams | None = None) -> Decoding:
        """Rows with room for `capacity` tokens each, for models with a state."""
        return JaxDecoding(
            self._model,
            self._params,
            self._programs,
            self._states,
            vocab_size=self.vocab_size,
            decoded=self.budget.decoded,
            rows=rows,
            room=capacity_for(capacity),
            drawing=sampling,
        )


def ability_of(model: Model) -> ExecutionMode:
    """The way of reading with which a model computes least."""
    if model.branch:
        return "branches"
    if model.extend:
        return "forks"
    return "rows" if model.hidden or model.logits else "pairs"


def _state_of(step: Step) -> bytes | None:
    """The beginning whose state a step starts from, if there is one."""
    match step.how:
        case Tree(state=name) | Extend(before=name):
            return name or None
    return None


def _free_bytes(devices: Sequence[jax.Device]) -> int | None:
    """What is free of the memory of the device that has least, of those that a model lies on; None if nobody says."""
    if devices[0].platform == "cpu":
        free = host_free_bytes()  # which devices that are made up share
        return None if free is None else free // len(devices)
    found = []
    for device in devices:
        statistics = device.memory_stats() or {}
        if "bytes_limit" not in statistics:
            return None
        found.append(int(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)))
    return min(found)


def _batch(state: Any) -> int:
    return int(jax.tree.leaves(state)[0].shape[0])


def _form(tree: Any) -> Any:
    """What programs are compiled for."""
    leaves = jax.tree.leaves(tree)
    return jax.tree.structure(tree), [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _weights(tree: Any) -> list[Any]:
    """The floating-point arrays of a pytree; a function that is no pytree has none."""
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)]


def prepare() -> None:
    """Before a page is imported: let JAX keep what it compiles."""
    keep_programs()


def make_backend(model: LoadedModel, max_length: int, mesh: Mesh | None = None) -> JaxBackend:
    """The engine for models in JAX; as `birdie_zmq.worker.engine_registry` asks for it."""
    with only_framework(model, "jax"):
        return JaxBackend(model, max_length, mesh)
