"""The clocks and the announced calls of a model runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.events import CompilationFinished, StepStarting
from birdie_zmq.engine.model_runner import IdleClock, ModelRunner


@dataclass
class Probed:
    """The part of a backend that a model runner reads itself."""

    probe_shapes: frozenset[tuple[int, int]] = frozenset({(1, 16)})
    compile_seconds: float = 0.0
    tracing_seconds: float = 0.0
    states_evicted: int = 0


def test_a_call_is_announced_before_it_is_made() -> None:
    runner = ModelRunner(cast(Backend, cast(Any, Probed())), 64)
    made: list[int] = []
    events = runner.call([(1, 16), (2, 16), (2, 16)], lambda: made.append(1))

    assert next(events) == StepStarting(new_shapes=((2, 16),))
    assert made == []
    assert next(events) == CompilationFinished()
    assert made == [1]


def test_a_call_of_known_shapes_returns_its_result_after_one_event() -> None:
    runner = ModelRunner(cast(Backend, cast(Any, Probed())), 64)

    def returned() -> Any:
        result = yield from runner.call([(1, 16)], lambda: "scores")
        assert result == "scores"

    assert list(returned()) == [StepStarting()]


def test_seconds_of_work_exclude_compilation() -> None:
    time, backend = ManualClock(), Probed()
    runner = ModelRunner(cast(Backend, cast(Any, backend)), 64, time)
    with runner.timed():
        time.now += 5.0
        backend.compile_seconds = 2.0
        assert runner.computed.seconds == 3.0, "while the work is in progress"
    time.now += 7.0

    assert runner.statistics.step_seconds == runner.computed.seconds == 3.0


# --- Idle time --------------------------------------------------------------------------------------------------------


@dataclass
class ManualClock:
    """A clock that is set by the test."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_idle_seconds_are_between_the_end_of_a_step_and_the_next_step() -> None:
    time = ManualClock()
    clock = IdleClock(time)
    for event, seconds in [
        (clock.busy, 5.0),  # before the first step there was no work
        (clock.busy, 3.0),
        (clock.idle, 1.0),
        (clock.busy, 0.25),
        (clock.idle, 4.0),
        (clock.busy, 0.5),
        (clock.busy, 8.0),
    ]:
        time.now += seconds
        event()

    assert clock.seconds == 0.25 + 0.5


def test_a_pause_is_not_idle_time() -> None:
    time = ManualClock()
    clock = IdleClock(time)
    clock.busy()
    clock.idle()
    clock.pause()
    time.now += 60
    clock.busy()

    assert clock.seconds == 0.0
