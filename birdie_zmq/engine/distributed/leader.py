"""Rank 0 of a process group, which broadcasts each backend call, so that all ranks make the same call.

Rank 0 alone makes the decisions above a `Backend`: what fits into memory, what failed, which requests wait. The
follower ranks make its calls one by one; they receive them through the key-value store of the group. The store holds
the calls in folders of `CALLS_PER_FOLDER`, and a folder that all ranks have read is removed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import (
    GREEDY,
    Backend,
    Decoding,
    NextTokens,
    PendingScores,
    PrefillStep,
    SamplingMetadata,
    TokenChoice,
    TokenScores,
)
from birdie_zmq.engine.distributed import calls
from birdie_zmq.engine.distributed.process_group import ProcessGroupError
from birdie_zmq.engine.mesh_shape import MeshShape
from birdie_zmq.engine.planning.steps import Step, Tokens
from birdie_zmq.errors import BirdieError, MalformedMessage, OutOfDeviceMemory, ProcessGroupMismatch, UsageError
from birdie_zmq.types import RankInfo

FOLDER_KEY = "birdie-zmq/began"
"""The key under which the name of the group's folder is stored. The folder holds all other keys; its name is unique."""

CALLS_PER_FOLDER = 64
_MAX_CALLS_AHEAD = 512
_POLL_S = 0.02
_WAIT_S = 10.0

CONFIRM_TIMEOUT_S = 30.0
"""How long the ranks wait for each other's reports after a failure."""

R = TypeVar("R")


class GroupStore(Protocol):
    """A key-value store shared by a process group: `birdie_zmq.engine.jax.distributed_runtime.KeyValueStore`."""

    def set(self, key: str, value: bytes) -> None:
        """Store a value, replacing any earlier one."""
        ...

    def get(self, key: str, timeout_s: float) -> bytes | None:
        """Wait for a value; return None after the time-out."""
        ...

    def items_under(self, folder: str) -> dict[str, bytes]:
        """Return all items of a folder."""
        ...

    def delete(self, folder: str) -> None:
        """Remove a folder."""
        ...


