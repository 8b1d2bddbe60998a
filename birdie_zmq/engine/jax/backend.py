"""The JAX backend, which computes the steps of a model by compiled executables.

Hidden states stay on the device, or logits if the model provides nothing else. Only the scored positions are gathered,
cast to float32 and normalised there, so only a few numbers per request are copied to the host.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from birdie_zmq.engine.backend import (
    GREEDY,
    Decoding,
    NextTokens,
    PendingScores,
    SamplingMetadata,
    TokenChoice,
    TokenScores,
)
from birdie_zmq.engine.framework_check import only_framework
from birdie_zmq.engine.host_memory import host_free_bytes
from birdie_zmq.engine.jax import lm_head
from birdie_zmq.engine.jax.compile_cache import enable_compile_cache
from birdie_zmq.engine.jax.decoding import (
    JaxDecoding,
    copy_state,
    create_state,
    extend_function,
    key_data,
    sampling_arrays,
    state_creator,
)
from birdie_zmq.engine.jax.executables import Compiled, Executables, model_call
from birdie_zmq.engine.jax.probe import check_logits, check_params, probe_score, probe_vocabulary
from birdie_zmq.engine.jax.sampling import SamplingArrays, SamplingKeys, sample
from birdie_zmq.engine.jax.sharding import MeshSharding, argument_shardings, bytes_per_device
from birdie_zmq.engine.jax.sharding import make_mesh as make_mesh
from birdie_zmq.engine.logits_processing import (
    LogitsProcessing,
    ProcessingArrays,
    ProcessingState,
    process_logits,
    processing_arrays,
    step_state,
)
from birdie_zmq.engine.model_api import LoadedModel, Model
from birdie_zmq.engine.output_checks import is_log_probability, resolve_vocab_size
from birdie_zmq.engine.planning.execution_mode import FORKS, PAIRS, ROWS, TREES, ExecutionMode
from birdie_zmq.engine.planning.prefix_tree import chunk_sizes
from birdie_zmq.engine.planning.shape_buckets import MIN_LENGTH, StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, Pairs, Step, Tokens, Tree
from birdie_zmq.engine.prefix_cache import CachedPrefix, PrefixCache, capacity_for
from birdie_zmq.errors import OutOfDeviceMemory, UsageError

_BUDGETS = {"cpu": StepBudget(tokens=1024)}
_ACCELERATOR_BUDGET = StepBudget(
    tokens=16_384,
    call_tokens=1024,
    row_tokens=1,
    logits_bytes=2**31,
    head_bytes=2**28,
    rows=256,
    tokens_per_call=8,
    decoding_rows=64,
)

_PREFIX_CACHE_BYTES = 2**30
"""Size limit of the prefix cache, beyond the states that the current batch needs."""

_SHARE_OF_FREE = 0.8
"""The share of free memory that the rows of a decode batch may take; the rest is for the temporaries of a step."""

_EXTRA_ROWS = 2
"""The rows beside the decode batch: one for the prompt that is being prefilled, and one cached row."""

_POSITION_COUNTS = tuple(32 << power for power in range(8))
"""The numbers of positions that the head may be applied to in one call."""

_GATHERED_LOGITS_BYTES = 2**27
"""Maximum memory for the gathered float32 logits of one call, if the model has no `unembed_part`."""

_SMALLEST_BLOCK = 1024
"""The smallest block of the vocabulary, in tokens."""


class _PendingScores:
    """The scores of a step, in chunks on the device."""

    def __init__(self, chunks: list[tuple[int, Any]]) -> None:
        self._chunks = chunks

    def result(self) -> TokenScores:
        """Wait for the scores and return them."""
        with model_call("a step"):
            columns = zip(
                *([np.asarray(column)[:count] for column in chunk] for count, chunk in self._chunks), strict=True
            )
            return TokenScores(*(np.concatenate(column) for column in columns))


class _PendingPairs:
    """The results of the model's own `score`, one for each row, and the row of each request."""

    def __init__(self, scores: Any, rows: Tokens) -> None:
        self._scores = scores
        self._rows = rows

    def result(self) -> TokenScores:
        """Wait for the scores and return them."""
        with model_call("a step"):
            loglikelihoods, greedy = (np.asarray(column)[self._rows] for column in self._scores)
        return TokenScores(loglikelihoods.astype(np.float32), greedy, is_log_probability(loglikelihoods))


