"""What the agent does, with no socket, process or clock in it.

The agent holds leases in the order in which they came, and one model process, or none, which is in one of these phases::

    ABSENT ──start──▶ LOADING ──ModelLoaded──▶ READY
       ▲                 │                       │   a lease for another model, and nothing of this one left
       │                 ▼                       ▼
       └────exit──── ENDING ◀────────────────────┘   (terminated, and killed if it does not go in time)

A process that ends by itself takes nothing with it: the leases that it had are given to its successor, unless the
same lease was there when several of them died.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

import numpy as np

from birdie_zmq.config import AgentSettings
from birdie_zmq.errors import ModelProcessDied
from birdie_zmq.wire import messages as m


class Phase(Enum):
    """Where the model process is in its life."""

    ABSENT = "no model"
    LOADING = "loading"
    READY = "ready"
    ENDING = "ending"


@dataclass(frozen=True)
class LeaseReceived:
    """The broker handed out work."""

    lease: m.Lease


@dataclass(frozen=True)
class LeasesLost:
    """The broker no longer knows this worker; what it handed out is somebody else's now."""


@dataclass(frozen=True)
class ProcessSaid:
    """The model process sent a message."""

    message: m.ModelProcessMessage


@dataclass(frozen=True)
class ProcessExited:
    """The model process is gone; ``returncode`` as in subprocess, negative for a signal."""

    returncode: int


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = LeaseReceived | LeasesLost | ProcessSaid | ProcessExited | Tick


@dataclass(frozen=True)
class StartProcess:
    """Start a model process for this model; ``started`` counts the starts of this agent."""

    model: m.ModelSpec
    started: int


@dataclass(frozen=True)
class TellProcess:
    """Send a message to the model process."""

    message: m.Lease


@dataclass(frozen=True)
class EndProcess:
    """End the model process: ask it to (SIGTERM), or kill it."""

    kill: bool


@dataclass(frozen=True)
class TellBroker:
    """Send a message to the broker."""

    message: m.LeaseMessage


@dataclass(frozen=True)
class Log:
    """Tell the person who watches the worker."""

    level: m.Level
    text: str


Action = StartProcess | TellProcess | EndProcess | TellBroker | Log


@dataclass(eq=False)
class _Held:
    """A lease in hand.

    ``ticket`` is the number under which the process was given it: a broker that was started again counts its leases
    from the beginning, while the process may still speak of old ones. ``sent`` maps the process's items to the lease's.
    """

    lease: m.Lease
    ticket: int | None = None
    answered: set[int] = field(default_factory=set)
    sent: list[int] | None = None
    crashes: int = 0


