"""The simulation of many workers: every request is answered once despite failures, and the seed determines the result."""

from __future__ import annotations

import pytest

from benchmarks.simulation import ITEMS, RECORDED, Meter, load_steps, simulate, socket_seconds

STEPS = [(16, 0.4), (24, 0.5), (8, 0.3)]


@pytest.mark.parametrize("failures", [0.0, 120.0])
def test_every_request_is_answered_once_and_results_depend_on_the_seed(failures: float) -> None:
    one, same, other = (
        simulate(8, 2, 3, STEPS, message_cost_s=1e-4, failures_per_hour=failures, seed=seed) for seed in (1, 1, 2)
    )

    assert list(one.counts) == [1] * 24 * ITEMS
    assert one == same
    assert one.seconds != other.seconds
    assert 0.0 < one.utilisation <= 1.0
    assert 0.0 < one.broker_utilisation <= 1.0
    assert (one.retries > 0) == (failures > 0)


def test_two_workers_are_nearly_twice_as_fast_and_duplicate_little_work() -> None:
    one, two = (simulate(workers, 1, 16 // workers, STEPS) for workers in (1, 2))

    assert one.recomputed == 0
    assert two.requests == one.requests
    assert two.utilisation > 0.9
    assert two.recomputed < 0.05 * two.requests


def test_an_overloaded_broker_makes_workers_wait() -> None:
    quick, slow = (simulate(32, 2, 2, STEPS, message_cost_s=message_cost_s) for message_cost_s in (0.0, 0.02))

    assert slow.broker_utilisation > 0.95
    assert slow.utilisation < 0.5 < quick.utilisation
    assert list(slow.counts) == [1] * 64 * ITEMS


def test_measuring_the_message_cost_does_not_change_the_simulation() -> None:
    plain, metered = (simulate(4, 1, 2, STEPS, meter=meter) for meter in (None, Meter()))

    assert metered.message_cost_s > 0.0
    assert (metered.seconds, metered.messages) == (plain.seconds, plain.messages)
    assert socket_seconds() > 0.0


def test_a_recording_can_be_loaded_and_sped_up() -> None:
    steps, faster = load_steps(RECORDED), load_steps(RECORDED, 20.0)

    assert len(steps) >= 10
    assert all(answers > 0 and seconds >= 0.0 for answers, seconds in steps)
    assert sum(seconds for _, seconds in faster) == pytest.approx(sum(seconds for _, seconds in steps) / 20)
