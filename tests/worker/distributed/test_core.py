"""FollowerCore, event by event with a fake clock."""

from __future__ import annotations

import signal

from birdie_zmq.engine.distributed.process_group import GROUP_ENDED_EXIT_STATUS
from birdie_zmq.settings import AgentSettings
from birdie_zmq.worker.distributed.core import (
    MIN_UPTIME_S,
    Action,
    AgentStarted,
    Event,
    FollowerCore,
    HeartbeatReceived,
    LoadingChanged,
    Log,
    ModelProcessExited,
    NoticeReceived,
    StartModelProcess,
    Stop,
    StopModelProcess,
    StopRequested,
    Tick,
)


class Harness:
    """A FollowerCore with a fake clock, which records its log."""

    def __init__(self) -> None:
        self.core = FollowerCore("process 1 of 2", AgentSettings())
        self.now = 100.0
        self.logged: list[tuple[str, str]] = []

    def handle(self, event: Event, after_s: float = 0.0) -> list[Action]:
        self.now += after_s
        actions = self.core.handle(event, self.now)
        self.logged += [(action.level, action.text) for action in actions if isinstance(action, Log)]
        return [action for action in actions if not isinstance(action, Log)]

    def pause(self) -> float:
        """Return the seconds until the next process is started."""
        for halves in range(100):
            if self.handle(Tick(), after_s=0.5) == [StartModelProcess()]:
                return (halves + 1) / 2
        raise AssertionError("no process was started")


def test_process_starts_and_its_notices_are_logged() -> None:
    harness = Harness()
    assert harness.handle(AgentStarted()) == [StartModelProcess()]
    assert harness.handle(Tick(), 1.0) == []
    harness.handle(NoticeReceived("warning", "cannot load the model: why"))
    assert harness.logged == [("warning", "process 1 of 2: cannot load the model: why")]


def test_process_with_enough_uptime_is_restarted_at_once() -> None:
    harness = Harness()
    harness.handle(AgentStarted())
    assert harness.handle(ModelProcessExited(GROUP_ENDED_EXIT_STATUS), MIN_UPTIME_S) == [StartModelProcess()]
    assert harness.handle(ModelProcessExited(GROUP_ENDED_EXIT_STATUS), MIN_UPTIME_S) == [StartModelProcess()]
    level, text = harness.logged[-1]
    assert (level, text) == (
        "info",
        "process 1 of 2 has exited, with its process group; restarting it now, then it waits for process 0",
    )


def test_process_that_exits_at_once_is_restarted_after_growing_bounded_pauses() -> None:
    harness = Harness()
    harness.handle(AgentStarted())
    pauses = []
    for _ in range(8):
        assert harness.handle(ModelProcessExited(1)) == []
        pauses.append(harness.pause())
    assert pauses == [0.5, 1, 2, 4, 8, 16, 16, 16]
    assert harness.handle(ModelProcessExited(1), MIN_UPTIME_S) == [StartModelProcess()]  # this one ran for a while
    assert harness.handle(ModelProcessExited(1)) == []
    assert harness.pause() == 0.5


def test_abort_by_jax_is_explained() -> None:
    harness = Harness()
    harness.handle(AgentStarted())
    harness.handle(ModelProcessExited(-signal.SIGABRT), 60)
    assert "JAX aborts a process when another rank of its process group is gone" in harness.logged[-1][1]


def test_process_without_heartbeat_is_killed() -> None:
    harness = Harness()
    harness.handle(AgentStarted())
    for _ in range(60):
        harness.handle(HeartbeatReceived(), 1.0)
        assert harness.handle(Tick()) == []
    assert harness.handle(Tick(), 20.0) == []
    assert harness.handle(Tick(), 1.0) == [StopModelProcess(kill=True)]
    assert harness.logged[-1][1] == "process 1 of 2 sent no heartbeat for 21 s; killing it"
    assert harness.handle(ModelProcessExited(-9)) == [StartModelProcess()]
    assert harness.handle(Tick(), 19.0) == []


def test_heartbeat_timeout_is_longer_while_loading_and_excludes_stalls() -> None:
    harness = Harness()
    harness.handle(AgentStarted())
    harness.handle(LoadingChanged(True))
    assert harness.handle(Tick(), 299.0) == []
    harness.handle(LoadingChanged(False))
    assert harness.handle(Tick(stall_s=1000.0), 1000.0) == []
    assert harness.handle(Tick(), 21.0) == [StopModelProcess(kill=True)]


def test_stop_ends_the_process_and_kills_it_after_the_timeout() -> None:
    harness = Harness()
    harness.handle(AgentStarted())
    assert harness.handle(StopRequested()) == [StopModelProcess(kill=False)]
    assert harness.handle(Tick(), 4.9) == []
    assert harness.handle(Tick(), 0.1) == [StopModelProcess(kill=True)]
    assert harness.handle(Tick(), 10) == []  # it was killed already
    assert harness.handle(ModelProcessExited(-9)) == [Stop()]


def test_stop_without_a_process_ends_at_once() -> None:
    harness = Harness()
    harness.handle(AgentStarted())
    harness.handle(ModelProcessExited(1))
    assert harness.handle(StopRequested()) == [Stop()]
