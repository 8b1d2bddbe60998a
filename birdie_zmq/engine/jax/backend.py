"""The JAX backend, which computes the steps of a model by compiled executables.

Hidden states stay on the device, or logits if the model provides nothing else. Only the scored positions are gathered,
cast to float32 and normalised there, so only a few numbers per request are copied to the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
from birdie_zmq.engine.decoding_memory import can_be_enlarged, rows_that_fit
from birdie_zmq.engine.framework_check import only_framework
from birdie_zmq.engine.jax import memory
from birdie_zmq.engine.jax.compile_cache import enable_compile_cache
from birdie_zmq.engine.jax.decode_state import DecodeState
from birdie_zmq.engine.jax.decoding import JaxDecoding
from birdie_zmq.engine.jax.device_budget import ModelSize, device_budget, rates_of
from birdie_zmq.engine.jax.device_model import DeviceModel, with_users_settings
from birdie_zmq.engine.jax.dispatch import AlternatingDispatch, Dispatch
from birdie_zmq.engine.jax.executables import Executables, model_call
from birdie_zmq.engine.jax.position_head import PositionHead
from birdie_zmq.engine.jax.probe import check_logits, check_params, probe_score, probe_vocabulary
from birdie_zmq.engine.jax.sharding import MeshSharding, argument_shardings
from birdie_zmq.engine.jax.sharding import make_mesh as make_mesh
from birdie_zmq.engine.jax.states import JaxPlanStates, fixed_share, row_bytes
from birdie_zmq.engine.model_api import LoadedModel, Model
from birdie_zmq.engine.output_checks import is_log_probability, resolve_vocab_size
from birdie_zmq.engine.planning.execution_mode import FORKS, PAIRS, ROWS, TREES, ExecutionMode
from birdie_zmq.engine.planning.shape_buckets import LEAST_DECODING_ROWS, MIN_LENGTH, StepBudget
from birdie_zmq.engine.planning.steps import Dense, Extend, Fork, Pairs, Step, Tokens, Tree
from birdie_zmq.engine.prefix_cache import ANY_CAPACITY, PrefixCache
from birdie_zmq.errors import UsageError

_CPU_BUDGET = StepBudget(tokens=1024, decoding_rows=64, decoding_bytes=2**31, enlarges_states=True, steps_ahead=2)
"""Two steps overlap (`AlternatingDispatch`). One more is submitted, because two chunks of one text cannot overlap."""


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


class JaxBackend:
    """A model's functions on JAX's default device, or on a mesh of devices.

    Args:
        loaded: The resolved return value of load_model.
        max_length: The maximum length of a row, in tokens.
        mesh: A mesh; rows of steps are sharded over its axis ``data``.

    Raises:
        ModelLoadError: A leaf of the params is not a valid argument of a jitted function.
        ModelCallError: A function raised on the small probe row.
        ModelOutputError: A function returned a value of the wrong shape or dtype.
    """

    name = "jax"

    def __init__(self, loaded: LoadedModel, max_length: int, mesh: Mesh | None = None) -> None:
        model = loaded.model
        if loaded.jit:
            check_params(model.params)
        wrapped: dict[str, Any] = {name: with_users_settings(function) for name, function in model.functions().items()}
        functions = replace(model, **wrapped)
        self._mesh = mesh
        # A bare callable gets its tokens on the default device: the sharding of its weights is not visible here.
        self._sharding = MeshSharding(mesh if loaded.jit else None)
        params = self._sharding.put_params(functions.params)
        # Without the params of the model file, so that nothing keeps weights in memory that have been replaced.
        executables = Executables(self._sharding, _dispatch(mesh))
        self._model = DeviceModel(replace(functions, params=None), params, executables, functions.vocab_size or 0)
        self._is_jitted = loaded.jit
        self.text_mode = text_mode_of(functions)
        self.pair_mode = PAIRS if self.text_mode is None or functions.score is not None else self.text_mode
        self.generation_mode = self.text_mode
        if self.text_mode is TREES and functions.prefill is None:
            self.generation_mode = FORKS
        self.shares_prefixes = self.generation_mode is TREES and functions.extend_after is not None
        self.makes_logits = functions.extend is None and functions.hidden is None
        probe_shape = (1, min(MIN_LENGTH, max_length))
        self.probe_shapes = frozenset() if loaded.jit else frozenset({probe_shape})
        if functions.score is not None:
            probe_score(functions, params, probe_shape)
        if self.text_mode is not None:
            found = probe_vocabulary(replace(functions, params=params), probe_shape, jit=loaded.jit)
            self._model.vocab_size = resolve_vocab_size(functions.vocab_size, found)
        self.vocab_size = self._model.vocab_size
        self._head = PositionHead(self._model, makes_logits=self.makes_logits)
        self.devices = [
            f"{device.platform}:{device.id} {device.device_kind}"
            for device in (jax.devices() if mesh is None else mesh.devices.flat)
        ]
        self.versions = {"jax": jax.__version__, "jaxlib": version("jaxlib")}
        weights = _weights(params if loaded.jit else model.logits)
        self.num_parameters = sum(leaf.size for leaf in weights) if weights else None
        self.budget = self._budget(weights)
        self._prefix_cache = PrefixCache[Any](self.budget.prefix_cache_bytes)
        self._states = JaxPlanStates(self._model, self._prefix_cache)
        bytes_of = Counter[str]()
        for leaf in weights:
            bytes_of[str(leaf.dtype)] += leaf.nbytes
        self.dtype = max(bytes_of, key=bytes_of.__getitem__) if bytes_of else None

    def _budget(self, weights: Sequence[Any]) -> StepBudget:
        """Return the budget of the devices that hold the model, given its weights."""
        devices = jax.devices()[:1] if self._mesh is None else list(self._mesh.local_devices)
        groups = self._sharding.data
        if devices[0].platform == "cpu":
            # The devices of a mesh compute each step together, one step after another.
            return replace(_CPU_BUDGET.scaled(groups), steps_ahead=1) if self._mesh is not None else _CPU_BUDGET
        divided = self._sharding.size // groups  # over which the weights of one copy are sharded
        size = ModelSize(*(sum(getattr(leaf, name) for leaf in weights) // divided for name in ("size", "nbytes")))
        budget = device_budget(rates_of(devices[0].device_kind), size, memory.free_bytes(devices))
        return budget.scaled(groups)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compilation."""
        return self._model.executables.compile_seconds

    @property
    def tracing_seconds(self) -> float:
        """Seconds spent on tracing."""
        return self._model.executables.tracing_seconds

    @property
    def states_evicted(self) -> int:
        """Number of states evicted from the prefix cache because of its size limit."""
        return self._prefix_cache.evicted

    # --- Plans and their states ---------------------------------------------------------------------------------------

    def cached_prefixes(self) -> Mapping[bytes, int]:
        """Return the capacity in tokens of each cached state, by the bytes of the tokens of its prefix."""
        return self._prefix_cache.capacities()

    def start_plan(self, steps: Sequence[Step], capacity: int = 0) -> None:
        """Prepare for a plan with states of at least this capacity in tokens; its steps are computed next, in order."""
        self._states.start_plan(steps, capacity)

    def update(self, params: Any) -> None:
        """Replace the weights by others with the same tree, shapes and dtypes; None if the functions take no params.

        Raises:
            UsageError: The tree, a shape or a dtype differs.
        """
        self._states.clear()
        if params is None and self._model.params is None:
            return
        self._replace(params, _signature(self._model.params), argument_shardings(self._model.params))

    def swap(self, load: Callable[[], Any]) -> None:
        """Drop the weights, then replace them by those that `load` returns, so that never both are in memory.

        If it raises, the model has no weights and cannot compute any more.

        Raises:
            UsageError: The tree, a shape or a dtype of the new weights differs.
        """
        self._states.clear()
        signature, shardings = _signature(self._model.params), argument_shardings(self._model.params)
        self._model.params = None
        self._replace(load(), signature, shardings)

    def _replace(self, params: Any, signature: Any, shardings: Any) -> None:
        params = self._sharding.put_params(params)
        if _signature(params) != signature:
            raise UsageError(
                "the new params differ from the current ones in names, shapes or dtypes; create a new BirdieZMQ for "
                "another model"
            )
        if argument_shardings(params) != shardings:
            self._model.executables.clear()  # they were compiled for the shardings of the old weights
        self._model.params = params

    def halve_budget(self) -> bool:
        """Halve the size of later steps and clear the prefix cache; return False if steps are as small as possible."""
        self._states.clear()
        if self.budget.tokens <= MIN_LENGTH * self.budget.row_unit:
            return False
        self.budget = replace(self.budget, tokens=self.budget.tokens // 2)
        return True

    # --- Steps --------------------------------------------------------------------------------------------------------

    def submit(self, step: Step, top: int = 0) -> PendingScores:
        """Start to compute the log-probabilities of a step's targets at its positions."""
        with model_call(f"tokens int32{list(step.shape)}"), self._model.executables.dispatch.step():
            if isinstance(step.kind, Pairs):
                return _PendingPairs(self._score_pairs(step.tokens, step.kind), step.rows)
            outputs = self._forward(step)
            self._states.release(step)
            return self._head.score(outputs, step, self.budget.head_bytes, top)

    def next_tokens(self, step: Step, metadata: SamplingMetadata | None = None) -> NextTokens:
        """Choose the next token at each position of a step of whole rows: the most likely one, or a sampled one."""
        with model_call(f"tokens int32{list(step.shape)}"):
            return self._head.next_tokens(self._forward(step), step, metadata).result()

    def _forward(self, step: Step) -> Any:
        """Return the hidden states or logits [rows, length, …] of a step, and read and update the states it uses."""
        tokens = self._sharding.put_rows(step.tokens)
        match step.kind:
            case Dense():
                outputs = self._forward_dense(tokens)
                if self.makes_logits:
                    check_logits(outputs, step.shape)
                return jnp.asarray(outputs)
            case Tree() as kind:
                return self._states.branch(tokens, kind)
            case Extend() as kind:
                return self._states.extend(tokens, kind)
            case Fork() as kind:
                return self._states.fork(tokens, kind)
            case Pairs():
                raise AssertionError("a step of pairs has scores, but no hidden states or logits")

    def _forward_dense(self, tokens: jax.Array) -> Any:
        functions = self._model.functions
        if not self._is_jitted:
            assert functions.logits is not None
            return functions.logits(tokens)
        function = functions.logits if self.makes_logits else functions.hidden
        return self._model.executables.run(("dense", tokens.shape), function, self._model.params, tokens)

    def _score_pairs(self, input_ids: Tokens, kind: Pairs) -> Any:
        score = self._model.functions.score
        assert score is not None

        def gathered(*arguments: Any) -> Any:
            return self._sharding.gather(score(*arguments))

        arguments = map(self._sharding.put_rows, (input_ids, kind.label_ids, kind.loss_mask))
        return self._model.executables.run(("pairs", input_ids.shape), gathered, self._model.params, *arguments)

    # --- Generation ---------------------------------------------------------------------------------------------------

    def decoding_rows(self, capacity: int, wanted: int, spare: int = 0) -> int:
        """Return how many rows of `capacity` tokens are decoded together: at most `wanted`, and as many as fit.

        Memory is left for one further row that is being prefilled and one that is cached, and for the spare rows.

        Raises:
            OutOfDeviceMemory: Not even one row fits. The message names the number of tokens that would fit.
        """
        state_capacity = self._states.capacity_for(capacity)
        size_bytes = row_bytes(self._model, state_capacity)
        if self.budget.decoding_bytes is not None and size_bytes:
            groups = self._sharding.data if wanted % self._sharding.data == 0 else 1
            wanted = min(wanted, groups * max(LEAST_DECODING_ROWS, self.budget.decoding_bytes // size_bytes))
        free = memory.free_bytes(jax.devices()[:1] if self._mesh is None else self._mesh.local_devices)
        if free is None or size_bytes == 0:
            return wanted
        rows = rows_that_fit(free, size_bytes, state_capacity, capacity, fixed_share(self._model, state_capacity))
        # The extra rows are replicated on all devices, and so is a number of rows that cannot be sharded.
        groups = self._sharding.data if (wanted + spare) % self._sharding.data == 0 else 1
        return min(wanted, rows * groups - spare)

    def decoding(self, rows: int, capacity: int, choice: TokenChoice = GREEDY, shared: bytes = b"") -> Decoding:
        """Create a decode batch of rows with a capacity of `capacity` tokens each, after a prefix that all rows share."""
        most = self._states.capacity_for(capacity)
        state = DecodeState(self._model, rows, most, is_resizable=self._enlarges_states(rows, most))
        return JaxDecoding(self._model, self._head, self._states, self.budget.tokens_per_call, state, choice, shared)

    def _enlarges_states(self, rows: int, most: int) -> bool:
        """Return whether the state of a decode batch is small at first, and enlarged up to this capacity in tokens."""
        if self._mesh is not None:  # the processes of a mesh may have different memory, and must do the same
            return False
        if not self.budget.enlarges_states or self._model.functions.resize is None or most == ANY_CAPACITY:
            return False
        free = memory.free_bytes(jax.devices()[:1])
        return can_be_enlarged(free, row_bytes(self._model, most), rows)


def _dispatch(mesh: Mesh | None) -> Dispatch:
    """Return how executables are called on the default device or on a mesh, whose devices compute each step together."""
    return AlternatingDispatch() if mesh is None and jax.default_backend() == "cpu" else Dispatch()


def text_mode_of(model: Model) -> ExecutionMode | None:
    """Return the execution mode in which a model computes texts at the least cost; None if it only has a `score`."""
    if model.branch:
        return TREES
    if model.extend:
        return FORKS
    return ROWS if model.hidden or model.logits else None


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
