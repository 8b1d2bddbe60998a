"""The agent's decisions, as a state machine without sockets, processes or a clock.

The agent keeps its leases in order of arrival, and at most one model process, which is in one of these phases::

    ABSENT ──start──▶ LOADING ──ModelLoaded──▶ READY
       ▲                 │                       │   a lease for another model arrives, and none of this model is left
       │                 ▼                       ▼
    FREEING ◀──exit── ENDING ◀───────────────────┘   (SIGTERM, then SIGKILL if it does not exit in time)

When a model process exits unexpectedly, or is killed because it makes no progress, no lease is lost: the running lease
goes back to the broker as a suspect, and the leases behind it go back unchanged. While the process loads, only the model
itself can be the cause, so the agent keeps the leases and restarts the process after a pause.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from birdie_zmq.errors import ModelProcessDied
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import ComputeCounters, ErrorReport, Level, ModelSpec

_REPORT_COMPILE_AFTER_S = 2.0


class Phase(Enum):
    """The phase of the model process."""

    ABSENT = "no model"
    LOADING = "loading"
    READY = "ready"
    ENDING = "ending"
    FREEING = "waiting for the device's memory"


@dataclass(frozen=True)
class LeaseReceived:
    """The broker sent a lease, in this frame."""

    lease: m.Lease
    frame: bytes


@dataclass(frozen=True)
class LeaseCancelled:
    """The broker cancelled a lease, because no client waits for it."""

    lease: int


@dataclass(frozen=True)
class LeasesRevoked:
    """The broker no longer knows this worker, and has given its leases to other workers."""


@dataclass(frozen=True)
class ModelMessageReceived:
    """The model process sent a message, in this frame."""

    message: m.ModelProcessMessage
    frame: bytes = b""


@dataclass(frozen=True)
class ModelProcessExited:
    """The model process exited.

    ``returncode`` is as in subprocess, negative for a signal. ``trace`` is the traceback at a fault, None if the process
    could not write one.
    """

    returncode: int
    trace: str | None = None


@dataclass(frozen=True)
class MemoryFreed:
    """The device memory of the last model process is free again."""


@dataclass(frozen=True)
class Drain:
    """The agent must finish its running lease and stop."""


@dataclass(frozen=True)
class Tick:
    """Time passed.

    ``stall_s`` is the excess over the usual interval, in seconds, if this process itself was stopped; else 0.
    """

    stall_s: float = 0.0


Event = (
    LeaseReceived
    | LeaseCancelled
    | LeasesRevoked
    | ModelMessageReceived
    | ModelProcessExited
    | MemoryFreed
    | Drain
    | Tick
)


@dataclass(frozen=True)
class StartModelProcess:
    """Start a process for this model; ``start_count`` is the number of processes that this agent has started."""

    model: ModelSpec
    start_count: int


@dataclass(frozen=True)
class SendToModel:
    """Send a message to the model process."""

    message: m.CancelLease


@dataclass(frozen=True)
class ForwardToModel:
    """Send a frame of the broker to the model process, unchanged."""

    frame: bytes


@dataclass(frozen=True)
class StopModelProcess:
    """Stop the model process: by SIGTERM, or by SIGKILL if ``kill``."""

    kill: bool


@dataclass(frozen=True)
class SendToBroker:
    """Send a message to the broker."""

    message: m.LeaseMessage | m.LeaseCrashed | m.LeaseReturned | m.DrainWorker


@dataclass(frozen=True)
class ForwardToBroker:
    """Send a frame of the model process to the broker, unchanged."""

    frame: bytes


@dataclass(frozen=True)
class Log:
    """Write a line to the worker's log."""

    level: Level
    text: str


@dataclass(frozen=True)
class Stop:
    """End the agent: no lease is left."""


Action = (
    StartModelProcess | SendToModel | ForwardToModel | StopModelProcess | SendToBroker | ForwardToBroker | Log | Stop
)


@dataclass(eq=False)
class _ActiveLease:
    """A lease that the agent has and the broker waits for, and the frame that brought it."""

    lease: m.Lease
    frame: bytes
    is_sent: bool = False
    answered: set[int] = field(default_factory=set)

    @property
    def is_answered(self) -> bool:
        return len(self.answered) == len(self.lease.work)