class Agent:
    """The agent's whole behaviour.

    Args:
        settings: Timeouts and bounds.
    """

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._held: dict[int, _Held] = {}
        self._phase = Phase.ABSENT
        self._activity = ""
        self._model: m.ModelSpec | None = None
        self._kill_at: float | None = None
        self._started = 0
        self._next_ticket = 1
        self._actions: list[Action] = []
        self._now = 0.0

    @property
    def phase(self) -> str:
        """What the model process does, for the heartbeat."""
        return self._activity or self._phase.value

    @property
    def model(self) -> m.ModelSpec | None:
        """The model that is loaded, or on its way in or out."""
        return self._model

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event in; what must be done because of it, in order."""
        self._now = now
        match event:
            case LeaseReceived(lease):
                self._held[lease.lease] = _Held(lease)
            case LeasesLost():
                self._held.clear()
            case ProcessSaid(message):
                _FROM_PROCESS[type(message)](self, message)
            case ProcessExited(returncode):
                self._exited(returncode)
            case Tick():
                pass
        self._advance()
        actions, self._actions = self._actions, []
        return actions

    # --- The model process -------------------------------------------------------------------------------------------

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
            self._started += 1
            self._model = wanted.lease.model
            self._phase = Phase.LOADING
            self._tell(wanted.lease.lease, "info", f"loading {self._model}")
            self._actions.append(StartProcess(self._model, self._started))
        elif self._model != wanted.lease.model:
            # The process finishes what it was given; what came since waits behind the other model's lease.
            if not any(held.sent is not None for held in self._held.values()):
                self._end()
        elif self._phase is Phase.READY:
            self._hand_over()

    def _hand_over(self) -> None:
        for held in self._held.values():
            if held.sent is not None or held.lease.model != self._model:
                continue
            lease = held.lease
            held.sent = [i for i in range(len(lease.work)) if i not in held.answered]
            held.ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
            self._actions.append(
                TellProcess(
                    m.Lease(
                        lease=held.ticket,
                        attempt=lease.attempt,
                        model=lease.model,
                        work=lease.work.select(held.sent) if held.answered else lease.work,
                        limits=lease.limits,
                    )
                )
            )

    def _spoken_of(self, ticket: int) -> _Held | None:
        """The lease that the process means, None if it is forgotten."""
        return next((held for held in self._held.values() if held.ticket == ticket), None)

    def _end(self) -> None:
        self._phase = Phase.ENDING
        self._activity = ""
        self._kill_at = self._now + self._settings.terminate_s
        self._actions.append(EndProcess(kill=False))

    def _exited(self, returncode: int) -> None:
        expected = self._phase is Phase.ENDING
        model, self._model = self._model, None
        self._phase, self._activity, self._kill_at = Phase.ABSENT, "", None
        if expected:
            return
        how = _describe(returncode)
        self._log("warning", f"the process of {model} ended by itself: {how}")
        concerned = [held for held in self._held.values() if held.lease.model == model]
        for held in [held for held in concerned if len(held.answered) == len(held.lease.work)]:
            concerned.remove(held)
            self._finish(held)
        running = next((held for held in concerned if held.sent is not None), concerned[0] if concerned else None)
        if running is not None:
            running.crashes += 1
        for held in concerned:
            held.sent = held.ticket = None
            if held.crashes >= self._settings.max_crashes:
                error = ModelProcessDied(
                    f"the process of the model {model} ended by itself {held.crashes} times at the same batch, "
                    f"the last time {how}; what it wrote before is on the worker's standard error"
                )
                self._fail(held, m.ErrorReport.of(error), None)

    # --- What the process says ---------------------------------------------------------------------------------------

    def _loaded(self, message: m.ModelLoaded) -> None:
        if self._phase is not Phase.LOADING:
            return
        self._phase, self._activity = Phase.READY, ""
        for held in self._held.values():
            if held.lease.model == self._model:
                self._tell(held.lease.lease, "info", f"loaded {self._model} in {message.seconds:.1f} s")
                break

    def _refused(self, message: m.ModelRefused) -> None:
        if self._phase is not Phase.LOADING:
            return
        for held in [held for held in self._held.values() if held.lease.model == self._model]:
            self._fail(held, message.error, None)
        self._end()

    def _phase_changed(self, message: m.PhaseChanged) -> None:
        if self._phase is not Phase.ENDING:
            self._activity = message.phase

    def _answered(self, message: m.LeaseAnswered) -> None:
        held = self._spoken_of(message.lease)
        if held is None or held.sent is None:
            return
        items = message.indices.tolist()
        if not all(0 <= item < len(held.sent) for item in items):
            self._log("warning", "the model process answered an item that it was not given; that is ignored")
            return
        indices = [held.sent[item] for item in items]
        held.answered.update(indices)
        where = np.array(indices, dtype=np.int32)
        self._actions.append(
            TellBroker(m.LeaseAnswered(lease=held.lease.lease, indices=where, answers=message.answers))
        )

    def _failed(self, message: m.LeaseFailed) -> None:
        held = self._spoken_of(message.lease)
        if held is not None and held.sent is not None:
            known = message.index is not None and message.index < len(held.sent)
            index = held.sent[message.index] if known and message.index is not None else None
            self._fail(held, message.error, index)

    def _done(self, message: m.LeaseDone) -> None:
        held = self._spoken_of(message.lease)
        if held is not None:
            self._finish(held)

    def _notice(self, message: m.LeaseNotice) -> None:
        held = self._spoken_of(message.lease)
        if held is not None:
            notice = m.LeaseNotice(lease=held.lease.lease, level=message.level, text=message.text)
            self._actions.append(TellBroker(notice))

    # --- Actions -----------------------------------------------------------------------------------------------------

    def _finish(self, held: _Held) -> None:
        del self._held[held.lease.lease]
        self._actions.append(TellBroker(m.LeaseDone(lease=held.lease.lease)))

    def _fail(self, held: _Held, error: m.ErrorReport, index: int | None) -> None:
        del self._held[held.lease.lease]
        self._log("info", f"a batch for {held.lease.model} failed: {error.message}")
        self._actions.append(TellBroker(m.LeaseFailed(lease=held.lease.lease, error=error, index=index)))

    def _tell(self, lease: int, level: m.Level, text: str) -> None:
        self._log(level, text)
        self._actions.append(TellBroker(m.LeaseNotice(lease=lease, level=level, text=text)))

    def _log(self, level: m.Level, text: str) -> None:
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


_FROM_PROCESS: Mapping[type, Callable[[Agent, Any], None]] = MappingProxyType(
    {
        m.ModelLoaded: Agent._loaded,
        m.ModelRefused: Agent._refused,
        m.PhaseChanged: Agent._phase_changed,
        m.LeaseAnswered: Agent._answered,
        m.LeaseFailed: Agent._failed,
        m.LeaseDone: Agent._done,
        m.LeaseNotice: Agent._notice,
    }
)
