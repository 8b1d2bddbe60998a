"""How long things last, where some of them still do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from birdie_zmq.client.survival import SurvivalCurve

NEVER = 1e9
"""Nothing is cut off."""


def test_durations_that_are_all_over_last_their_mean() -> None:
    survival = SurvivalCurve([1.0, 2.0, 6.0])
    assert survival.mean(NEVER) == pytest.approx(3.0)
    assert survival.mean(NEVER, age=1.5) == pytest.approx(((2 - 1.5) + (6 - 1.5)) / 2)
    assert survival.mean(NEVER, age=6.0) == 0.0


def test_what_is_cut_off_lasts_no_longer() -> None:
    survival = SurvivalCurve([1.0, 2.0, 6.0])
    assert survival.mean(4.0) == pytest.approx((1 + 2 + 4) / 3)
    assert survival.mean(4.0, age=3.0) == pytest.approx(1.0)
    assert survival.mean(4.0, age=4.0) == 0.0


def test_kaplan_and_meiers_estimate_where_some_go_on() -> None:
    """By hand: of four, one ends at 1, one is 2 old, one ends at 3, one is 5 old: 1, then 3/4, then 3/8 survive."""
    survival = SurvivalCurve([1.0, 3.0], [2.0, 5.0])
    scale = (1 + 2 + 3 + 5) / 2  # Two ends only: the hazard of all the time.
    assert survival.mean(NEVER) == pytest.approx(1 + 3 / 4 * 2 + 3 / 8 * 2 + 3 / 8 * scale)
    assert survival.mean(NEVER, age=2.0) == pytest.approx((3 / 4 * 1 + 3 / 8 * 2 + 3 / 8 * scale) / (3 / 4))
    assert survival.mean(6.0, age=5.0) == pytest.approx(scale * (1 - math.exp(-1 / scale)))


def test_the_first_to_end_of_a_crowd_do_not_speak_for_all() -> None:
    """Ten of sixteen have ended: their own mean is a fifth too short."""
    random = np.random.default_rng(0)
    plain, estimated = [], []
    for _ in range(200):
        durations = np.sort(random.uniform(50, 150, 16))
        ended, ages = durations[:10], [durations[9]] * 6
        plain.append(ended.mean() / durations.mean())
        estimated.append(SurvivalCurve(ended.tolist(), ages).mean(NEVER) / 100)
    assert np.mean(plain) < 0.85
    assert 0.9 < np.mean(estimated) < 1.2


def test_the_last_of_several_to_end() -> None:
    """Of two that last 0 to 10 alike, the longer lasts two thirds of it; one that is 9 old, half of one. By hand where cut off."""
    survival = SurvivalCurve(np.linspace(0, 10, 1_001).tolist())
    assert survival.until_all_end([(0, NEVER), (0, NEVER)]) == pytest.approx(20 / 3, rel=0.01)
    assert survival.until_all_end([(9, NEVER)]) == pytest.approx(0.5, rel=0.05)
    assert survival.until_all_end([(0, 2.0), (0, 4.0)]) == pytest.approx(3.373, rel=0.02)


def test_where_nothing_has_ended_all_may_last_until_they_are_cut_off() -> None:
    survival = SurvivalCurve([], [1.0, 3.0])
    assert survival.mean(10.0) == 10.0
    assert survival.mean(10.0, age=3.0) == 7.0
    assert survival.until_all_end([(1.0, 10.0), (3.0, 10.0)]) == pytest.approx(9.0)


def test_what_ends_at_once_lasts_nothing() -> None:
    assert SurvivalCurve([0.0, 0.0]).mean(10.0) == 0.0
