"""What the agent of a host that follows does, event by event and on a clock of plain numbers."""

from __future__ import annotations

import signal

from birdie_zmq.engine.distributed.process_group import GROUP_ENDED
from birdie_zmq.settings import AgentSettings
from birdie_zmq.worker.distributed.core import (
    LIVED_S,
    Action,
    Begin,
    Done,
    End,
    Event,
    Exited,
    FollowerCore,
    Loads,
    Log,
    ModelHeartbeat,
    Said,
    Start,
    Stop,
    Tick,
)


class Desk:
    """An agent and a clock that moves only when told to."""

    def __init__(self) -> None:
        self.agent = FollowerCore("process 1 of 2", AgentSettings())
        self.now = 100.0
        self.logged: list[tuple[str, str]] = []

    def happens(self, event: Event, after_s: float = 0.0) -> list[Action]:
        self.now += after_s
        actions = self.agent.handle(event, self.now)
        self.logged += [(action.level, action.text) for action in actions if isinstance(action, Log)]
        return [action for action in actions if not isinstance(action, Log)]

    def pause(self) -> float:
        """After how long the next process is started."""
        for halves in range(100):
            if self.happens(Tick(), after_s=0.5) == [Start()]:
                return (halves + 1) / 2
        raise AssertionError("no process is started")


def test_a_process_starts_and_what_it_says_is_written_down() -> None:
    desk = Desk()
    assert desk.happens(Begin()) == [Start()]
    assert desk.happens(Tick(), 1.0) == []
    desk.happens(Said("warning", "cannot load the model: why"))
    assert desk.logged == [("warning", "process 1 of 2: cannot load the model: why")]


def test_one_that_has_lived_is_started_again_at_once() -> None:
    desk = Desk()
    desk.happens(Begin())
    assert desk.happens(Exited(GROUP_ENDED), LIVED_S) == [Start()]
    assert desk.happens(Exited(GROUP_ENDED), LIVED_S) == [Start()]
    level, text = desk.logged[-1]
    assert (level, text) == (
        "info",
        "process 1 of 2 has ended, with its group; it starts again, and waits for process 0",
    )


def test_one_that_ends_at_once_is_given_longer_and_longer_pauses_up_to_a_bound() -> None:
    desk = Desk()
    desk.happens(Begin())
    pauses = []
    for _ in range(8):
        assert desk.happens(Exited(1)) == []
        pauses.append(desk.pause())
    assert pauses == [0.5, 1, 2, 4, 8, 16, 16, 16]
    assert desk.happens(Exited(1), LIVED_S) == [Start()]  # this one was there for a while
    assert desk.happens(Exited(1)) == []
    assert desk.pause() == 0.5


def test_what_jax_does_to_a_process_without_its_group_is_said() -> None:
    desk = Desk()
    desk.happens(Begin())
    desk.happens(Exited(-signal.SIGABRT), 60)
    assert "JAX ends a process when another one of its group is gone" in desk.logged[-1][1]


def test_one_that_is_silent_is_killed_since_the_others_wait_for_it() -> None:
    desk = Desk()
    desk.happens(Begin())
    for _ in range(60):
        desk.happens(ModelHeartbeat(), 1.0)
        assert desk.happens(Tick()) == []
    assert desk.happens(Tick(), 20.0) == []
    assert desk.happens(Tick(), 1.0) == [End(kill=True)]
    assert desk.logged[-1][1] == "process 1 of 2 gave no sign of life for 21 s; it is killed"
    assert desk.happens(Exited(-9)) == [Start()]
    assert desk.happens(Tick(), 19.0) == []


def test_one_that_loads_may_be_silent_for_longer_and_one_whose_agent_was_stopped_too() -> None:
    desk = Desk()
    desk.happens(Begin())
    desk.happens(Loads(True))
    assert desk.happens(Tick(), 299.0) == []
    desk.happens(Loads(False))
    assert desk.happens(Tick(stall_s=1000.0), 1000.0) == []
    assert desk.happens(Tick(), 21.0) == [End(kill=True)]


def test_it_stops_when_the_process_has_ended_which_is_killed_if_it_does_not() -> None:
    desk = Desk()
    desk.happens(Begin())
    assert desk.happens(Stop()) == [End(kill=False)]
    assert desk.happens(Tick(), 4.9) == []
    assert desk.happens(Tick(), 0.1) == [End(kill=True)]
    assert desk.happens(Tick(), 10) == []  # it is on its way
    assert desk.happens(Exited(-9)) == [Done()]


def test_it_stops_at_once_between_two_processes() -> None:
    desk = Desk()
    desk.happens(Begin())
    desk.happens(Exited(1))
    assert desk.happens(Stop()) == [Done()]
