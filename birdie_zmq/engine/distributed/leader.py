"""The first process of a group: what it computes it tells the others, which compute the same.

Under a `Backend` everything that decides (what fits, what failed, who still waits) is this process's own. The others
follow call by call, through the key-value store of the group. The values lie in folders of so many calls; what all have
read is removed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from birdie_zmq.engine.backend import Backend, Decoding, NextTokens, PendingScores, SamplingMetadata, TokenScores
from birdie_zmq.engine.distributed import calls
from birdie_zmq.engine.distributed.process_group import GroupBroken, RankInfo
from birdie_zmq.engine.planning.prefill_planner import PrefillChunk
from birdie_zmq.engine.planning.steps import Step, Tokens
from birdie_zmq.errors import BirdieError, GroupMismatch, MalformedMessage, OutOfDeviceMemory, UsageError
from birdie_zmq.types import SamplingParams

BEGAN = "birdie-zmq/began"
"""The key under which a group's processes find the folder of all others, whose name no other group has had."""

FOLDER_CALLS = 64
_MOST_AHEAD = 512
_LOOK_S = 0.02
_WAIT_S = 10.0

AGREE_S = 30.0
"""How long the processes wait for each other after a failure."""

R = TypeVar("R")


class GroupStore(Protocol):
    """Keys and bytes that all processes of a group see: `birdie_zmq.engine.jax.distributed_runtime.Store`."""

    def set(self, key: str, value: bytes) -> None:
        """Put a value there, perhaps in place of another."""
        ...

    def get(self, key: str, timeout_s: float) -> bytes | None:
        """Wait for a value; None if it does not come in time."""
        ...

    def below(self, folder: str) -> dict[str, bytes]:
        """All keys of a folder."""
        ...

    def delete(self, folder: str) -> None:
        """Remove a folder."""
        ...


