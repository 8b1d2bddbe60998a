"""The decisions of a follower rank's agent, as a state machine without processes or a clock.

The agent runs one model process and restarts it whenever it exits. The model process itself waits for rank 0, and exits
when the process group ends. A process that has run for a while is therefore restarted at once; a process that exits soon
after its start is restarted after growing pauses. The process sends a heartbeat each second, and is killed when
heartbeats stop: the other ranks would wait forever for a stopped rank.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from birdie_zmq.engine.distributed.process_group import GROUP_ENDED_EXIT_STATUS
from birdie_zmq.processes.restart_policy import RestartPolicy
from birdie_zmq.settings import AgentSettings
from birdie_zmq.types import Level

MIN_UPTIME_S = 5.0
"""A model process that has run this long is restarted without a pause."""

_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 16.0


@dataclass(frozen=True)
class AgentStarted:
    """The agent runs."""


@dataclass(frozen=True)
class NoticeReceived:
    """The model process sent a line for the log."""

    level: Level
    text: str


@dataclass(frozen=True)
class HeartbeatReceived:
    """The model process sent a heartbeat."""


@dataclass(frozen=True)
class LoadingChanged:
    """The model process begins or ends loading. While it loads, the user module may hold Python's GIL for long."""

    is_loading: bool


@dataclass(frozen=True)
class ModelProcessExited:
    """The model process exited; ``returncode`` is as in subprocess, negative for a signal."""

    returncode: int


@dataclass(frozen=True)
class StopRequested:
    """The agent must stop."""


@dataclass(frozen=True)
class Tick:
    """Time passed.

    ``stall_s`` is the excess over the usual interval, in seconds, if this agent itself was stopped; else 0.
    """

    stall_s: float = 0.0


Event = AgentStarted | NoticeReceived | HeartbeatReceived | LoadingChanged | ModelProcessExited | StopRequested | Tick


@dataclass(frozen=True)
class StartModelProcess:
    """Start a model process."""


@dataclass(frozen=True)
class StopModelProcess:
    """Stop the model process: by SIGTERM, or by SIGKILL if ``kill``."""

    kill: bool


@dataclass(frozen=True)
class Log:
    """Write a line to the worker's log."""

    level: Level
    text: str


@dataclass(frozen=True)
class Stop:
    """End the agent: no process is left."""


Action = StartModelProcess | StopModelProcess | Log | Stop


class FollowerCore:
    """The follower agent's state machine.

    Args:
        name: The name of its process in the log, such as ``process 1 of 2``.
        settings: How long the process may go without a heartbeat, and take to exit after SIGTERM.
    """

    def __init__(self, name: str, settings: AgentSettings) -> None:
        self._name = name
        self._settings = settings
        self._heartbeat_at = 0.0
        self._silence_s = settings.silence_s
        self._is_running = False
        self._started_at = 0.0
        self._wants_process = False
        self._restarts = RestartPolicy(first_pause_s=_FIRST_PAUSE_S, max_pause_s=_MAX_PAUSE_S)
        self._kill_at: float | None = None

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle one event and return the actions to take, in order.

        Args:
            event: The event.
            now: The time in monotonic seconds.
        """
        actions: list[Action] = []
        if isinstance(event, NoticeReceived | HeartbeatReceived | LoadingChanged):
            self._heartbeat_at = now
        match event:
            case AgentStarted():
                self._wants_process = True
            case NoticeReceived(level, text):
                actions.append(Log(level, f"{self._name}: {text}"))
            case LoadingChanged(is_loading):
                self._silence_s = self._settings.loading_silence_s if is_loading else self._settings.silence_s
            case ModelProcessExited(returncode):
                actions += self._on_exit(returncode, now)
            case StopRequested():
                self._wants_process = False
                if not self._is_running:
                    return [Stop()]
                self._kill_at = now + self._settings.terminate_s
                actions.append(StopModelProcess(kill=False))
            case Tick(stall_s):
                self._heartbeat_at += stall_s
                actions += self._check_heartbeat(now)
            case HeartbeatReceived():
                pass
        if self._wants_process and not self._is_running and self._restarts.may_start(now):
            self._is_running, self._started_at = True, now
            self._heartbeat_at, self._silence_s = now, self._settings.silence_s
            actions.append(StartModelProcess())
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            actions.append(StopModelProcess(kill=True))
        return actions

    def _check_heartbeat(self, now: float) -> list[Action]:
        silent_s = now - self._heartbeat_at
        if not self._is_running or silent_s <= self._silence_s:
            return []
        self._heartbeat_at = now
        text = f"{self._name} sent no heartbeat for {silent_s:.0f} s; killing it"
        return [Log("warning", text), StopModelProcess(kill=True)]

    def _on_exit(self, returncode: int, now: float) -> list[Action]:
        self._is_running, self._kill_at = False, None
        if not self._wants_process:
            return [Stop()]
        if now - self._started_at >= MIN_UPTIME_S:
            self._restarts.succeeded()
            when = "restarting it now"
        else:
            when = f"restarting it in {self._restarts.failed(now):g} s"
        level, cause = _describe_exit(returncode)
        return [Log(level, f"{self._name} has exited, {cause}; {when}, then it waits for process 0")]


def _describe_exit(returncode: int) -> tuple[Level, str]:
    if returncode == GROUP_ENDED_EXIT_STATUS:
        return "info", "with its process group"
    if returncode == -signal.SIGABRT:
        return "warning", "by SIGABRT: JAX aborts a process when another rank of its process group is gone (see above)"
    if returncode < 0:
        return "warning", f"by signal {-returncode}, and its process group with it"
    return "warning", f"with exit status {returncode}; see its output above"
