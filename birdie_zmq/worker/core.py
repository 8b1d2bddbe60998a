"""What the agent does, with no socket, process or clock in it.

The agent holds leases in the order in which they came, and one model process, or none, which is in one of these phases::

    ABSENT ──start──▶ LOADING ──ModelLoaded──▶ READY
       ▲                 │                       │   a lease for another model, and nothing of this one left
       │                 ▼                       ▼
    FREEING ◀──exit── ENDING ◀───────────────────┘   (terminated, and killed if it does not go in time)

A process that ends by itself, or is killed because it stands still, takes nothing with it: the lease that it was at goes
back to the broker as a suspect, those behind it go back as they are. While it loads there is no suspect but the model,
so the leases stay, and loading is tried again after a while.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

import msgspec

from birdie_zmq.errors import ModelProcessDied
from birdie_zmq.protocol import messages as m
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import ComputeCounters, ErrorReport, Level, ModelSpec

_TELL_OF_COMPILING_S = 2.0


class Phase(Enum):
    """Where the model process is in its life."""

    ABSENT = "no model"
    LOADING = "loading"
    READY = "ready"
    ENDING = "ending"
    FREEING = "waiting for the device's memory"


@dataclass(frozen=True)
class LeaseReceived:
    """The broker handed out work."""

    lease: m.Lease


@dataclass(frozen=True)
class LeaseCancelled:
    """Nobody waits for this lease any more."""

    lease: int


@dataclass(frozen=True)
class LeasesLost:
    """The broker no longer knows this worker; what it handed out is somebody else's now."""


@dataclass(frozen=True)
class ProcessSaid:
    """The model process sent a message."""

    message: m.ModelProcessMessage


@dataclass(frozen=True)
class ProcessExited:
    """The model process is gone.

    ``returncode`` is as in subprocess, negative for a signal; ``trace`` says what it was at, if it could still tell.
    """

    returncode: int
    trace: str | None = None


@dataclass(frozen=True)
class MemoryFreed:
    """The device has the memory back that the last process had."""


@dataclass(frozen=True)
class Drain:
    """The agent is to stop in good order."""


@dataclass(frozen=True)
class Tick:
    """Time has passed; ``late_s`` is how much more of it than should have, because this process was stopped."""

    stall_s: float = 0.0


Event = LeaseReceived | LeaseCancelled | LeasesLost | ProcessSaid | ProcessExited | MemoryFreed | Drain | Tick


@dataclass(frozen=True)
class StartProcess:
    """Start a model process for this model; ``started`` counts the starts of this agent."""

    model: ModelSpec
    started: int


@dataclass(frozen=True)
class TellProcess:
    """Send a message to the model process."""

    message: m.Lease | m.CancelLease


@dataclass(frozen=True)
class EndProcess:
    """End the model process: ask it to (SIGTERM), or kill it."""

    kill: bool


@dataclass(frozen=True)
class TellBroker:
    """Send a message to the broker."""

    message: m.LeaseMessage | m.LeaseCrashed | m.LeaseReturned | m.DrainWorker


@dataclass(frozen=True)
class Log:
    """Tell the person who watches the worker."""

    level: Level
    text: str


@dataclass(frozen=True)
class Stop:
    """Nothing is left to wait for."""


Action = StartProcess | TellProcess | EndProcess | TellBroker | Log | Stop


@dataclass(eq=False)
class _ActiveLease:
    """A lease in hand.

    ``ticket`` is the number under which the process was given it, None before: a broker that was started again counts
    its leases from the beginning, while the process may still speak of old ones.
    """

    lease: m.Lease
    ticket: int | None = None
    answered: set[int] = field(default_factory=set)

    @property
    def is_answered(self) -> bool:
        return len(self.answered) == len(self.lease.work)


@dataclass(frozen=True)
class _LoadCrashes:
    """How often a model's process died while it was loading, and when the next may be started."""

    count: int
    again_at: float