class Leader:
    """What process 0 says to the others, and hears from them.

    Args:
        store: The group's.
        place: Its own place.
    """

    def __init__(self, store: GroupStore, place: RankInfo) -> None:
        self._store = store
        self._place = place
        self.folder = f"birdie-zmq/{uuid.uuid4().hex}"
        self._told = 0
        self._removed = 0
        self._is_loaded = False
        store.set(BEGAN, self.folder.encode())

    # --- Loading -----------------------------------------------------------------------------------------------------

    def load(self, load: calls.Load) -> None:
        """Let the others load the same model."""
        self._store.set(f"{self.folder}/load", calls.encode(load))

    def prepared(self, max_length: int) -> None:
        """Tell the longest row."""
        self._store.set(f"{self.folder}/prepared", calls.encode(calls.Prepared(max_length)))

    def refusal(self) -> BirdieError | None:
        """Wait until another process says that it cannot load the model; None once all have loaded it."""
        while not self._is_loaded:
            data = self._store.get(f"{self.folder}/refused", _WAIT_S)
            if data is not None:
                told = calls.decode(data)
                if not isinstance(told, calls.Refused):
                    raise MalformedMessage(f"a process of the group told {type(told).__name__} as a refusal")
                return told.error.to_error()
        return None

    def loaded(self, backend: Backend) -> None:
        """Tell the budget, and wait until the others have loaded the model.

        Raises:
            GroupMismatch: They have loaded another.
        """
        self._store.set(f"{self.folder}/budget", calls.encode(calls.Budget(backend.budget)))
        ours = described(backend)
        for number in range(1, self._place.num_processes):
            while (data := self._store.get(f"{self.folder}/loaded/{number}", _WAIT_S)) is None:
                pass
            theirs = calls.decode(data)
            if theirs != ours:
                raise GroupMismatch(
                    f"process {number} of the group has loaded another model than process 0: {theirs} is not {ours}; "
                    "each host must have the same checkpoint, page and versions"
                )
        self._is_loaded = True

    # --- Calls -------------------------------------------------------------------------------------------------------

    def tell(self, call: calls.Call) -> int:
        """Let the others do the same; the number of the call."""
        number, self._told = self._told, self._told + 1
        self._store.set(key_of(self.folder, number), calls.encode(call))
        if self._told % FOLDER_CALLS == 0:
            self._tidy()
        return number

    def _tidy(self) -> None:
        """Remove what all have read, and wait for who is far behind."""
        while True:
            read = self._store.below(f"{self.folder}/read")
            everybody = len(read) == self._place.num_processes - 1
            slowest = min(map(int, read.values()), default=self._told) if everybody else 0
            for old in range(self._removed, slowest // FOLDER_CALLS):
                self._store.delete(f"{self.folder}/calls/{old}")
                self._removed = old + 1
            if self._told - slowest < _MOST_AHEAD:
                return
            time.sleep(_LOOK_S)

    def agree(self, number: int, error: BirdieError) -> None:
        """See that a call has failed everywhere as it did here.

        Raises:
            GroupBroken: It has not: others wait in it, or have gone on.
        """
        until = time.monotonic() + AGREE_S
        for process in range(1, self._place.num_processes):
            key = f"{self.folder}/failed/{number}/{process}"
            data = self._store.get(key, max(0.001, until - time.monotonic()))
            if data is None or calls.decode(data) != calls.Failed(error.code):
                how = "did not fail" if data is None else "failed in another way"
                raise GroupBroken(f"process {process} of the group {how} where process 0 did: {error}") from error
        self._store.delete(f"{self.folder}/failed")
        self.tell(calls.Agreed())


def check_mesh(size: int | None, devices: int, place: RankInfo) -> None:
    """Hold the size of a mesh, None for none, against the number of all devices of a group.

    Raises:
        UsageError: They differ.
    """
    if size == devices:
        return
    what = "model_args have no mesh=" if size is None else f"mesh= in model_args has {size} devices"
    raise UsageError(
        f"{what}, and this worker is a group of {place.num_processes} processes that have {devices} devices together: a group "
        f"holds one model on all of them; say for example mesh=model:{devices}, or mesh=data:N/model:M of which N times M "
        f"is {devices}"
    )


def described(backend: Backend) -> calls.LoadedHere:
    """What of a loaded model must be the same everywhere."""
    return calls.LoadedHere(backend.ability, backend.vocab_size, backend.num_parameters, backend.dtype)


def key_of(folder: str, number: int) -> str:
    """Where a call is."""
    return f"{folder}/calls/{number // FOLDER_CALLS}/{number}"


class BroadcastingBackend:
    """A backend whose calls the other processes of the group make too.

    Methods that compute raise GroupBroken where the group cannot go on: a peer is gone, or has not failed as this
    process has.

    Args:
        backend: This process's own.
        leader: Tells the others.
        is_of_runtime: Whether an error is that of the framework's runtime, and so perhaps of a peer that is gone.
    """

    def __init__(self, backend: Backend, leader: Leader, is_of_runtime: Callable[[BaseException], bool]) -> None:
        self._backend = backend
        self._leader = leader
        self._is_of_runtime = is_of_runtime
        self.name = backend.name
        self.ability = backend.ability
        self.scores_pairs = backend.scores_pairs
        self.makes_logits = backend.makes_logits
        self.vocab_size = backend.vocab_size
        self.budget = backend.budget
        self.num_parameters = backend.num_parameters
        self.dtype = backend.dtype
        self.devices = backend.devices
        self.versions = backend.versions
        self.trial_shapes = backend.trial_shapes

    @property
    def compile_seconds(self) -> float:
        """How long compiling took here."""
        return self._backend.compile_seconds

    @property
    def tracing_seconds(self) -> float:
        """How long tracing took here."""
        return self._backend.tracing_seconds

    @property
    def states_evicted(self) -> int:
        """How many states of beginnings had to go because of the bound."""
        return self._backend.states_evicted

    def known(self, room: int) -> Collection[bytes]:
        """The beginnings whose states are there: the others have the same."""
        return self._backend.known(room)

    def open(self, steps: Sequence[Step]) -> None:
        """Make ready for a plan."""
        self.led(calls.Open.of(list(steps)), lambda: self._backend.open(steps))

    def submit(self, step: Step) -> PendingScores:
        """Begin to compute the log-probabilities of a step's targets at its places."""
        number = self._leader.tell(calls.Submit(calls.ToldStep.of(step)))
        return _LeadingScores(self, number, self.tried(number, lambda: self._backend.submit(step)))

    def next_tokens(self, step: Step, drawing: SamplingMetadata | None = None) -> NextTokens:
        """The tokens that come next at the places of a step of whole rows."""
        told = None if drawing is None else calls.ToldDrawing.of(drawing)
        call = calls.Next(calls.ToldStep.of(step), told)
        return self.led(call, lambda: self._backend.next_tokens(step, drawing))

    def decoding_rows(self, capacity: int, wanted: int) -> int:
        """How many rows there is room for here.

        Raises:
            OutOfDeviceMemory: For none.
        """
        self._leader.tell(calls.CountRows(capacity, wanted))
        try:
            return self._backend.decoding_rows(capacity, wanted)
        except OutOfDeviceMemory:
            raise  # nothing was computed: the others go on as well
        except Exception as error:
            raise GroupBroken(str(error)) from error

    def decoding(self, rows: int, capacity: int, sampling: SamplingParams | None = None) -> Decoding:
        """Rows with room for `capacity` tokens each."""
        call = calls.Begin(rows, capacity, sampling)
        return _LeadingDecoding(self, self.led(call, lambda: self._backend.decoding(rows, capacity, sampling)))

    def update(self, params: Any) -> None:
        """Not for a group.

        Raises:
            UsageError: Always.
        """
        del params
        raise UsageError("the weights of a model that several processes hold cannot be replaced")

    def halve_budget(self) -> bool:
        """Make later steps smaller, on all."""
        halved = self.led(calls.Halve(), self._backend.halve_budget)
        self.budget = self._backend.budget
        return halved

    # --- Together ----------------------------------------------------------------------------------------------------

    def led(self, call: calls.Call, function: Callable[[], R]) -> R:
        """Tell the others, and do the same."""
        return self.tried(self._leader.tell(call), function)

    def tried(self, number: int, function: Callable[[], R]) -> R:
        """Do what a call of this number asks.

        Raises:
            BirdieError: It failed, here and everywhere.
            GroupBroken: It failed, and the group cannot go on.
        """
        try:
            return function()
        except BirdieError as error:
            if not isinstance(error, OutOfDeviceMemory) and self._is_of_runtime(error):
                raise GroupBroken(str(error)) from error
            self._leader.agree(number, error)
            raise
        except Exception as error:
            raise GroupBroken(f"{type(error).__name__}: {error}") from error


class _LeadingScores:
    def __init__(self, backend: BroadcastingBackend, number: int, pending: PendingScores) -> None:
        self._backend = backend
        self._number = number
        self._pending = pending

    def result(self) -> TokenScores:
        """Wait for them."""
        return self._backend.tried(self._number, self._pending.result)


class _LeadingDecoding:
    def __init__(self, backend: BroadcastingBackend, decoding: Decoding) -> None:
        self._backend = backend
        self._decoding = decoding

    def put(self, row: int, prompt: Tokens, pieces: Sequence[PrefillChunk], key: int = 0, drawn: int = 0) -> list[int]:
        """Read a prompt int32[n] in pieces, and let a row continue it."""
        planned = [(piece.begin, piece.end, piece.size, bool(piece.is_kept)) for piece in pieces]
        call = calls.Put(row, calls.Array.of(prompt), planned, int(key), int(drawn))
        return self._backend.led(call, lambda: self._decoding.put(row, prompt, pieces, key, drawn))

    def decode(self, active: npt.NDArray[np.bool_]) -> NextTokens:
        """The next tokens [rows, k] of the active rows."""
        call = calls.Decode(calls.Array.of(active))
        return self._backend.led(call, lambda: self._decoding.decode(active))

    def narrow(self, rows: Sequence[int]) -> None:
        """Go on with some rows alone."""
        self._backend.led(calls.Narrow(list(map(int, rows))), lambda: self._decoding.narrow(rows))
