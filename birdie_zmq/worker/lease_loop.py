"""The loop in which a model process computes leases, one after another, while the texts of the next one are encoded."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from birdie_zmq.completions import Completion
from birdie_zmq.engine.distributed.process_group import ProcessGroupError
from birdie_zmq.engine.events import (
    Answered,
    CompilationFinished,
    Event,
    ItemFailed,
    Notice,
    PartlyAnswered,
    StepStarting,
)
from birdie_zmq.engine.request_encoding import Encoded
from birdie_zmq.errors import BirdieError
from birdie_zmq.protocol import messages as m
from birdie_zmq.protocol.packing import pack_answers, unpack_work
from birdie_zmq.types import Answer, ErrorReport, ModelSpec, Work
from birdie_zmq.worker.agent_connection import AgentConnection, internal_error
from birdie_zmq.worker.served_model import ServedModel
from birdie_zmq.worker.weight_swap import DifferentModel

_PROGRESS_S = 0.5
"""Minimum seconds between two progress reports, unless no lease waits."""

_ANSWERS_S = 0.1
"""Minimum seconds between two messages of answers of a lease: small models answer hundreds of times a second."""

_MAX_DETAIL_CHARACTERS = 1_000
"""Maximum length of the detail of a phase, since a list of shapes is unbounded."""

_PARTS_S = 0.03
"""Minimum seconds between two messages with parts of answers; each part holds what the one before it held."""

_MAX_ANSWERS_BYTES = 8 * 2**20
"""Answers with per-token log-probabilities are sent in messages of about this size, unless a single one is larger."""

Inbox = queue.SimpleQueue[m.StartModel | m.SwapWeights | m.Lease]

Swap = Callable[[ServedModel, ModelSpec], ServedModel]
"""Returns a loaded model with the weights of another one; raises `birdie_zmq.worker.weight_swap.DifferentModel` if it cannot."""


@dataclass(frozen=True)
class _EncodedLease:
    """A lease with what is needed to compute it, or with an error."""

    lease: m.Lease
    content: _Content | Exception


class _Content(NamedTuple):
    """The model as it serves the specification of a lease, the work, and its encoded texts if they are to be scored."""

    served: ServedModel
    work: Work
    encoded: Encoded | None


class LeaseLoop:
    """Computes leases and sends what happens to the agent.

    Args:
        served: The model.
        connection: The connection to the agent.
        inbox: The leases; another thread adds to them.
        cancelled: The numbers of cancelled leases; another thread adds to them.
        swap: Swaps the weights when the agent asks for it.
    """

    def __init__(
        self,
        served: ServedModel,
        connection: AgentConnection,
        inbox: Inbox,
        cancelled: set[int],
        swap: Swap,
    ) -> None:
        self._served = served
        self._connection = connection
        self._inbox = inbox
        self._cancelled = cancelled
        self._swap = swap
        self._encoded: queue.Queue[_EncodedLease | m.SwapWeights] = queue.Queue(maxsize=1)
        self._clock = served.evaluator.clock
        # Of leases; each number is changed by one thread only.
        self._arrived = 0
        self._answered = 0
        self._reported = served.evaluator.computed
        self._reported_at = -math.inf
        self._indices: list[int] = []
        self._answers: list[Answer] = []
        self._unsent = 0
        self._sent_at = -math.inf
        self._parts_at = -math.inf
        self._size_bytes = 0

    def run(self) -> NoReturn:
        """Compute leases as they arrive.

        Raises:
            ProcessGroupError: The process group that holds the model has ended.
        """
        threading.Thread(target=self._encode_leases, daemon=True).start()
        while True:
            encoded = self._encoded.get()
            if isinstance(encoded, m.SwapWeights):
                self._swap_weights(encoded.model)
                continue
            self._answer(encoded)
            self._answered += 1
            if _is_timed(encoded.lease):
                self._clock.finished()

    def _has_waiting_lease(self) -> bool:
        """Return whether there is a lease behind the one that is computed: in the inbox, being encoded, or encoded."""
        return self._arrived - self._answered > 1 or not self._inbox.empty()

    def _encode_leases(self) -> None:
        """Encode the next lease while the main thread computes, after checking that it is for this model."""
        while True:
            lease = self._inbox.get()
            if isinstance(lease, m.SwapWeights):
                self._encoded.put(lease)
            if not isinstance(lease, m.Lease):
                continue
            self._arrived += 1
            if _is_timed(lease):
                self._clock.arrived()
            self._encoded.put(self._encode(lease))

    def _encode(self, lease: m.Lease) -> _EncodedLease:
        try:
            served = self._served.for_spec(lease.model)
            served.check(lease.identity)
            work = unpack_work(lease.work)
            return _EncodedLease(lease, _Content(served, work, served.evaluator.encode(work)))
        except Exception as error:  # noqa: BLE001 - it is raised again and reported when the lease is computed
            return _EncodedLease(lease, error)

    def _swap_weights(self, model: ModelSpec) -> None:
        """Load other weights and report the end. After an error the model has no weights; the agent ends the process then.

        The process has no lease now: the agent sends the next one after ModelLoaded.
        """
        began = time.monotonic()
        try:
            served = self._swap(self._served, model)
        except DifferentModel as different:
            self._connection.send(m.SwapRefused(reason=str(different)))
            return
        except BirdieError as error:
            self._connection.send(m.ModelLoadFailed(error=ErrorReport.of(error)))
            return
        except Exception as error:  # noqa: BLE001 - any error must reach the user
            self._connection.send(m.ModelLoadFailed(error=ErrorReport.of(internal_error(error))))
            return
        self._served, self._clock = served, served.evaluator.clock
        self._reported = served.evaluator.computed
        self._connection.computed = lambda: served.evaluator.computed
        ignored = tuple(sorted(served.origin.request_arguments))
        self._connection.send(m.ModelLoaded(seconds=time.monotonic() - began, request_arguments=ignored))

    def _answer(self, encoded: _EncodedLease) -> None:
        """Compute a lease and report its end, unless it was cancelled."""
        number = encoded.lease.lease
        self._connection.count_step()
        try:
            if self._compute(encoded):
                self._connection.send(m.LeaseDone(lease=number))
        except ProcessGroupError:
            raise
        except ItemFailed as failure:
            report = ErrorReport.of(failure.error)
            self._connection.send(m.LeaseFailed(lease=number, error=report, index=failure.index))
        except BirdieError as error:
            self._connection.send(m.LeaseFailed(lease=number, error=ErrorReport.of(error)))
        except Exception as error:  # noqa: BLE001 - any error must reach the user
            self._connection.send(m.LeaseFailed(lease=number, error=ErrorReport.of(internal_error(error))))
        finally:
            self._cancelled.discard(number)

    def _compute(self, encoded: _EncodedLease) -> bool:
        """Send the events of a lease; return False if it was cancelled, which is noticed before each step."""
        lease = encoded.lease
        if lease.lease in self._cancelled:
            return False
        if isinstance(encoded.content, Exception):
            raise encoded.content
        served, work, sequences = encoded.content
        self._indices, self._answers, self._unsent, self._size_bytes = [], [], len(lease.work), 0
        try:
            with contextlib.closing(served.answer(work, lease.limits, sequences)) as events:
                for event in events:
                    if lease.lease in self._cancelled:
                        return False
                    self._handle(lease, event)
        finally:
            if lease.lease not in self._cancelled:
                self._send_answers(lease)
        return True

    def _handle(self, lease: m.Lease, event: Event) -> None:
        number = lease.lease
        match event:
            case StepStarting(new_shapes=shapes):
                self._connection.count_step()
                self._report_progress(number)
                if shapes:
                    self._send_answers(lease)
                    detail = ", ".join(f"{rows} x {length}" for rows, length in shapes)
                    self._connection.send(m.PhaseChanged(phase="compiling", detail=detail[:_MAX_DETAIL_CHARACTERS]))
            case CompilationFinished():
                self._connection.send(m.PhaseChanged(phase="running"))
            case Notice(level=level, text=text):
                self._connection.send(m.LeaseNotice(lease=number, level=level, text=text, once=True))
            case Answered(indices=indices, answers=answers):
                for index, answer in zip(indices, answers, strict=True):
                    self._indices.append(index)
                    self._answers.append(answer)
                    self._size_bytes += answer.size_bytes if isinstance(answer, Completion) else 0
                    if self._size_bytes >= _MAX_ANSWERS_BYTES:
                        self._send_answers(lease)
                if len(self._indices) == self._unsent or time.monotonic() - self._sent_at >= _ANSWERS_S:
                    self._send_answers(lease)
            case PartlyAnswered(indices=indices, parts=parts):
                if time.monotonic() - self._parts_at >= _PARTS_S:
                    self._parts_at = time.monotonic()
                    packed = pack_answers(lease.work.kind, parts)
                    self._connection.send(m.LeasePartlyAnswered(lease=number, indices=list(indices), answers=packed))

    def _send_answers(self, lease: m.Lease) -> None:
        """Send the answers since the last message of answers."""
        if not self._indices:
            return
        self._unsent -= len(self._indices)
        # Before the last answers of a run, since a client that has them all waits for nothing more.
        self._report_progress(lease.lease, force=not self._unsent and not self._has_waiting_lease())
        indices, answers = self._indices, pack_answers(lease.work.kind, self._answers)
        self._indices, self._answers, self._sent_at, self._size_bytes = [], [], time.monotonic(), 0
        self._connection.send(m.LeaseAnswered(lease=lease.lease, indices=indices, answers=answers))

    def _report_progress(self, lease: int, *, force: bool = False) -> None:
        """Send what was computed since the last report, if that is long ago or the report is forced."""
        now = time.monotonic()
        if force or now - self._reported_at >= _PROGRESS_S:
            before, self._reported = self._reported, self._served.evaluator.computed
            self._reported_at = now
            self._connection.send(m.LeaseProgressed(lease=lease, progress=self._reported.since(before)))


def _is_timed(lease: m.Lease) -> bool:
    """Return whether the time of a lease is that of a run: a description is also asked for between the calls of one."""
    return lease.work.kind != "describe"
