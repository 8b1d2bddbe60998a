"""A follower rank of a process group: it makes the same backend calls as rank 0, and discards the results."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from birdie_zmq.engine.backend import Backend, Decoding, PendingScores
from birdie_zmq.engine.distributed import calls
from birdie_zmq.engine.distributed.leader import (
    CALLS_PER_FOLDER,
    CONFIRM_TIMEOUT_S,
    FOLDER_KEY,
    GroupStore,
    call_key,
    model_info,
)
from birdie_zmq.engine.distributed.process_group import ProcessGroupError
from birdie_zmq.errors import BirdieError, MalformedMessage, OutOfDeviceMemory
from birdie_zmq.types import ErrorReport, RankInfo

_WAIT_S = 60.0

T = TypeVar("T")


class Follower:
    """The messages between a follower rank and rank 0.

    Args:
        store: The group's key-value store.
        rank: The rank of this process.
        host: The name of this host, for error messages.
    """

    def __init__(self, store: GroupStore, rank: RankInfo, host: str) -> None:
        self._store = store
        self._rank = rank
        self._host = host
        self._folder = self._wait(FOLDER_KEY).decode()
        self._received = 0

    def _wait(self, key: str) -> bytes:
        while (data := self._store.get(key, _WAIT_S)) is None:
            pass
        return data

    def _receive(self, name: str, kind: type[T]) -> T:
        message = calls.decode(self._wait(f"{self._folder}/{name}"))
        if not isinstance(message, kind):
            raise MalformedMessage(
                f"rank 0 sent {type(message).__name__} under the key {name!r}; expected {kind.__name__}"
            )
        return message

    def load(self) -> calls.Load:
        """Wait for the message that names the model to load, and return it."""
        return self._receive("load", calls.Load)

    def max_length(self) -> int:
        """Wait for the maximum length of a row in tokens, and return it."""
        return self._receive("max-length", calls.MaxLength).max_length

    def report_load_failure(self, error: BirdieError) -> None:
        """Report that this process cannot load the model, and wait until the group ends."""
        report = ErrorReport.of(error)
        named = msgspec.structs.replace(report, message=f"{self._rank} of the group, at {self._host}: {report.message}")
        self._store.set(f"{self._folder}/load-failed", calls.encode(calls.LoadFailed(named)))
        self._wait(f"{self._folder}/nothing")

    def report_loaded(self, backend: Backend) -> None:
        """Report the loaded model, and adopt the step budget of rank 0."""
        self._store.set(f"{self._folder}/loaded/{self._rank.process_id}", calls.encode(model_info(backend)))
        backend.budget = self._receive("budget", calls.Budget).budget

    def receive(self) -> tuple[int, calls.Call]:
        """Wait for the next call, and return its number and the call."""
        number, self._received = self._received, self._received + 1
        message = calls.decode(self._wait(call_key(self._folder, number)))
        if not isinstance(message, calls.Call):
            raise MalformedMessage(f"rank 0 sent {type(message).__name__} as call {number}; expected a backend call")
        if self._received % CALLS_PER_FOLDER == 0:
            self._store.set(f"{self._folder}/read/{self._rank.process_id}", str(self._received).encode())
        return number, message

    def report_failure(self, number: int, error: BirdieError) -> None:
        """Report that a call has failed at this rank."""
        key = f"{self._folder}/failed/{number}/{self._rank.process_id}"
        self._store.set(key, calls.encode(calls.Failed(error.code)))


@dataclass(frozen=True)
class _Pending:
    """The pending scores of a submitted step, and the number of the call."""

    number: int
    scores: PendingScores


class FollowerRunner:
    """Runs the calls of rank 0 on the backend of a follower rank.

    A call that fails here must fail at rank 0 as well. Otherwise this process ends, and the group with it.

    Args:
        backend: The backend of this process.
        follower: Receives the calls.
        is_runtime_error: Returns whether an error comes from the framework's runtime, so that a peer may be gone.
        broken: Ends the process; called from any thread.
    """

    def __init__(
        self,
        backend: Backend,
        follower: Follower,
        is_runtime_error: Callable[[BaseException], bool],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._backend = backend
        self._follower = follower
        self._is_runtime_error = is_runtime_error
        self._broken = broken
        self._decoding: Decoding | None = None
        self._pending: queue.SimpleQueue[_Pending] = queue.SimpleQueue()
        self._confirm_timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run calls without end.

        Raises:
            ProcessGroupError: The group has ended, or its ranks are out of step.
        """
        threading.Thread(target=self._wait_for_scores, daemon=True).start()
        while True:
            number, call = self._follower.receive()
            self._run(number, lambda number=number, call=call: self._dispatch(number, call))  # type: ignore[misc]

    def _dispatch(self, number: int, call: calls.Call) -> None:
        if not isinstance(call, calls.Prefill | calls.Put | calls.Decode | calls.Narrow):
            self._decoding = None  # rank 0 has released its decode batch
        backend = self._backend
        match call:
            case calls.StartPlan():
                backend.start_plan(call.steps(), call.capacity)
            case calls.Submit(step, top):
                self._pending.put(_Pending(number, backend.submit(step.step(), top)))
            case calls.NextTokensCall(step, metadata):
                backend.next_tokens(step.step(), None if metadata is None else metadata.metadata())
            case calls.CountRows(capacity, wanted, spare):
                try:
                    backend.decoding_rows(capacity, wanted, spare)
                except OutOfDeviceMemory:
                    return  # rank 0 decides whether a row fits
            case calls.StartDecoding(rows, capacity, choice, shared):
                self._decoding = backend.decoding(rows, capacity, choice, shared)
            case calls.Prefill(step, metadata):
                sampling = None if metadata is None else metadata.metadata()
                self._active_decoding().prefill(step.step(), sampling)
            case calls.Put(row, position, text, key, sampled):
                self._active_decoding().put(row, position, text.array(), key, sampled)
            case calls.Decode(active):
                self._active_decoding().decode(active.array())
            case calls.Narrow(rows):
                self._active_decoding().narrow(rows)
            case calls.HalveBudget():
                backend.halve_budget()
            case calls.FailureConfirmed():
                self._failure_confirmed()

    def _active_decoding(self) -> Decoding:
        if self._decoding is None:
            raise ProcessGroupError("rank 0 sent a decoding call, but this rank has no decode batch")
        return self._decoding

    def _wait_for_scores(self) -> None:
        """Wait for the scores of each step, as rank 0 does, so that a step that fails is noticed here too."""
        while True:
            pending = self._pending.get()
            try:
                self._run(pending.number, pending.scores.result)
            except BaseException as error:  # noqa: BLE001 - after any error the process must end
                self._broken(error)
                return

    def _run(self, number: int, function: Callable[[], Any]) -> None:
        try:
            function()
        except BirdieError as error:
            if not isinstance(error, OutOfDeviceMemory) and self._is_runtime_error(error):
                raise ProcessGroupError(str(error)) from error
            self._failed(number, error)

    def _failed(self, number: int, error: BirdieError) -> None:
        with self._lock:
            if self._confirm_timer is None:
                ends = ProcessGroupError(f"process 0 did not fail where this one did: {error}")
                self._confirm_timer = threading.Timer(CONFIRM_TIMEOUT_S, self._broken, [ends])
                self._confirm_timer.daemon = True
                self._confirm_timer.start()
        self._follower.report_failure(number, error)

    def _failure_confirmed(self) -> None:
        with self._lock:
            if self._confirm_timer is not None:
                self._confirm_timer.cancel()
                self._confirm_timer = None
