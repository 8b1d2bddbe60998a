"""The clocks and the announced calls of a model runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdie_zmq.engine.backend import Backend
from birdie_zmq.engine.events import CompilationFinished, StepStarting
from birdie_zmq.engine.model_runner import ModelRunner, WorkClock


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


@dataclass
class ManualClock:
    """A clock that is set by the test."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_seconds_exclude_compilation_and_tracing() -> None:
    time, backend = ManualClock(), Probed(compile_seconds=50.0, tracing_seconds=7.0)
    runner = ModelRunner(cast(Backend, cast(Any, backend)), 64, time)
    with runner.clock.work():
        runner.clock.computing()
        time.now += 5.0
        backend.compile_seconds += 2.0
        backend.tracing_seconds += 0.5
        assert runner.computed.seconds == 2.5, "while the work is in progress"
        runner.clock.idle()
    time.now += 7.0

    statistics = runner.statistics(0.25)
    assert statistics.step_seconds == runner.computed.seconds == 2.5
    assert statistics.compile_seconds == runner.computed.compile_seconds == 2.5, "that of loading is not included"
    assert (statistics.idle_seconds, statistics.tokenizer_seconds) == (0.0, 0.25)


def test_counts_that_are_read_during_a_compilation_are_corrected_at_its_end() -> None:
    time, backend = ManualClock(), Probed()
    runner = ModelRunner(cast(Backend, cast(Any, backend)), 64, time)
    with runner.clock.work():
        runner.clock.computing()
        time.now += 6.0
        assert runner.computed.seconds == 6.0
        time.now += 4.0
        backend.compile_seconds = 9.0
        runner.clock.idle()
        time.now += 1.0

    assert (runner.computed.seconds, runner.statistics(0.0).idle_seconds) == (1.0, 1.0)


# --- The clock --------------------------------------------------------------------------------------------------------


def clock_after(*events: tuple[float, str]) -> WorkClock:
    """Return a clock after events, each some seconds after the one before."""
    time = ManualClock()
    clock = WorkClock(time)
    for seconds, event in events:
        time.now += seconds
        getattr(clock, event)()
    return clock


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([(5.0, "arrived"), (3.0, "finished")], (0.0, 3.0)),
        ([(5.0, "arrived"), (3.0, "computing"), (2.0, "idle"), (1.0, "finished"), (9.0, "arrived")], (2.0, 4.0)),
        # The next lease arrives and is encoded while this one is computed; the device then waits for it.
        (
            [
                (0.0, "arrived"),
                (0.5, "computing"),
                (1.0, "arrived"),
                (1.0, "idle"),
                (0.25, "finished"),
                (4.0, "computing"),
                (2.0, "idle"),
                (0.0, "finished"),
                (60.0, "arrived"),
            ],
            (4.0, 4.75),
        ),
        # A step that is submitted before the result of the previous one is fetched.
        ([(0.0, "arrived"), (0.0, "computing"), (1.0, "computing"), (1.0, "idle"), (0.0, "finished")], (2.0, 0.0)),
        ([(7.0, "computing"), (7.0, "idle"), (7.0, "computing")], (0.0, 0.0)),
    ],
    ids=["never computed", "one lease", "two leases", "steps one ahead", "no work"],
)
def test_seconds_of_computing_and_idling(events: list[tuple[float, str]], expected: tuple[float, float]) -> None:
    assert clock_after(*events).seconds == expected


def test_a_failed_piece_of_work_is_finished() -> None:
    time = ManualClock()
    clock = WorkClock(time)

    def fail() -> None:
        with clock.work():
            time.now += 1.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    time.now += 1.0

    assert clock.seconds == (0.0, 1.0)


@given(st.lists(st.tuples(st.integers(0, 100), st.sampled_from(["computing", "idle", "work"]))))
def test_computing_and_idling_add_up_to_the_time_of_the_work(events: list[tuple[int, str]]) -> None:
    time = ManualClock()
    clock = WorkClock(time)
    began = time.now
    with clock.work():
        for seconds, event in events:
            time.now += seconds
            if event == "work":
                with clock.work():
                    time.now += 1
            else:
                change: Callable[[], None] = getattr(clock, event)
                change()
    assert sum(clock.seconds) == time.now - began