@dataclass(frozen=True)
class _LoadCrashes:
    """The number of processes of a model that died while loading, and the time of the next start."""

    count: int
    retry_at: float


class AgentCore:
    """The agent's state machine.

    Args:
        settings: Timeouts and limits.
        watches_memory: Whether to wait for MemoryFreed after a model process has exited.
        num_processes: The number of ranks of the process group that holds the model; this agent's process is rank 0.
    """

    def __init__(self, settings: AgentSettings, *, watches_memory: bool = False, num_processes: int = 1) -> None:
        self._num_processes = num_processes
        self._settings = settings
        self._watches_memory = watches_memory
        self._leases: dict[int, _ActiveLease] = {}
        self._phase = Phase.ABSENT
        self._phase_since = 0.0
        self._activity: m.PhaseChanged | None = None
        self._unreported_compile_since: float | None = None
        self._replaced: ModelSpec | None = None
        self._model: ModelSpec | None = None
        self._kill_at: float | None = None
        self._kill_reason: str | None = None
        self._heartbeat_at = 0.0
        self._progress_at = 0.0
        self._steps = 0
        self._computed_before = ComputeCounters()
        self._computed = ComputeCounters()
        self._load_crashes: dict[ModelSpec, _LoadCrashes] = {}
        self._drain_until: float | None = None
        self._start_count = 0
        self._actions: list[Action] = []
        self._now = 0.0

    @property
    def phase(self) -> str:
        """The current activity of the model process, for the heartbeat."""
        if self._activity is None:
            return self._phase.value
        return f"{self._activity.phase} {self._activity.detail}".rstrip()

    @property
    def model(self) -> ModelSpec | None:
        """The model of the model process, also while it loads or ends; None without a process."""
        return self._model

    @property
    def computed(self) -> ComputeCounters:
        """The sum of the counters of all model processes of this agent."""
        return self._computed_before + self._computed

    @property
    def waits_for_memory(self) -> bool:
        """Whether the next model process waits for MemoryFreed."""
        return self._phase is Phase.FREEING

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle one event and return the actions to take, in order.

        Args:
            event: The event.
            now: The time in monotonic seconds.
        """
        self._now = now
        match event:
            case LeaseReceived(lease, frame):
                self._on_lease(lease, frame)
            case LeaseCancelled(number):
                if (active := self._leases.get(number)) is not None:
                    self._drop(active)
            case LeasesRevoked():
                for active in list(self._leases.values()):
                    self._drop(active)
            case ModelMessageReceived(message, frame):
                self._heartbeat_at = now
                if not isinstance(message, m.ModelHeartbeat):
                    self._progress_at = now
                _HANDLERS[type(message)](self, message, frame)
            case ModelProcessExited(returncode, trace):
                self._on_exit(returncode, trace)
            case MemoryFreed():
                if self._phase is Phase.FREEING:
                    self._enter(Phase.ABSENT)
            case Drain():
                self._drain()
            case Tick(stall_s):
                self._check_timeouts(stall_s)
        self._serve_first_lease()
        if self._drain_until is not None:
            self._stop_when_drained(self._drain_until)
        actions, self._actions = self._actions, []
        return actions

    # --- Leases ------------------------------------------------------------------------------------------------------

    def _on_lease(self, lease: m.Lease, frame: bytes) -> None:
        if lease.lease in self._leases:
            self._log("warning", "ignored a lease of the broker: this worker holds a lease with the same number")
        elif self._drain_until is None:
            self._leases[lease.lease] = _ActiveLease(lease, frame)
        else:  # The broker sent it before it received DrainWorker.
            self._actions.append(SendToBroker(m.LeaseReturned(lease=lease.lease)))

    def _drop(self, active: _ActiveLease) -> None:
        """Forget a lease and cancel it at the model process, whose further messages about it are ignored."""
        del self._leases[active.lease.lease]
        if active.is_sent:
            self._actions.append(SendToModel(m.CancelLease(lease=active.lease.lease)))

    def _return(self, active: _ActiveLease) -> None:
        self._drop(active)
        self._actions.append(SendToBroker(m.LeaseReturned(lease=active.lease.lease)))

    def _drain(self) -> None:
        """Accept no more leases, and return all but the running one."""
        self._drain_until = self._now + self._settings.drain_s
        self._actions.append(SendToBroker(m.DrainWorker()))
        running = self._running()
        for active in [active for active in self._leases.values() if active is not running]:
            self._return(active)
        if running is not None:
            self._log("info", f"stopping; waiting up to {self._settings.drain_s:.0f} s for the running lease")

    def _stop_when_drained(self, deadline: float) -> None:
        if self._now >= deadline:
            for active in list(self._leases.values()):
                self._return(active)
        if not self._leases:
            self._actions.append(Stop())

    def _running(self) -> _ActiveLease | None:
        """Return the lease that the model process computes, which is the first unanswered one, or None."""
        return next((active for active in self._leases.values() if active.is_sent and not active.is_answered), None)

    # --- The model process -------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        self._phase, self._phase_since, self._activity = phase, self._now, None
        self._unreported_compile_since = None

    def _serve_first_lease(self) -> None:
        """Take the next action that the first lease needs: start, stop or kill a process, or send leases to it."""
        if self._phase is Phase.ENDING:
            if self._kill_at is not None and self._now >= self._kill_at:
                self._log(
                    "warning",
                    f"the model process of {self._model} did not exit within {self._settings.terminate_s:g} s of "
                    "SIGTERM; killing it",
                )
                self._actions.append(StopModelProcess(kill=True))
                self._kill_at = None
            return
        first = next(iter(self._leases.values()), None)
        if first is None:
            return
        if self._phase is Phase.ABSENT:
            crashes = self._load_crashes.get(first.lease.model)
            if crashes is None or self._now >= crashes.retry_at:
                self._start(first)
        elif self._phase is Phase.FREEING:
            return
        elif self._model != first.lease.model:
            # The process finishes the leases it was sent; later ones for its model wait behind the other model's lease.
            if not any(active.is_sent for active in self._leases.values()):
                self._replaced = self._model
                self._stop_process()
        elif self._phase is Phase.READY:
            self._send_leases()

    def _start(self, first: _ActiveLease) -> None:
        self._start_count += 1
        self._model = first.lease.model
        self._enter(Phase.LOADING)
        self._heartbeat_at = self._progress_at = self._now
        self._steps, self._kill_reason = 0, None
        in_place = "" if self._replaced is None else f", in place of {self._replaced}"
        self._replaced = None
        self._notify(first.lease.lease, "info", f"loading {self._model}{in_place}")
        self._actions.append(StartModelProcess(self._model, self._start_count))

    def _send_leases(self) -> None:
        for active in self._leases.values():
            if active.is_sent or active.lease.model != self._model:
                continue
            if self._running() is None:
                self._progress_at = self._now
            active.is_sent = True
            self._actions.append(ForwardToModel(active.frame))

    def _sent(self, lease: int) -> _ActiveLease | None:
        """Return a lease that the model process has, or None if it was dropped."""
        active = self._leases.get(lease)
        return active if active is not None and active.is_sent else None

    def _stop_process(self) -> None:
        self._enter(Phase.ENDING)
        self._kill_at = self._now + self._settings.terminate_s
        self._actions.append(StopModelProcess(kill=False))

    def _check_timeouts(self, stall_s: float) -> None:
        """Kill a process that exceeds a timeout, and stop waiting for memory that is not freed in time."""
        self._heartbeat_at += stall_s
        self._progress_at += stall_s
        self._phase_since += stall_s
        self._report_long_compile(stall_s)
        if self._phase is Phase.FREEING and self._now - self._phase_since >= self._settings.memory_wait_s:
            self._log(
                "warning",
                f"the device's memory is still in use {self._settings.memory_wait_s:.0f} s after the model process exited; no "
                "longer waiting for it",
            )
            self._enter(Phase.ABSENT)
        if self._kill_reason is None and (reason := self._timeout_reason()) is not None:
            self._kill_reason = reason
            self._log("warning", f"the model process of {self._model} {reason}; killing it")
            self._actions.append(StopModelProcess(kill=True))

    def _report_long_compile(self, stall_s: float) -> None:
        """Report the shape that is being compiled, unless compilation ends within a few seconds."""
        if self._unreported_compile_since is None or self._activity is None:
            return
        self._unreported_compile_since += stall_s
        running = self._running()
        if running is not None and self._now - self._unreported_compile_since >= _REPORT_COMPILE_AFTER_S:
            self._unreported_compile_since = None
            self._notify(running.lease.lease, "info", f"compiling {self._activity.detail} for {self._model}")

    def _timeout_reason(self) -> str | None:
        """Describe the timeout that the process has exceeded; return None if there is none."""
        settings = self._settings
        if self._phase is Phase.LOADING:
            if self._now - self._phase_since > settings.load_s:
                return f"did not load within {settings.load_s:.0f} s"
            silence_s = settings.loading_silence_s
        elif self._phase is Phase.READY:
            is_compiling = self._activity is not None and self._activity.phase == "compiling"
            limit_s = settings.compile_s if is_compiling else settings.step_s
            if self._running() is not None and self._now - self._progress_at > limit_s:
                return f"made no progress for {limit_s:.0f} s while {self.phase}"
            silence_s = settings.silence_s
        else:
            return None
        if self._now - self._heartbeat_at > silence_s:
            return f"sent no heartbeat for {silence_s:.0f} s"
        return None

    def _on_exit(self, returncode: int, trace: str | None) -> None:
        phase, model = self._phase, self._model
        self._model = self._kill_at = None
        self._computed_before, self._computed = self.computed, ComputeCounters()
        self._enter(Phase.FREEING if self._watches_memory else Phase.ABSENT)
        if phase is Phase.ENDING or model is None:
            return
        cause = _describe_exit(returncode) if self._kill_reason is None else f"killed because it {self._kill_reason}"
        if self._num_processes > 1:
            cause += (
                f" (it is rank 0 of a process group of {self._num_processes}: when one rank ends, all end and restart; the "
                "worker of the rank that ended first logs the reason)"
            )
        self._log("warning", f"the model process of {model} exited unexpectedly: {cause}")
        if phase is Phase.LOADING:
            self._on_load_crash(model, cause, trace)
            return
        affected = [active for active in self._leases.values() if active.lease.model == model]
        for active in [active for active in affected if active.is_answered]:
            affected.remove(active)
            self._finish(active)
        running = self._running()
        for active in affected:
            active.is_sent = False  # The process is gone, so there is nothing to cancel.
            if active is running:
                text = (
                    f"the model process of {model} exited unexpectedly, {cause}; its standard error goes to the "
                    "worker's"
                )
                error = ErrorReport(code=ModelProcessDied.code, message=text, traceback=trace)
                del self._leases[active.lease.lease]
                self._actions.append(SendToBroker(m.LeaseCrashed(lease=active.lease.lease, error=error)))
            else:
                self._return(active)

    def _on_load_crash(self, model: ModelSpec, cause: str, trace: str | None) -> None:
        previous = self._load_crashes.pop(model, None)
        count = 1 if previous is None else previous.count + 1
        affected = [active for active in self._leases.values() if active.lease.model == model]
        if count >= self._settings.max_load_crashes:
            text = (
                f"the model process of {model} exited unexpectedly {count} times while loading, the last time {cause}; "
                "see the worker's standard error for its output"
            )
            error = ErrorReport(code=ModelProcessDied.code, message=text, traceback=trace)
            for active in affected:
                self._fail(active, error, None)
            return
        pause_s = self._settings.restart_delay_s * 2 ** (count - 1)
        self._load_crashes[model] = _LoadCrashes(count, self._now + pause_s)
        for active in affected[:1]:
            text = f"the model process of {model} exited unexpectedly while loading, {cause}; restarting in {pause_s:.0f} s"
            self._notify(active.lease.lease, "warning", text)

    # --- Messages of the model process -------------------------------------------------------------------------------

    def _on_loaded(self, message: m.ModelLoaded, _: bytes) -> None:
        if self._phase is not Phase.LOADING or self._model is None:
            return
        self._load_crashes.pop(self._model, None)
        self._enter(Phase.READY)
        for active in self._leases.values():
            if active.lease.model == self._model:
                self._notify(active.lease.lease, "info", f"loaded {self._model} in {message.seconds:.1f} s")
                break

    def _on_load_failed(self, message: m.ModelLoadFailed, _: bytes) -> None:
        if self._phase is not Phase.LOADING or self._model is None:
            return
        self._load_crashes.pop(self._model, None)
        for active in [active for active in self._leases.values() if active.lease.model == self._model]:
            self._fail(active, message.error, None)
        self._stop_process()

    def _on_notice(self, message: m.ModelNotice, _: bytes) -> None:
        if self._phase is not Phase.LOADING or self._model is None:
            return
        for active in self._leases.values():
            if active.lease.model == self._model:
                self._notify(active.lease.lease, message.level, message.text)
                break

    def _on_phase_changed(self, message: m.PhaseChanged, _: bytes) -> None:
        if self._phase is Phase.READY:
            self._activity = message
            self._unreported_compile_since = self._now if message.phase == "compiling" else None

    def _on_heartbeat(self, message: m.ModelHeartbeat, _: bytes) -> None:
        self._computed = message.computed
        if message.steps != self._steps:
            self._steps, self._progress_at = message.steps, self._now

    def _on_answered(self, message: m.LeaseAnswered, frame: bytes) -> None:
        active = self._sent(message.lease)
        if active is None:
            return
        items = message.indices.tolist()
        if not all(0 <= item < len(active.lease.work) for item in items):
            self._log("warning", "ignored an answer of the model process: its lease has no item of that index")
            return
        active.answered.update(items)
        self._actions.append(ForwardToBroker(frame))

    def _on_failed(self, message: m.LeaseFailed, _: bytes) -> None:
        active = self._sent(message.lease)
        if active is not None:
            is_known = message.index is not None and message.index < len(active.lease.work)
            self._fail(active, message.error, message.index if is_known else None)

    def _on_done(self, message: m.LeaseDone, _: bytes) -> None:
        active = self._sent(message.lease)
        if active is not None:
            self._finish(active)

    def _forward(self, message: m.LeaseNotice | m.LeaseProgressed, frame: bytes) -> None:
        if self._sent(message.lease) is not None:
            self._actions.append(ForwardToBroker(frame))

    # --- Actions -----------------------------------------------------------------------------------------------------

    def _finish(self, active: _ActiveLease) -> None:
        del self._leases[active.lease.lease]
        self._actions.append(SendToBroker(m.LeaseDone(lease=active.lease.lease)))

    def _fail(self, active: _ActiveLease, error: ErrorReport, index: int | None) -> None:
        del self._leases[active.lease.lease]
        # The error's message goes to the run only, not to the log: it may quote a text of the requests.
        self._log("info", f"a batch for {active.lease.model} failed: {error.code}")
        self._actions.append(SendToBroker(m.LeaseFailed(lease=active.lease.lease, error=error, index=index)))

    def _notify(self, lease: int, level: Level, text: str) -> None:
        self._log(level, text)
        self._actions.append(SendToBroker(m.LeaseNotice(lease=lease, level=level, text=text)))

    def _log(self, level: Level, text: str) -> None:
        self._actions.append(Log(level, text))


def _describe_exit(returncode: int) -> str:
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        hint = " (often sent by the system when the machine is out of memory)" if name == "SIGKILL" else ""
        return f"by {name}{hint}"
    return f"with exit status {returncode}"


_HANDLERS: Mapping[type, Callable[[AgentCore, Any, bytes], None]] = MappingProxyType(
    {
        m.ModelLoaded: AgentCore._on_loaded,
        m.ModelLoadFailed: AgentCore._on_load_failed,
        m.ModelNotice: AgentCore._on_notice,
        m.PhaseChanged: AgentCore._on_phase_changed,
        m.ModelHeartbeat: AgentCore._on_heartbeat,
        m.LeaseAnswered: AgentCore._on_answered,
        m.LeaseFailed: AgentCore._on_failed,
        m.LeaseDone: AgentCore._on_done,
        m.LeaseNotice: AgentCore._forward,
        m.LeaseProgressed: AgentCore._forward,
    }
)
