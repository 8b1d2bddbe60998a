"""A process of a group that follows: it makes the calls that the first one makes, and throws the results away."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from birdie_zmq.engine.backend import Backend, Decoding, PendingScores
from birdie_zmq.engine.distributed import calls
from birdie_zmq.engine.distributed.leader import AGREE_S, BEGAN, FOLDER_CALLS, GroupStore, described, key_of
from birdie_zmq.engine.distributed.process_group import GroupBroken, RankInfo
from birdie_zmq.errors import BirdieError, MalformedMessage, OutOfDeviceMemory
from birdie_zmq.types import ErrorReport

_WAIT_S = 60.0

T = TypeVar("T")


class Follower:
    """What a process hears from the first one, and says to it.

    Args:
        store: The group's.
        place: Its own place.
        host: The name of its host, for errors.
    """

    def __init__(self, store: GroupStore, place: RankInfo, host: str) -> None:
        self._store = store
        self._place = place
        self._host = host
        self._folder = self._wait(BEGAN).decode()
        self._heard = 0

    def _wait(self, key: str) -> bytes:
        while (data := self._store.get(key, _WAIT_S)) is None:
            pass
        return data

    def _told(self, name: str, kind: type[T]) -> T:
        told = calls.decode(self._wait(f"{self._folder}/{name}"))
        if not isinstance(told, kind):
            raise MalformedMessage(f"a process of the group told {type(told).__name__} as {name}")
        return told

    def load(self) -> calls.Load:
        """Which model to load."""
        return self._told("load", calls.Load)

    def max_length(self) -> int:
        """The longest row that there will be."""
        return self._told("prepared", calls.Prepared).max_length

    def refuse(self, error: BirdieError) -> None:
        """Say that this process cannot load the model, and wait for the end of the group."""
        report = ErrorReport.of(error)
        named = msgspec.structs.replace(
            report, message=f"{self._place} of the group, at {self._host}: {report.message}"
        )
        self._store.set(f"{self._folder}/refused", calls.encode(calls.Refused(named)))
        self._wait(f"{self._folder}/nothing")

    def loaded(self, backend: Backend) -> None:
        """Say what this process has loaded, and take over the first one's budget."""
        self._store.set(f"{self._folder}/loaded/{self._place.process_id}", calls.encode(described(backend)))
        backend.budget = self._told("budget", calls.Budget).budget

    def hear(self) -> tuple[int, calls.Call]:
        """The next call and its number."""
        number, self._heard = self._heard, self._heard + 1
        told = calls.decode(self._wait(key_of(self._folder, number)))
        if not isinstance(told, calls.Call):
            raise MalformedMessage(f"a process of the group told {type(told).__name__} as a call")
        if self._heard % FOLDER_CALLS == 0:
            self._store.set(f"{self._folder}/read/{self._place.process_id}", str(self._heard).encode())
        return number, told

    def failed(self, number: int, error: BirdieError) -> None:
        """Say that a call has failed here."""
        key = f"{self._folder}/failed/{number}/{self._place.process_id}"
        self._store.set(key, calls.encode(calls.Failed(error.code)))


@dataclass(frozen=True)
class _Pending:
    number: int
    scores: PendingScores


class Following:
    """Makes the calls of the first process on this one's own backend.

    A call that fails here must have failed there as well, or this process ends, and the group with it.

    Args:
        backend: The backend.
        follower: Hears the calls.
        is_of_runtime: Whether an error is that of the framework's runtime, and so perhaps of a peer that is gone.
        broken: Ends the process; called from any thread.
    """

    def __init__(
        self,
        backend: Backend,
        follower: Follower,
        is_of_runtime: Callable[[BaseException], bool],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._backend = backend
        self._follower = follower
        self._is_of_runtime = is_of_runtime
        self._broken = broken
        self._decoding: Decoding | None = None
        self._pending: queue.SimpleQueue[_Pending] = queue.SimpleQueue()
        self._disagreed: threading.Timer | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Follow for ever.

        Raises:
            GroupBroken: The group has ended, or can no longer go on.
        """
        threading.Thread(target=self._look, daemon=True).start()
        while True:
            number, call = self._follower.hear()
            self._tried(number, lambda number=number, call=call: self._make(number, call))  # type: ignore[misc]

    def _make(self, number: int, call: calls.Call) -> None:
        if not isinstance(call, calls.Put | calls.Decode | calls.Narrow):
            self._decoding = None  # so the first process has let go of it
        backend = self._backend
        match call:
            case calls.Open():
                backend.open(call.steps())
            case calls.Submit(step):
                self._pending.put(_Pending(number, backend.submit(step.step())))
            case calls.Next(step, drawing):
                backend.next_tokens(step.step(), None if drawing is None else drawing.drawing())
            case calls.CountRows(capacity, wanted):
                try:
                    backend.decoding_rows(capacity, wanted)
                except OutOfDeviceMemory:
                    return  # the first process says whether there is room
            case calls.Begin(rows, capacity, sampling):
                self._decoding = backend.decoding(rows, capacity, sampling)
            case calls.Put():
                self._rows().put(call.row, call.prompt.array(), call.planned(), call.key, call.drawn)
            case calls.Decode(active):
                self._rows().decode(active.array())
            case calls.Narrow(rows):
                self._rows().narrow(rows)
            case calls.Halve():
                backend.halve_budget()
            case calls.Agreed():
                self._agreed()

    def _rows(self) -> Decoding:
        if self._decoding is None:
            raise GroupBroken("the first process continues rows that this one does not have")
        return self._decoding

    def _look(self) -> None:
        """Wait for the scores of each step, as the first process does: what fails there must not go unnoticed here."""
        while True:
            pending = self._pending.get()
            try:
                self._tried(pending.number, pending.scores.result)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the process must not live on without it
                self._broken(error)
                return

    def _tried(self, number: int, function: Callable[[], Any]) -> None:
        try:
            function()
        except BirdieError as error:
            if not isinstance(error, OutOfDeviceMemory) and self._is_of_runtime(error):
                raise GroupBroken(str(error)) from error
            self._failed(number, error)

    def _failed(self, number: int, error: BirdieError) -> None:
        with self._lock:
            if self._disagreed is None:
                ends = GroupBroken(f"process 0 did not fail where this one did: {error}")
                self._disagreed = threading.Timer(AGREE_S, self._broken, [ends])
                self._disagreed.daemon = True
                self._disagreed.start()
        self._follower.failed(number, error)

    def _agreed(self) -> None:
        with self._lock:
            if self._disagreed is not None:
                self._disagreed.cancel()
                self._disagreed = None
