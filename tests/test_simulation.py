"""The simulation of many workers: every request is answered once, whatever happens, and a seed says what happens."""

from __future__ import annotations

import pytest

from benchmarks.simulation import ITEMS, RECORDED, Meter, recorded, simulate, socket_seconds

STEPS = [(16, 0.4), (24, 0.5), (8, 0.3)]


@pytest.mark.parametrize("failures", [0.0, 120.0])
def test_every_request_is_answered_once_and_a_seed_decides_everything(failures: float) -> None:
    one, same, other = (
        simulate(8, 2, 3, STEPS, price_s=1e-4, failures_per_hour=failures, seed=seed) for seed in (1, 1, 2)
    )

    assert list(one.counts) == [1] * 24 * ITEMS
    assert one == same
    assert one.seconds != other.seconds
    assert 0.0 < one.utilisation <= 1.0
    assert 0.0 < one.share <= 1.0
    assert (one.losses > 0) == (failures > 0)


def test_two_workers_are_nearly_twice_as_fast_as_one_and_compute_little_twice() -> None:
    one, two = (simulate(workers, 1, 16 // workers, STEPS) for workers in (1, 2))

    assert one.again == 0
    assert two.requests == one.requests
    assert two.utilisation > 0.9
    assert two.again < 0.05 * two.requests


def test_workers_wait_for_a_broker_that_has_too_much_to_do() -> None:
    quick, slow = (simulate(32, 2, 2, STEPS, price_s=price_s) for price_s in (0.0, 0.02))

    assert slow.share > 0.95
    assert slow.utilisation < 0.5 < quick.utilisation
    assert list(slow.counts) == [1] * 64 * ITEMS


def test_the_price_of_a_message_is_measured_without_changing_what_happens() -> None:
    plain, metered = (simulate(4, 1, 2, STEPS, meter=meter) for meter in (None, Meter()))

    assert metered.price_s > 0.0
    assert (metered.seconds, metered.messages) == (plain.seconds, plain.messages)
    assert socket_seconds() > 0.0


def test_what_was_recorded_can_be_read_and_made_faster() -> None:
    steps, faster = recorded(RECORDED), recorded(RECORDED, 20.0)

    assert len(steps) >= 10
    assert all(answers > 0 and seconds >= 0.0 for answers, seconds in steps)
    assert sum(seconds for _, seconds in faster) == pytest.approx(sum(seconds for _, seconds in steps) / 20)