class AgentCore:
    """The agent's whole behaviour.

    Args:
        settings: Timeouts and bounds.
        watches_memory: Whether a MemoryFreed is to be expected after a process has ended.
        processes: How many processes hold the model, of which this agent's is the first.
    """

    def __init__(self, settings: AgentSettings, *, watches_memory: bool = False, processes: int = 1) -> None:
        self._processes = processes
        self._settings = settings
        self._watches_memory = watches_memory
        self._held: dict[int, _ActiveLease] = {}
        self._phase = Phase.ABSENT
        self._phase_since = 0.0
        self._activity: m.PhaseChanged | None = None
        self._untold_since: float | None = None
        self._replaced: ModelSpec | None = None
        self._model: ModelSpec | None = None
        self._kill_at: float | None = None
        self._verdict: str | None = None
        self._beat_at = 0.0
        self._progress_at = 0.0
        self._steps = 0
        self._computed_before = ComputeCounters()
        self._computed = ComputeCounters()
        self._load_crashes: dict[ModelSpec, _LoadCrashes] = {}
        self._drains_until: float | None = None
        self._started = 0
        self._next_ticket = 1
        self._actions: list[Action] = []
        self._now = 0.0

    @property
    def phase(self) -> str:
        """What the model process does, for the heartbeat."""
        if self._activity is None:
            return self._phase.value
        return f"{self._activity.phase} {self._activity.detail}".rstrip()

    @property
    def model(self) -> ModelSpec | None:
        """The model that is loaded, or on its way in or out."""
        return self._model

    @property
    def computed(self) -> ComputeCounters:
        """What this agent's model processes have computed, all together."""
        return self._computed_before + self._computed

    @property
    def waits_for_memory(self) -> bool:
        """Whether a MemoryFreed would let it go on."""
        return self._phase is Phase.FREEING

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; what must be done because of it, in order."""
        self._now = now
        match event:
            case LeaseReceived(lease):
                self._received(lease)
            case LeaseCancelled(number):
                if (held := self._held.get(number)) is not None:
                    self._drop(held)
            case LeasesLost():
                for held in list(self._held.values()):
                    self._drop(held)
            case ProcessSaid(message):
                self._beat_at = now
                if not isinstance(message, m.ModelHeartbeat):
                    self._progress_at = now
                _FROM_PROCESS[type(message)](self, message)
            case ProcessExited(returncode, trace):
                self._exited(returncode, trace)
            case MemoryFreed():
                if self._phase is Phase.FREEING:
                    self._enter(Phase.ABSENT)
            case Drain():
                self._drain()
            case Tick(stall_s):
                self._watch(stall_s)
        self._advance()
        if self._drains_until is not None:
            self._stop_when_done(self._drains_until)
        actions, self._actions = self._actions, []
        return actions

    # --- Leases ------------------------------------------------------------------------------------------------------

    def _received(self, lease: m.Lease) -> None:
        if self._drains_until is None:
            self._held[lease.lease] = _ActiveLease(lease)
        else:  # It was on its way before the broker knew.
            self._actions.append(TellBroker(m.LeaseReturned(lease=lease.lease)))

    def _drop(self, held: _ActiveLease) -> None:
        """Forget a lease; what the process still says of it is not listened to."""
        del self._held[held.lease.lease]
        if held.ticket is not None:
            self._actions.append(TellProcess(m.CancelLease(lease=held.ticket)))

    def _return(self, held: _ActiveLease) -> None:
        self._drop(held)
        self._actions.append(TellBroker(m.LeaseReturned(lease=held.lease.lease)))

    def _drain(self) -> None:
        """Take nothing on, and finish only what the process is at."""
        self._drains_until = self._now + self._settings.drain_s
        self._actions.append(TellBroker(m.DrainWorker()))
        running = self._running()
        for held in [held for held in self._held.values() if held is not running]:
            self._return(held)
        if running is not None:
            self._log("info", f"stopping; the lease at work is waited for, {self._settings.drain_s:.0f} s at most")

    def _stop_when_done(self, deadline: float) -> None:
        if self._now >= deadline:
            for held in list(self._held.values()):
                self._return(held)
        if not self._held:
            self._actions.append(Stop())

    def _running(self) -> _ActiveLease | None:
        """The lease that the process is at: it takes them in their order."""
        return next((held for held in self._held.values() if held.ticket is not None and not held.is_answered), None)

    # --- The model process -------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        self._phase, self._phase_since, self._activity = phase, self._now, None
        self._untold_since = None

    def _advance(self) -> None:
        """Bring the process nearer to what the first lease needs."""
        if self._phase is Phase.ENDING:
            if self._kill_at is not None and self._now >= self._kill_at:
                self._log("warning", f"the process of {self._model} did not end when asked to; it is killed")
                self._actions.append(EndProcess(kill=True))
                self._kill_at = None
            return
        wanted = next(iter(self._held.values()), None)
        if wanted is None:
            return
        if self._phase is Phase.ABSENT:
            crashes = self._load_crashes.get(wanted.lease.model)
            if crashes is None or self._now >= crashes.again_at:
                self._start(wanted)
        elif self._phase is Phase.FREEING:
            return
        elif self._model != wanted.lease.model:
            # The process finishes what it was given; what came since waits behind the other model's lease.
            if not any(held.ticket is not None for held in self._held.values()):
                self._replaced = self._model
                self._end()
        elif self._phase is Phase.READY:
            self._hand_over()

    def _start(self, wanted: _ActiveLease) -> None:
        self._started += 1
        self._model = wanted.lease.model
        self._enter(Phase.LOADING)
        self._beat_at = self._progress_at = self._now
        self._steps, self._verdict = 0, None
        in_place = "" if self._replaced is None else f", in place of {self._replaced}"
        self._replaced = None
        self._tell(wanted.lease.lease, "info", f"loading {self._model}{in_place}")
        self._actions.append(StartProcess(self._model, self._started))

    def _hand_over(self) -> None:
        for held in self._held.values():
            if held.ticket is not None or held.lease.model != self._model:
                continue
            if self._running() is None:
                self._progress_at = self._now
            held.ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
            self._actions.append(TellProcess(msgspec.structs.replace(held.lease, lease=held.ticket)))

    def _spoken_of(self, ticket: int) -> _ActiveLease | None:
        """The lease that the process means, None if it is forgotten."""
        return next((held for held in self._held.values() if held.ticket == ticket), None)

    def _end(self) -> None:
        self._enter(Phase.ENDING)
        self._kill_at = self._now + self._settings.terminate_s
        self._actions.append(EndProcess(kill=False))

    def _watch(self, stall_s: float) -> None:
        """Kill a process that does not come on, and go on without memory that does not come back."""
        self._beat_at += stall_s
        self._progress_at += stall_s
        self._phase_since += stall_s
        self._tell_of_compiling(stall_s)
        if self._phase is Phase.FREEING and self._now - self._phase_since >= self._settings.free_s:
            self._log(
                "warning", f"the device's memory is not free {self._settings.free_s:.0f} s after its process ended"
            )
            self._enter(Phase.ABSENT)
        if self._verdict is None and (verdict := self._overdue()) is not None:
            self._verdict = verdict
            self._log("warning", f"the process of {self._model} {verdict}; it is killed")
            self._actions.append(EndProcess(kill=True))

    def _tell_of_compiling(self, stall_s: float) -> None:
        """Say what is compiled while nothing comes, unless that is over before anybody wonders."""
        if self._untold_since is None or self._activity is None:
            return
        self._untold_since += stall_s
        running = self._running()
        if running is not None and self._now - self._untold_since >= _TELL_OF_COMPILING_S:
            self._untold_since = None
            self._tell(running.lease.lease, "info", f"compiling {self._activity.detail} for {self._model}")

    def _overdue(self) -> str | None:
        """What the process has failed to do in time; None if it may go on."""
        settings = self._settings
        if self._phase is Phase.LOADING:
            if self._now - self._phase_since > settings.load_s:
                return f"did not load within {settings.load_s:.0f} s"
            silence_s = settings.loading_silence_s
        elif self._phase is Phase.READY:
            compiles = self._activity is not None and self._activity.phase == "compiling"
            limit_s = settings.compile_s if compiles else settings.step_s
            if self._running() is not None and self._now - self._progress_at > limit_s:
                return f"did not come on for {limit_s:.0f} s while {self.phase}"
            silence_s = settings.silence_s
        else:
            return None
        if self._now - self._beat_at > silence_s:
            return f"gave no sign of life for {silence_s:.0f} s"
        return None

    def _exited(self, returncode: int, trace: str | None) -> None:
        before, model = self._phase, self._model
        self._model = self._kill_at = None
        self._computed_before, self._computed = self.computed, ComputeCounters()
        self._enter(Phase.FREEING if self._watches_memory else Phase.ABSENT)
        if before is Phase.ENDING or model is None:
            return
        how = _describe(returncode) if self._verdict is None else f"killed because it {self._verdict}"
        if self._processes > 1:
            how += (
                f" (it leads a group of {self._processes} processes: when one of them ends, all end and start again; the "
                "worker of the one that ended first says why)"
            )
        self._log("warning", f"the process of {model} ended by itself: {how}")
        if before is Phase.LOADING:
            self._died_loading(model, how, trace)
            return
        concerned = [held for held in self._held.values() if held.lease.model == model]
        for held in [held for held in concerned if held.is_answered]:
            concerned.remove(held)
            self._finish(held)
        running = self._running()
        for held in concerned:
            held.ticket = None  # There is no process any more that would have to hear of it.
            if held is running:
                text = f"the process of the model {model} ended by itself, {how}; its standard error is the worker's"
                error = ErrorReport(code=ModelProcessDied.code, message=text, traceback=trace)
                del self._held[held.lease.lease]
                self._actions.append(TellBroker(m.LeaseCrashed(lease=held.lease.lease, error=error)))
            else:
                self._return(held)

    def _died_loading(self, model: ModelSpec, how: str, trace: str | None) -> None:
        before = self._load_crashes.pop(model, None)
        count = 1 if before is None else before.count + 1
        concerned = [held for held in self._held.values() if held.lease.model == model]
        if count >= self._settings.max_load_crashes:
            text = (
                f"the process of the model {model} ended by itself {count} times while it was loading, the last time "
                f"{how}; what it wrote before is on the worker's standard error"
            )
            error = ErrorReport(code=ModelProcessDied.code, message=text, traceback=trace)
            for held in concerned:
                self._fail(held, error, None)
            return
        pause_s = self._settings.restart_s * 2 ** (count - 1)
        self._load_crashes[model] = _LoadCrashes(count, self._now + pause_s)
        for held in concerned[:1]:
            text = (
                f"the process that was loading {model} ended by itself, {how}; the next one starts in {pause_s:.0f} s"
            )
            self._tell(held.lease.lease, "warning", text)

    # --- What the process says ---------------------------------------------------------------------------------------

    def _loaded(self, message: m.ModelLoaded) -> None:
        if self._phase is not Phase.LOADING or self._model is None:
            return
        self._load_crashes.pop(self._model, None)
        self._enter(Phase.READY)
        for held in self._held.values():
            if held.lease.model == self._model:
                self._tell(held.lease.lease, "info", f"loaded {self._model} in {message.seconds:.1f} s")
                break

    def _refused(self, message: m.ModelLoadFailed) -> None:
        if self._phase is not Phase.LOADING or self._model is None:
            return
        self._load_crashes.pop(self._model, None)
        for held in [held for held in self._held.values() if held.lease.model == self._model]:
            self._fail(held, message.error, None)
        self._end()

    def _noticed(self, message: m.ModelNotice) -> None:
        if self._phase is not Phase.LOADING or self._model is None:
            return
        for held in self._held.values():
            if held.lease.model == self._model:
                self._tell(held.lease.lease, message.level, message.text)
                break

    def _phase_changed(self, message: m.PhaseChanged) -> None:
        if self._phase is Phase.READY:
            self._activity = message
            self._untold_since = self._now if message.phase == "compiling" else None

    def _beat(self, message: m.ModelHeartbeat) -> None:
        self._computed = message.computed
        if message.steps != self._steps:
            self._steps, self._progress_at = message.steps, self._now

    def _answered(self, message: m.LeaseAnswered) -> None:
        held = self._spoken_of(message.lease)
        if held is None:
            return
        items = message.indices.tolist()
        if not all(0 <= item < len(held.lease.work) for item in items):
            self._log("warning", "the model process answered an item that it was not given; that is ignored")
            return
        held.answered.update(items)
        self._actions.append(TellBroker(msgspec.structs.replace(message, lease=held.lease.lease)))

    def _failed(self, message: m.LeaseFailed) -> None:
        held = self._spoken_of(message.lease)
        if held is not None:
            known = message.index is not None and message.index < len(held.lease.work)
            self._fail(held, message.error, message.index if known else None)

    def _done(self, message: m.LeaseDone) -> None:
        held = self._spoken_of(message.lease)
        if held is not None:
            self._finish(held)

    def _pass_on(self, message: m.LeaseNotice | m.LeaseProgressed) -> None:
        held = self._spoken_of(message.lease)
        if held is not None:
            self._actions.append(TellBroker(msgspec.structs.replace(message, lease=held.lease.lease)))

    # --- Actions -----------------------------------------------------------------------------------------------------

    def _finish(self, held: _ActiveLease) -> None:
        del self._held[held.lease.lease]
        self._actions.append(TellBroker(m.LeaseDone(lease=held.lease.lease)))

    def _fail(self, held: _ActiveLease, error: ErrorReport, index: int | None) -> None:
        del self._held[held.lease.lease]
        # What the error says is for the run alone: it may repeat a text of its requests.
        self._log("info", f"a batch for {held.lease.model} failed: {error.code}")
        self._actions.append(TellBroker(m.LeaseFailed(lease=held.lease.lease, error=error, index=index)))

    def _tell(self, lease: int, level: Level, text: str) -> None:
        self._log(level, text)
        self._actions.append(TellBroker(m.LeaseNotice(lease=lease, level=level, text=text)))

    def _log(self, level: Level, text: str) -> None:
        self._actions.append(Log(level, text))


def _describe(returncode: int) -> str:
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        hint = " (SIGKILL is often the system's answer to a machine out of memory)" if name == "SIGKILL" else ""
        return f"by {name}{hint}"
    return f"with exit status {returncode}"


_FROM_PROCESS: Mapping[type, Callable[[AgentCore, Any], None]] = MappingProxyType(
    {
        m.ModelLoaded: AgentCore._loaded,
        m.ModelLoadFailed: AgentCore._refused,
        m.ModelNotice: AgentCore._noticed,
        m.PhaseChanged: AgentCore._phase_changed,
        m.ModelHeartbeat: AgentCore._beat,
        m.LeaseAnswered: AgentCore._answered,
        m.LeaseFailed: AgentCore._failed,
        m.LeaseDone: AgentCore._done,
        m.LeaseNotice: AgentCore._pass_on,
        m.LeaseProgressed: AgentCore._pass_on,
    }
)
