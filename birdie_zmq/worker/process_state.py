"""The state of a model process as its agent knows it: phase, model, counters, and how long it makes no progress.

The process is in one of these phases::

    ABSENT ──start──▶ LOADING ──ModelLoaded──▶ READY
       ▲                 │  ◀────swap weights────┤   a lease for another model arrives, and none of this model is left
       │                 ▼                       ▼
    FREEING ◀──exit── ENDING ◀───────────────────┘   (SIGTERM, then SIGKILL if it does not exit in time)
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import ComputeCounters, ModelSpec, RequestArgument

_REPORT_COMPILE_AFTER_S = 2.0


class Phase(Enum):
    """The phase of the model process."""

    ABSENT = "no model"
    LOADING = "loading"
    READY = "ready"
    ENDING = "ending"
    FREEING = "waiting for the device's memory"


class ProcessState:
    """The state of an agent's model process. All times are in monotonic seconds.

    Args:
        settings: Timeouts.
        request_arguments: The request arguments that every process ignores, whatever its user module declares.

    Attributes:
        phase: The phase.
        model: The model, also while the process loads or ends; None without a process.
        request_arguments: The request arguments that the process ignores, as far as that is known.
        start_count: The number of processes that were started.
        kill_reason: The timeout for which the process is killed; None if it is not killed for one.
    """

    def __init__(self, settings: AgentSettings, request_arguments: frozenset[RequestArgument] = frozenset()) -> None:
        self._settings = settings
        self._always_ignored = self.request_arguments = request_arguments
        self.phase = Phase.ABSENT
        self.model: ModelSpec | None = None
        self.start_count = 0
        self.kill_reason: str | None = None
        self._phase_since = 0.0
        self._activity: m.PhaseChanged | None = None
        self._unreported_compile_since: float | None = None
        self._kill_at: float | None = None
        self._heartbeat_at = 0.0
        self._progress_at = 0.0
        self._steps = 0
        self._computed_before = ComputeCounters()
        self._computed = ComputeCounters()

    @property
    def description(self) -> str:
        """The phase, or what the process says that it does."""
        return (
            self.phase.value if self._activity is None else f"{self._activity.phase} {self._activity.detail}".rstrip()
        )

    @property
    def computed(self) -> ComputeCounters:
        """The sum of the counters of all processes so far."""
        return self._computed_before + self._computed

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase, self._phase_since, self._activity = phase, now, None
        self._unreported_compile_since = None

    def start(self, model: ModelSpec, now: float) -> None:
        """Record that a process is started, which loads a model."""
        self.start_count += 1
        self.model, self.kill_reason = model, None
        self._heartbeat_at = self._progress_at = now
        self._steps = 0
        self._enter(Phase.LOADING, now)

    def swap(self, model: ModelSpec, now: float) -> None:
        """Record that the process loads the weights of another model."""
        self.model = model
        self._computed_before, self._computed = self.computed, ComputeCounters()
        self._progress_at = now
        self._enter(Phase.LOADING, now)

    def loaded(self, request_arguments: Iterable[RequestArgument], now: float) -> None:
        """Record that the process has loaded its model, and which request arguments it ignores."""
        self.request_arguments = frozenset(request_arguments)
        self._enter(Phase.READY, now)

    def serves(self, model: ModelSpec) -> bool:
        """Return whether the process serves a specification: that of its model, except for ignored arguments."""
        ignored = self.request_arguments
        return self.model is not None and self.model.without(ignored) == model.without(ignored)

    def stop(self, now: float) -> None:
        """Record that the process was sent SIGTERM."""
        self._kill_at = now + self._settings.terminate_s
        self._enter(Phase.ENDING, now)

    def exited(self, now: float, *, watches_memory: bool) -> None:
        """Record that the process has exited; with ``watches_memory``, the next one waits for the device's memory."""
        self.model = self._kill_at = None
        self.request_arguments = self._always_ignored  # The next process may have another user module.
        self._computed_before, self._computed = self.computed, ComputeCounters()
        self._enter(Phase.FREEING if watches_memory else Phase.ABSENT, now)

    def memory_freed(self, now: float) -> None:
        """Record that the memory of the last process is free."""
        if self.phase is Phase.FREEING:
            self._enter(Phase.ABSENT, now)

    def progressed(self, now: float) -> None:
        """Record progress, such as a message or the start of a lease."""
        self._progress_at = now

    def receive(self, message: m.ModelProcessMessage, now: float) -> None:
        """Record what a message says about the process; every message is a sign of life."""
        self._heartbeat_at = now
        if not isinstance(message, m.ModelHeartbeat):
            self._progress_at = now
        elif message.steps != self._steps:
            self._steps, self._progress_at = message.steps, now
        match message:
            # While a process loads it has computed nothing, or sends the counters of the weights that are swapped out.
            case m.ModelHeartbeat(computed=computed) if self.phase is not Phase.LOADING:
                self._computed = computed
            case m.PhaseChanged() if self.phase is Phase.READY:
                self._activity = message
                self._unreported_compile_since = now if message.phase == "compiling" else None

    # --- Timeouts ----------------------------------------------------------------------------------------------------

    def add_stall(self, stall_s: float) -> None:
        """Extend all timeouts by a time in which the agent itself was stopped."""
        self._heartbeat_at += stall_s
        self._progress_at += stall_s
        self._phase_since += stall_s
        if self._unreported_compile_since is not None:
            self._unreported_compile_since += stall_s

    def take_long_compile(self, now: float) -> str | None:
        """Return the shapes of a compilation that takes long, once; else None."""
        since, activity = self._unreported_compile_since, self._activity
        if since is None or activity is None or now - since < _REPORT_COMPILE_AFTER_S:
            return None
        self._unreported_compile_since = None
        return activity.detail

    def is_memory_overdue(self, now: float) -> bool:
        """Return whether the device's memory was not freed in time."""
        return self.phase is Phase.FREEING and now - self._phase_since >= self._settings.memory_wait_s

    def take_overdue_exit(self, now: float) -> bool:
        """Return, once, whether the process has not exited in time after SIGTERM."""
        if self._kill_at is None or now < self._kill_at:
            return False
        self._kill_at = None
        return True

    def take_exceeded_timeout(self, now: float, *, is_running: bool) -> str | None:
        """Return, once, the timeout that the process has exceeded; else None.

        Args:
            now: The time.
            is_running: Whether the process has a lease to compute.
        """
        if self.kill_reason is not None:
            return None
        self.kill_reason = self._exceeded_timeout(now, is_running=is_running)
        return self.kill_reason

    def _exceeded_timeout(self, now: float, *, is_running: bool) -> str | None:
        settings = self._settings
        if self.phase is Phase.LOADING:
            if now - self._phase_since > settings.load_s:
                return f"did not load within {settings.load_s:.0f} s"
            silence_s = settings.loading_silence_s
        elif self.phase is Phase.READY:
            is_compiling = self._activity is not None and self._activity.phase == "compiling"
            limit_s = settings.compile_s if is_compiling else settings.step_s
            if is_running and now - self._progress_at > limit_s:
                return f"made no progress for {limit_s:.0f} s while {self.description}"
            silence_s = settings.silence_s
        else:
            return None
        return f"sent no heartbeat for {silence_s:.0f} s" if now - self._heartbeat_at > silence_s else None
