"""Ticker with a fake clock."""

from __future__ import annotations

from birdie_zmq.processes.ticker import Ticker


def test_ticks_are_an_interval_apart() -> None:
    ticker = Ticker(1.0, first_at=10.0)
    assert [ticker.tick(now) for now in (9.9, 10.0, 10.9, 11.0)] == [None, 0.0, None, 0.0]


def test_remaining_time_is_never_negative() -> None:
    ticker = Ticker(1.0, first_at=10.0)
    assert [ticker.remaining_s(now) for now in (9.25, 10.0, 15.0)] == [0.75, 0.0, 0.0]
    ticker.tick(15.0)
    assert ticker.remaining_s(15.0) == 1.0


def test_delay_of_a_busy_loop_is_no_stall() -> None:
    assert Ticker(0.5, first_at=10.0).tick(13.0) == 0.0


def test_delay_of_a_stopped_process_is_a_stall_and_is_not_made_up_for() -> None:
    ticker = Ticker(0.5, first_at=10.0)
    assert ticker.tick(70.0) == 60.0
    assert [ticker.tick(now) for now in (70.4, 70.5)] == [None, 0.0]
