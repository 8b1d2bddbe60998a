"""What the agent of a host that follows does, with no process or clock in it: its model process runs, or starts again.

The process waits by itself until the first process of the group is there, and ends when the group ends. So one that has
lived for a while is started again at once; one that ends soon after its start is given longer and longer pauses. It beats
each second, and is killed when it is silent: the others wait for one that was stopped.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from birdie_zmq.engine.distributed.process_group import GROUP_ENDED
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import Level

LIVED_S = 5.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 16.0


@dataclass(frozen=True)
class Begin:
    """The agent runs."""


@dataclass(frozen=True)
class Said:
    """The model process said a line."""

    level: Level
    text: str


@dataclass(frozen=True)
class ModelHeartbeat:
    """The model process is there."""


@dataclass(frozen=True)
class Loads:
    """The model process begins to load its model, or has done so: meanwhile a page may keep Python's lock for long."""

    now: bool


@dataclass(frozen=True)
class Exited:
    """The model process is gone; ``returncode`` is as in subprocess."""

    returncode: int


@dataclass(frozen=True)
class Stop:
    """The agent is to stop."""


@dataclass(frozen=True)
class Tick:
    """Time has passed; ``late_s`` is how much more of it than should have, because this agent was stopped."""

    stall_s: float = 0.0


Event = Begin | Said | ModelHeartbeat | Loads | Exited | Stop | Tick


@dataclass(frozen=True)
class Start:
    """Start a model process."""


@dataclass(frozen=True)
class End:
    """End the model process: ask it to (SIGTERM), or kill it."""

    kill: bool


@dataclass(frozen=True)
class Log:
    """Tell the person who watches the worker."""

    level: Level
    text: str


@dataclass(frozen=True)
class Done:
    """Nothing is left to wait for."""


Action = Start | End | Log | Done


class FollowerCore:
    """The agent's whole behaviour.

    Args:
        name: What its process is called in the log, such as ``process 1 of 2``.
        settings: How long the process may be silent, and take to end by itself.
    """

    def __init__(self, name: str, settings: AgentSettings) -> None:
        self._name = name
        self._settings = settings
        self._heard_at = 0.0
        self._silence_s = settings.silence_s
        self._runs = False
        self._began_at = 0.0
        self._pause_s = 0.0
        self._start_at: float | None = None
        self._stops = False
        self._kill_at: float | None = None

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event at a time in monotonic seconds; what is to be done, in order."""
        actions: list[Action] = []
        if isinstance(event, Said | ModelHeartbeat | Loads):
            self._heard_at = now
        match event:
            case Begin():
                self._start_at = now
            case Said(level, text):
                actions.append(Log(level, f"{self._name}: {text}"))
            case Loads(loads):
                self._silence_s = self._settings.loading_silence_s if loads else self._settings.silence_s
            case Exited(returncode):
                actions += self._exited(returncode, now)
            case Stop():
                self._stops, self._start_at = True, None
                if not self._runs:
                    return [Done()]
                self._kill_at = now + self._settings.terminate_s
                actions.append(End(kill=False))
            case Tick(stall_s):
                self._heard_at += stall_s
                actions += self._watch(now)
            case ModelHeartbeat():
                pass
        if self._start_at is not None and now >= self._start_at:
            self._runs, self._began_at, self._start_at = True, now, None
            self._heard_at, self._silence_s = now, self._settings.silence_s
            actions.append(Start())
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            actions.append(End(kill=True))
        return actions

    def _watch(self, now: float) -> list[Action]:
        silent_s = now - self._heard_at
        if not self._runs or silent_s <= self._silence_s:
            return []
        self._heard_at = now
        return [Log("warning", f"{self._name} gave no sign of life for {silent_s:.0f} s; it is killed"), End(kill=True)]

    def _exited(self, returncode: int, now: float) -> list[Action]:
        self._runs, self._kill_at = False, None
        if self._stops:
            return [Done()]
        lived = now - self._began_at >= LIVED_S
        self._pause_s = 0.0 if lived else min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self._pause_s))
        self._start_at = now + self._pause_s
        level, how = _describe(returncode)
        when = "starts again" if lived else f"starts again in {self._pause_s:g} s"
        return [Log(level, f"{self._name} has ended, {how}; it {when}, and waits for process 0")]


def _describe(returncode: int) -> tuple[Level, str]:
    if returncode == GROUP_ENDED:
        return "info", "with its group"
    if returncode == -signal.SIGABRT:
        return "warning", "by SIGABRT: JAX ends a process when another one of its group is gone, and says so above"
    if returncode < 0:
        return "warning", f"by signal {-returncode}, and its group with it"
    return "warning", f"with exit status {returncode}; what it wrote is above"