class Leader:
    """The messages between rank 0 and the follower ranks.

    Args:
        store: The group's key-value store.
        rank: The rank of this process, 0.
    """

    def __init__(self, store: GroupStore, rank: RankInfo) -> None:
        self._store = store
        self._rank = rank
        self.folder = f"birdie-zmq/{uuid.uuid4().hex}"
        self._sent = 0
        self._removed = 0
        self._is_loaded = False
        store.set(FOLDER_KEY, self.folder.encode())

    # --- Loading ------------------------------------------------------------------------------------------------------

    def load(self, load: calls.Load) -> None:
        """Let the follower ranks load the same model."""
        self._store.set(f"{self.folder}/load", calls.encode(load))

    def send_max_length(self, max_length: int) -> None:
        """Send the maximum length of a row, in tokens."""
        self._store.set(f"{self.folder}/max-length", calls.encode(calls.MaxLength(max_length)))

    def wait_for_load_failure(self) -> BirdieError | None:
        """Wait for a follower rank's report that it cannot load the model; return None once all have loaded it."""
        while not self._is_loaded:
            data = self._store.get(f"{self.folder}/load-failed", _WAIT_S)
            if data is not None:
                message = calls.decode(data)
                if not isinstance(message, calls.LoadFailed):
                    raise MalformedMessage(
                        f"a follower rank sent {type(message).__name__} under the key 'load-failed'; expected LoadFailed"
                    )
                return message.error.to_error()
        return None

    def wait_until_loaded(self, backend: Backend) -> None:
        """Send the step budget, and wait until the follower ranks have loaded the model.

        Raises:
            ProcessGroupMismatch: A follower rank has loaded another model.
        """
        self._store.set(f"{self.folder}/budget", calls.encode(calls.Budget(backend.budget)))
        ours = model_info(backend)
        for number in range(1, self._rank.num_processes):
            while (data := self._store.get(f"{self.folder}/loaded/{number}", _WAIT_S)) is None:
                pass
            theirs = calls.decode(data)
            if theirs != ours:
                raise ProcessGroupMismatch(
                    f"process {number} of the group has loaded another model than process 0: {theirs} is not {ours}; "
                    "give each host the same checkpoint, api.py and package versions"
                )
        self._is_loaded = True

    # --- Calls --------------------------------------------------------------------------------------------------------

    def send(self, call: calls.Call) -> int:
        """Broadcast a call, and return its number."""
        number, self._sent = self._sent, self._sent + 1
        self._store.set(call_key(self.folder, number), calls.encode(call))
        if self._sent % CALLS_PER_FOLDER == 0:
            self._remove_read_calls()
        return number

    def _remove_read_calls(self) -> None:
        """Remove the folders that all ranks have read, and wait for ranks that are far behind."""
        while True:
            read = self._store.items_under(f"{self.folder}/read")
            all_reported = len(read) == self._rank.num_processes - 1
            slowest = min(map(int, read.values()), default=self._sent) if all_reported else 0
            for old in range(self._removed, slowest // CALLS_PER_FOLDER):
                self._store.delete(f"{self.folder}/calls/{old}")
                self._removed = old + 1
            if self._sent - slowest < _MAX_CALLS_AHEAD:
                return
            time.sleep(_POLL_S)

    def confirm_failure(self, number: int, error: BirdieError) -> None:
        """Confirm that a call has failed at all ranks as it did here.

        Raises:
            ProcessGroupError: Another rank has not failed in time, or has failed with another error.
        """
        until = time.monotonic() + CONFIRM_TIMEOUT_S
        for process in range(1, self._rank.num_processes):
            key = f"{self.folder}/failed/{number}/{process}"
            data = self._store.get(key, max(0.001, until - time.monotonic()))
            if data is None or calls.decode(data) != calls.Failed(error.code):
                how = "did not fail" if data is None else "failed in another way"
                raise ProcessGroupError(f"process {process} of the group {how} where process 0 did: {error}") from error
        self._store.delete(f"{self.folder}/failed")
        self.send(calls.FailureConfirmed())


def check_mesh(mesh: MeshShape | None, devices: int, rank: RankInfo) -> None:
    """Check that a mesh has as many devices as the process group.

    Raises:
        UsageError: The numbers differ.
    """
    if mesh is not None and mesh.size == devices:
        return
    what = "model_args have no mesh=" if mesh is None else f"mesh= in model_args has {mesh.size} devices"
    raise UsageError(
        f"{what}, and this worker is a group of {rank.num_processes} processes that have {devices} devices together; the "
        f"mesh must use all of them, for example mesh=model:{devices}, or mesh=data:N/model:M with N times M equal to "
        f"{devices}"
    )


def model_info(backend: Backend) -> calls.LoadedModelInfo:
    """Return the properties of a loaded model that must be the same at all ranks."""
    text_mode, generation_mode = (
        None if mode is None else mode.name for mode in (backend.text_mode, backend.generation_mode)
    )
    return calls.LoadedModelInfo(
        text_mode,
        backend.pair_mode.name,
        generation_mode,
        backend.vocab_size,
        backend.num_parameters,
        backend.dtype,
    )


def call_key(folder: str, number: int) -> str:
    """Return the key of a call in the store."""
    return f"{folder}/calls/{number // CALLS_PER_FOLDER}/{number}"


class BroadcastingBackend:
    """A backend that broadcasts its calls, so that all ranks of the process group make them.

    Methods that compute raise ProcessGroupError if the group cannot continue: a peer is gone, or has not failed as
    this process has.

    Args:
        backend: The backend of this process.
        leader: Broadcasts the calls.
        is_runtime_error: Returns whether an error comes from the framework's runtime, so that a peer may be gone.
    """

    def __init__(self, backend: Backend, leader: Leader, is_runtime_error: Callable[[BaseException], bool]) -> None:
        self._backend = backend
        self._leader = leader
        self._is_runtime_error = is_runtime_error
        self.name = backend.name
        self.text_mode = backend.text_mode
        self.pair_mode = backend.pair_mode
        self.generation_mode = backend.generation_mode
        self.shares_prefixes = backend.shares_prefixes
        self.makes_logits = backend.makes_logits
        self.vocab_size = backend.vocab_size
        self.budget = backend.budget
        self.num_parameters = backend.num_parameters
        self.dtype = backend.dtype
        self.devices = backend.devices
        self.versions = backend.versions
        self.probe_shapes = backend.probe_shapes

    @property
    def compile_seconds(self) -> float:
        """Seconds spent on compilation at this rank."""
        return self._backend.compile_seconds

    @property
    def tracing_seconds(self) -> float:
        """Seconds spent on tracing at this rank."""
        return self._backend.tracing_seconds

    @property
    def states_evicted(self) -> int:
        """Number of states evicted from the prefix cache because of its size limit."""
        return self._backend.states_evicted

    def cached_prefixes(self) -> Mapping[bytes, int]:
        """Return the cached prefixes and their capacities, which are the same at all ranks."""
        return self._backend.cached_prefixes()

    def start_plan(self, steps: Sequence[Step], capacity: int = 0) -> None:
        """Prepare for a plan with states of at least this capacity in tokens."""
        self.broadcast(calls.StartPlan.of(list(steps), capacity), lambda: self._backend.start_plan(steps, capacity))

    def submit(self, step: Step, top: int = 0) -> PendingScores:
        """Start to compute the log-probabilities of a step's targets at its positions."""
        number = self._leader.send(calls.Submit(calls.StepPayload.of(step), top))
        return _BroadcastingScores(self, number, self.run(number, lambda: self._backend.submit(step, top)))

    def next_tokens(self, step: Step, metadata: SamplingMetadata | None = None) -> NextTokens:
        """Choose the next token at each position of a step of whole rows."""
        payload = None if metadata is None else calls.SamplingPayload.of(metadata)
        call = calls.NextTokensCall(calls.StepPayload.of(step), payload)
        return self.broadcast(call, lambda: self._backend.next_tokens(step, metadata))

    def decoding_rows(self, capacity: int, wanted: int, spare: int = 0) -> int:
        """Return how many rows can be decoded together, by the free memory of this rank's devices.

        Raises:
            OutOfDeviceMemory: Not even one row fits.
        """
        self._leader.send(calls.CountRows(capacity, wanted, spare))
        try:
            return self._backend.decoding_rows(capacity, wanted, spare)
        except OutOfDeviceMemory:
            raise  # nothing was computed, and the follower ranks continue as well
        except Exception as error:
            raise ProcessGroupError(str(error)) from error

    def decoding(self, rows: int, capacity: int, choice: TokenChoice = GREEDY, shared: bytes = b"") -> Decoding:
        """Create a decode batch of rows with a capacity of `capacity` tokens each, after a prefix that all rows share."""
        call = calls.StartDecoding(rows, capacity, choice, shared)
        decoding = self.broadcast(call, lambda: self._backend.decoding(rows, capacity, choice, shared))
        return _BroadcastingDecoding(self, decoding)

    def update(self, params: Any) -> None:
        """Reject the call: a process group cannot replace its weights.

        Raises:
            UsageError: Always.
        """
        del params
        raise UsageError("cannot replace the weights of a model that is sharded over several processes")

    def halve_budget(self) -> bool:
        """Halve the size of later steps at all ranks; return False if steps are as small as possible."""
        halved = self.broadcast(calls.HalveBudget(), self._backend.halve_budget)
        self.budget = self._backend.budget
        return halved

    # --- Broadcasting -------------------------------------------------------------------------------------------------

    def broadcast(self, call: calls.Call, function: Callable[[], R]) -> R:
        """Broadcast a call, and run it here."""
        return self.run(self._leader.send(call), function)

    def run(self, number: int, function: Callable[[], R]) -> R:
        """Run the function of a call that was broadcast under this number.

        Raises:
            BirdieError: The call failed with this error at all ranks.
            ProcessGroupError: The call failed, and the group cannot continue.
        """
        try:
            return function()
        except BirdieError as error:
            if not isinstance(error, OutOfDeviceMemory) and self._is_runtime_error(error):
                raise ProcessGroupError(str(error)) from error
            self._leader.confirm_failure(number, error)
            raise
        except Exception as error:
            raise ProcessGroupError(f"{type(error).__name__}: {error}") from error


class _BroadcastingScores:
    """Pending scores whose failure is confirmed with the follower ranks."""

    def __init__(self, backend: BroadcastingBackend, number: int, pending: PendingScores) -> None:
        self._backend = backend
        self._number = number
        self._pending = pending

    def result(self) -> TokenScores:
        """Wait for the scores and return them."""
        return self._backend.run(self._number, self._pending.result)


class _BroadcastingDecoding:
    """A decode batch whose calls are broadcast."""

    def __init__(self, backend: BroadcastingBackend, decoding: Decoding) -> None:
        self._backend = backend
        self._decoding = decoding

    def prefill(
        self,
        step: Step,
        metadata: SamplingMetadata | None = None,
        following: PrefillStep | None = None,
        kept: int = 0,
    ) -> NextTokens:
        """Compute the next step of the plan, and choose the next token at each of its positions."""
        del following, kept  # no step is started before its turn
        payload = None if metadata is None else calls.SamplingPayload.of(metadata)
        call = calls.Prefill(calls.StepPayload.of(step), payload)
        return self._backend.broadcast(call, lambda: self._decoding.prefill(step, metadata))

    def put(self, row: int, position: int, text: Tokens, key: int = 0, sampled: int = 0) -> None:
        """Let a row continue a text of the last prefill step."""
        call = calls.Put(row, position, calls.Array.of(text), int(key), int(sampled))
        self._backend.broadcast(call, lambda: self._decoding.put(row, position, text, key, sampled))

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """Decode the next k tokens of each active row; the result has the shape [rows, k]."""
        call = calls.Decode(calls.Array.of(active))
        return self._backend.broadcast(call, lambda: self._decoding.decode(active))

    def narrow(self, rows: Sequence[int]) -> None:
        """Keep only some rows, and renumber them in this order."""
        self._backend.broadcast(calls.Narrow(list(map(int, rows))), lambda: self._decoding.narrow(rows))