class _EmptyScores:
    """The scores of a step without targets."""

    def result(self) -> TokenScores:
        """Return empty arrays."""
        return TokenScores(np.zeros(0, np.float32), np.zeros(0, np.bool_), np.zeros(0, np.bool_))


@dataclass
class _CurrentState:
    """The state that the last `Extend` left; it must be copied before it is extended if ``is_cached``."""

    state: Any
    capacity: int
    is_cached: bool


class JaxBackend:
    """A model's functions on JAX's default device, or on a mesh of devices.

    Args:
        model: The resolved return value of load_model.
        max_length: The maximum length of a row, in tokens.
        mesh: A mesh; rows of steps are sharded over its axis ``data``.

    Raises:
        ModelLoadError: A leaf of the params is not a valid argument of a jitted function.
        ModelCallError: A function raised on the small probe row.
        ModelOutputError: A function returned a value of the wrong shape or dtype.
    """

    name = "jax"

    def __init__(self, model: LoadedModel, max_length: int, mesh: Mesh | None = None) -> None:
        parts = model.parts
        if model.jit:
            check_params(parts.params)
        self._mesh = mesh
        # A bare callable gets its tokens on the default device: the sharding of its weights is not visible here.
        self._sharding = MeshSharding(mesh if model.jit else None)
        params = self._sharding.put_params(parts.params)
        self._params = params
        self._model = parts
        self._is_jitted = model.jit
        self._executables = Executables(self._sharding)
        self.text_mode = text_mode_of(parts)
        if parts.score is not None:
            self.pair_mode = PAIRS
        else:
            assert self.text_mode is not None
            self.pair_mode = self.text_mode
        self.makes_logits = parts.extend is None and parts.hidden is None
        self._scores_in_blocks = parts.unembed_part is not None and not self.makes_logits
        probe_shape = (1, min(MIN_LENGTH, max_length))
        self.probe_shapes = frozenset() if model.jit else frozenset({probe_shape})
        if parts.score is not None:
            probe_score(parts, params, probe_shape)
        self.vocab_size = parts.vocab_size or 0
        if self.text_mode is not None:
            found = probe_vocabulary(replace(parts, params=params), probe_shape, jit=model.jit)
            self.vocab_size = resolve_vocab_size(parts.vocab_size, found)
        self.budget = _BUDGETS.get(jax.default_backend(), _ACCELERATOR_BUDGET)
        if mesh is not None:
            self.budget = self.budget.scaled(MeshSharding(mesh).data)
        self._prefix_cache = PrefixCache[Any](_PREFIX_CACHE_BYTES)
        self._current: _CurrentState | None = None
        self._pending_uses = Counter[bytes]()  # remaining steps of the plan that start from each prefix
        self._capacity = 0
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
        """Seconds spent on compilation."""
        return self._executables.compile_seconds

    @property
    def tracing_seconds(self) -> float:
        """Seconds spent on tracing."""
        return self._executables.tracing_seconds

    @property
    def states_evicted(self) -> int:
        """Number of states evicted from the prefix cache because of its size limit."""
        return self._prefix_cache.evicted

    def _devices(self) -> list[jax.Device]:
        return jax.devices() if self._mesh is None else list(self._mesh.devices.flat)

    # --- Plans and their states ---------------------------------------------------------------------------------------

    def cached_prefixes(self) -> Mapping[bytes, int]:
        """Return the capacity in tokens of each cached state, by the bytes of the tokens of its prefix."""
        return self._prefix_cache.capacities()

    def start_plan(self, steps: Sequence[Step]) -> None:
        """Prepare for a plan; its steps are submitted next, in order."""
        self._current = None
        self._pending_uses = Counter(name for step in steps if (name := _prefix_of(step)))
        capacities = [step.kind.capacity for step in steps if isinstance(step.kind, Extend | Fork)]
        self._capacity = capacity_for(max(capacities, default=0))
        self._prefix_cache.trim(self._pending_uses)

    def update(self, params: Any) -> None:
        """Replace the weights by others with the same tree, shapes and dtypes; None if the functions take no params.

        Raises:
            UsageError: The tree, a shape or a dtype differs.
        """
        self._prefix_cache.clear()
        self._current = None
        if params is None and self._params is None:
            return
        params = self._sharding.put_params(params)
        before, now = _signature(self._params), _signature(params)
        if before != now:
            raise UsageError(
                "the new params differ from the current ones in names, shapes or dtypes; create a new BirdieZMQ for "
                "another model"
            )
        if argument_shardings(self._params) != argument_shardings(params):
            self._executables.clear()  # they were compiled for the shardings of the old weights
        self._params = params

    def halve_budget(self) -> bool:
        """Halve the size of later steps and clear the prefix cache; return False if steps are as small as possible."""
        self._prefix_cache.clear()
        self._current = None
        if self.budget.tokens <= MIN_LENGTH * self.budget.row_unit:
            return False
        self.budget = replace(self.budget, tokens=self.budget.tokens // 2)
        return True

    # --- Scores -------------------------------------------------------------------------------------------------------

    def submit(self, step: Step) -> PendingScores:
        """Start to compute the log-probabilities of a step's targets at its positions."""
        with model_call(f"tokens int32{list(step.shape)}"):
            if isinstance(step.kind, Pairs):
                return _PendingPairs(self._score_pairs(step.tokens, step.kind), step.rows)
            outputs = self._forward(step)
            self._release_prefix(step)
            if len(step.targets) == 0:
                return _EmptyScores()
            return _PendingScores(
                [
                    (count, self._apply_head("score", self._score, outputs, rows, positions, targets))
                    for count, (rows, positions, targets) in self._chunks(step.rows, step.positions, step.targets)
                ]
            )

    def next_tokens(self, step: Step, metadata: SamplingMetadata | None = None) -> NextTokens:
        """Choose the next token at each position of a step of whole rows: the most likely one, or a sampled one."""
        if metadata is not None and metadata.choice.processing is not None:
            return self._next_processed_tokens(step, metadata, metadata.choice.processing)
        columns = [step.rows, step.positions]
        kind: str = "greedy"
        function: Compiled = self._greedy_tokens
        arrays = None
        if metadata is not None and metadata.choice.sampling is not None:
            kind, function, arrays = "sample", self._sample, sampling_arrays(metadata.choice.sampling)
            keys = np.array([key_data(key) for key in metadata.keys], np.uint32).reshape(-1, 2)
            columns += [*keys.T, metadata.sampled]
        with model_call(f"tokens int32{list(step.shape)}"):
            outputs = self._forward(step)
            chunks = []
            for count, (rows, positions, *keys_) in self._chunks(*columns):
                chosen = self._apply_head(
                    kind, function, outputs, rows, positions, *([arrays] if arrays else []), *keys_
                )
                chunks.append([np.asarray(x)[:count] for x in chosen])
        return NextTokens(*(np.concatenate(column) for column in zip(*chunks, strict=True)))

    def _next_processed_tokens(
        self, step: Step, metadata: SamplingMetadata, processing: LogitsProcessing
    ) -> NextTokens:
        """Choose the next tokens as `next_tokens` does, from changed logits."""
        keys = np.array([key_data(key) for key in metadata.keys], np.uint32).reshape(-1, 2)
        sampling = None if metadata.choice.sampling is None else sampling_arrays(metadata.choice.sampling)
        arrays = processing_arrays(processing, self.vocab_size)
        kind = f"processed-{sampling is not None}-{processing.needs_history}"
        chunks = []
        begin = 0
        with model_call(f"tokens int32{list(step.shape)}"):
            outputs = self._forward(step)
            for count, (rows, positions, *keys_, sampled) in self._chunks(
                step.rows, step.positions, *keys.T, metadata.sampled
            ):
                at = slice(begin, begin + count)
                begin += count
                state = step_state(processing, step, metadata.sampled[at], at, self.vocab_size)
                state = jax.tree.map(lambda x, size=len(rows): _pad_rows(x, size), state)
                sampling_keys = SamplingKeys(np.stack(keys_, axis=1), sampled)  # type: ignore[arg-type]
                others = (arrays, state, sampling, None if sampling is None else sampling_keys)
                chosen = self._apply_head(kind, self._choose_processed, outputs, rows, positions, *others)
                chunks.append([np.asarray(x)[:count] for x in chosen])
        return NextTokens(*(np.concatenate(column) for column in zip(*chunks, strict=True)))

    def _release_prefix(self, step: Step) -> None:
        """Count down the uses of a step's prefix; a state without uses left may be evicted."""
        name = _prefix_of(step)
        if name:
            self._pending_uses[name] -= 1
            self._pending_uses += Counter()  # drops counts of zero

    def _chunks(self, *columns: npt.NDArray[Any]) -> Iterator[tuple[int, list[npt.NDArray[Any]]]]:
        """Split columns of equal length into zero-padded chunks of a few sizes, and yield each with its real size."""
        fitting = _GATHERED_LOGITS_BYTES * self._sharding.size // (4 * self.vocab_size)
        most = _POSITION_COUNTS[-1] if self._scores_in_blocks else max(_POSITION_COUNTS[0], fitting)
        begin = 0
        for size in chunk_sizes(len(columns[0]), tuple(count for count in _POSITION_COUNTS if count <= most), 16):
            real = min(size, len(columns[0]) - begin)
            yield real, [np.pad(column[begin : begin + real], (0, size - real)) for column in columns]
            begin += real

    def _apply_head(
        self, kind: str, function: Compiled, outputs: Any, rows: Tokens, positions: Tokens, *others: Any
    ) -> Any:
        """Apply the head, and a function of its logits, at some positions of a step.

        A separate executable gathers the positions, so that the head is not compiled again for each step's shape.
        """
        where = (self._sharding.replicate(rows), self._sharding.replicate(positions))
        key = (str(outputs.dtype), len(rows))
        gathered = self._executables.run(("gather", outputs.shape, *key), self._gather, outputs, *where)
        params = None if self.makes_logits else self._params
        return self._executables.run((kind, *key), function, params, gathered, *map(self._sharding.replicate, others))

    def _gather(self, outputs: jax.Array, rows: jax.Array, positions: jax.Array) -> jax.Array:
        """Gather positions, sharded like rows, so that each device group computes its share of the head."""
        return jnp.asarray(self._sharding.shard_rows(lm_head.gather(outputs, rows, positions)))

    def _logits(self, params: Any, gathered: jax.Array) -> jax.Array:
        """Return logits [q, v] of gathered hidden states or logits [q, …]."""
        if not self.makes_logits:
            assert self._model.unembed is not None
            gathered = self._model.unembed(params, gathered)
        return jnp.asarray(gathered[:, : self.vocab_size])

    def _score(self, params: Any, gathered: jax.Array, targets: jax.Array) -> Any:
        row_bytes = 4 * len(targets)
        if not self._scores_in_blocks or row_bytes * self.vocab_size <= self.budget.head_bytes:
            return self._sharding.gather(lm_head.score(self._logits(params, gathered), targets))
        assert self._model.unembed_part is not None
        head = functools.partial(self._model.unembed_part, params, gathered)
        block = max(_SMALLEST_BLOCK, self.budget.head_bytes // (4 * row_bytes))
        return self._sharding.gather(
            lm_head.score_in_blocks(head, targets, self.vocab_size, min(block, self.vocab_size))
        )

    def _score_pairs(self, input_ids: Tokens, kind: Pairs) -> Any:
        arguments = map(self._sharding.put_rows, (input_ids, kind.label_ids, kind.loss_mask))
        return self._executables.run(("pairs", input_ids.shape), self._pair_scores, self._params, *arguments)

    def _pair_scores(self, *arguments: Any) -> Any:
        assert self._model.score is not None
        return self._sharding.gather(self._model.score(*arguments))

    def _greedy_tokens(self, params: Any, gathered: jax.Array) -> Any:
        return self._sharding.gather(lm_head.greedy_tokens(self._logits(params, gathered)))

    def _sample(
        self,
        params: Any,
        gathered: jax.Array,
        arrays: SamplingArrays,
        high: jax.Array,
        low: jax.Array,
        sampled: jax.Array,
    ) -> Any:
        keys = SamplingKeys(jnp.stack([high, low], axis=1), sampled)
        return self._sharding.gather(sample(self._logits(params, gathered), arrays, keys))

    def _choose_processed(
        self,
        params: Any,
        gathered: jax.Array,
        processing: ProcessingArrays,
        state: ProcessingState,
        sampling: SamplingArrays | None,
        keys: SamplingKeys | None,
    ) -> Any:
        logits = process_logits(jnp, self._logits(params, gathered).astype(jnp.float32), processing, state)
        if sampling is None or keys is None:
            return self._sharding.gather(lm_head.greedy_tokens(logits))
        return self._sharding.gather(sample(logits, sampling, keys))

    # --- Steps --------------------------------------------------------------------------------------------------------

    def _forward(self, step: Step) -> Any:
        """Return the hidden states or logits [rows, length, …] of a step, and read and update the states it uses."""
        tokens = self._sharding.put_rows(step.tokens)
        match step.kind:
            case Dense():
                outputs = self._forward_dense(tokens)
                if self.makes_logits:
                    check_logits(outputs, step.shape)
                return jnp.asarray(outputs)
            case Tree(depths=depths, ends=ends, prefix=name):
                assert self._model.branch is not None
                cached = self._prefix_cache.get(name) if name else None
                layout = (
                    self._sharding.put_rows(depths),
                    self._sharding.put_rows(ends),
                    cached.state if cached else None,
                )
                key = ("tree", step.shape, cached.capacity if cached else 0)
                return self._executables.run(key, self._model.branch, self._params, tokens, *layout)
            case Extend(lengths=lengths, before=before, after=after):
                start = self._state_to_extend(before, len(lengths))
                arguments = (self._params, tokens, self._sharding.put_rows(lengths), start.state)
                key = ("extend", step.shape, start.capacity)
                function = extend_function(self._executables, self._model)
                hidden, state = self._executables.run(key, function, *arguments, donated=3)
                self._current = _CurrentState(state, start.capacity, is_cached=False)
                if after is not None and after in self._pending_uses:
                    size_bytes = bytes_per_device(state, argument_shardings(state))
                    self._prefix_cache.put(after, CachedPrefix(state, start.capacity, size_bytes))
                    self._current.is_cached = True
                    self._prefix_cache.trim(self._pending_uses)
                return hidden
            case Pairs():
                raise AssertionError("a step of pairs has scores, but no hidden states or logits")
            case Fork(parents=parents, lengths=lengths):
                assert self._current is not None
                state = self._current.state
                forked = (self._sharding.put_rows(lengths), self._sharding.replicate(parents), state)
                fork_key = ("fork", step.shape, _batch_size(state), self._current.capacity)
                return self._executables.run(fork_key, self._fork, self._params, tokens, *forked)

    def _forward_dense(self, tokens: jax.Array) -> Any:
        if not self._is_jitted:
            assert self._model.logits is not None
            return self._model.logits(tokens)
        function = self._model.logits if self.makes_logits else self._model.hidden
        return self._executables.run(("dense", tokens.shape), function, self._params, tokens)

    def _state_to_extend(self, before: bytes | None, rows: int) -> _CurrentState:
        """Return a state of `rows` rows that may be overwritten."""
        if before is None:
            current = self._current
            assert current is not None
            return self._copied_state(current.state, 1, current.capacity) if current.is_cached else current
        if before:
            cached = self._prefix_cache.get(before)
            return self._copied_state(cached.state, rows, cached.capacity)
        return self._new_state(rows, self._capacity)

    def _new_state(self, rows: int, capacity: int) -> _CurrentState:
        return _CurrentState(
            create_state(self._executables, self._model, self._params, rows, capacity), capacity, is_cached=False
        )

    def _copied_state(self, state: Any, rows: int, capacity: int) -> _CurrentState:
        return _CurrentState(copy_state(self._executables, state, rows, capacity), capacity, is_cached=False)

    def _fork(self, params: Any, tokens: Any, lengths: Any, parents: Any, state: Any) -> Any:
        assert self._model.extend is not None
        forked = self._sharding.shard_rows(jax.tree.map(lambda x: x[parents], state))
        return self._model.extend(params, tokens, lengths, forked)[0]

    # --- Generation ---------------------------------------------------------------------------------------------------

    def decoding_rows(self, capacity: int, wanted: int) -> int:
        """Return how many rows of `capacity` tokens fit, at most `wanted`.

        Memory is left for one further row that is being prefilled and one that is cached.

        Raises:
            OutOfDeviceMemory: Not even one row fits. The message names the number of tokens that would fit.
        """
        state_capacity = capacity_for(capacity)
        row_bytes = self._row_bytes(state_capacity)
        free = _free_bytes(jax.devices()[:1] if self._mesh is None else self._mesh.local_devices)
        if free is None or row_bytes == 0:
            return wanted
        rows = int(free * _SHARE_OF_FREE / row_bytes) - _EXTRA_ROWS
        if rows < 1:
            fitting = int(state_capacity * free * _SHARE_OF_FREE / row_bytes / (_EXTRA_ROWS + 1))
            raise OutOfDeviceMemory(
                f"a prompt and its answer of {capacity} tokens need {_EXTRA_ROWS + 1} states of "
                f"{row_bytes / 2**20:,.0f} MiB each, and {free / 2**20:,.0f} MiB are free: about {fitting} tokens would "
                "fit; lower max_gen_toks or max_length"
            )
        # The extra rows are replicated on all devices, and so is a number of rows that cannot be sharded.
        return min(wanted, rows * self._sharding.data if wanted % self._sharding.data == 0 else rows)

    def _row_bytes(self, capacity: int) -> int:
        """Return the bytes that one row of a state takes on each of its devices."""
        assert self._model.init_state is not None
        state = jax.eval_shape(lambda params: self._model.init_state(params, 1, capacity), self._params)  # type: ignore[misc]
        if self._sharding.mesh is None:
            return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        executable = state_creator(self._executables, self._model, self._params, 1, capacity)
        return bytes_per_device(state, executable.output_shardings)

    def decoding(self, rows: int, capacity: int, choice: TokenChoice = GREEDY) -> Decoding:
        """Create a decode batch of rows with a capacity of `capacity` tokens each; only for models with a state."""
        return JaxDecoding(
            self._model,
            self._params,
            self._executables,
            self._prefix_cache,
            vocab_size=self.vocab_size,
            tokens_per_call=self.budget.tokens_per_call,
            rows=rows,
            capacity=capacity_for(capacity),
            sampling=choice.sampling,
            processing=choice.processing,
        )


def text_mode_of(model: Model) -> ExecutionMode | None:
    """Return the execution mode in which a model computes texts at the least cost; None if it only has a `score`."""
    if model.branch:
        return TREES
    if model.extend:
        return FORKS
    return ROWS if model.hidden or model.logits else None


def _prefix_of(step: Step) -> bytes | None:
    """Return the prefix whose cached state a step starts from, or None."""
    match step.kind:
        case Tree(prefix=name) | Extend(before=name):
            return name or None
    return None


def _free_bytes(devices: Sequence[jax.Device]) -> int | None:
    """Return the smallest free memory, in bytes, of a model's devices; None if a device does not report it."""
    if devices[0].platform == "cpu":
        free = host_free_bytes()  # shared by the virtual devices of a CPU
        return None if free is None else free // len(devices)
    found = []
    for device in devices:
        statistics = device.memory_stats() or {}
        if "bytes_limit" not in statistics:
            return None
        found.append(int(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)))
    return min(found)


def _pad_rows(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Pad an array [q, …] with zeros to a number of rows."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))


def _batch_size(state: Any) -> int:
    return int(jax.tree.leaves(state)[0].shape[0])


def _signature(tree: Any) -> Any:
    """Return the tree structure, shapes and dtypes that executables are compiled for."""
    leaves = jax.tree.leaves(tree)
    return jax.tree.structure(tree), [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _weights(tree: Any) -> list[Any]:
    """Return the floating-point arrays of a pytree; none for a function that is not a pytree."""
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)]


def prepare() -> None:
    """Enable JAX's compile cache; called before the user module is imported."""
    enable_compile_cache()


def make_backend(model: LoadedModel, max_length: int, mesh: Mesh | None = None) -> JaxBackend:
    """Make the backend of a JAX model; called by `birdie_zmq.worker.engine_registry`."""
    with only_framework(model, "jax"):
        return JaxBackend(model, max_length, mesh)
