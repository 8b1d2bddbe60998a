"""Survival curves of durations, some of which are censored."""

from __future__ import annotations

import math

import numpy as np
import pytest

from birdie_zmq.client.survival import SurvivalCurve

NO_LIMIT = 1e9
"""A limit above every duration."""


def test_complete_durations_have_their_mean() -> None:
    curve = SurvivalCurve([1.0, 2.0, 6.0])
    assert curve.mean_remaining(NO_LIMIT) == pytest.approx(3.0)
    assert curve.mean_remaining(NO_LIMIT, age=1.5) == pytest.approx(((2 - 1.5) + (6 - 1.5)) / 2)
    assert curve.mean_remaining(NO_LIMIT, age=6.0) == 0.0


def test_durations_are_cut_off_at_the_limit() -> None:
    curve = SurvivalCurve([1.0, 2.0, 6.0])
    assert curve.mean_remaining(4.0) == pytest.approx((1 + 2 + 4) / 3)
    assert curve.mean_remaining(4.0, age=3.0) == pytest.approx(1.0)
    assert curve.mean_remaining(4.0, age=4.0) == 0.0


def test_kaplan_meier_estimate_with_censored_durations() -> None:
    """By hand: of four durations, two end at 1 and 3, two are censored at 2 and 5; the survival is 1, then 3/4, then 3/8."""
    curve = SurvivalCurve([1.0, 3.0], [2.0, 5.0])
    scale = (1 + 2 + 3 + 5) / 2  # With two ends only, the hazard is that of the whole time span.
    assert curve.mean_remaining(NO_LIMIT) == pytest.approx(1 + 3 / 4 * 2 + 3 / 8 * 2 + 3 / 8 * scale)
    assert curve.mean_remaining(NO_LIMIT, age=2.0) == pytest.approx((3 / 4 * 1 + 3 / 8 * 2 + 3 / 8 * scale) / (3 / 4))
    assert curve.mean_remaining(6.0, age=5.0) == pytest.approx(scale * (1 - math.exp(-1 / scale)))


def test_censored_durations_correct_the_bias_of_early_ends() -> None:
    """Ten of sixteen have ended: their own mean is too short by a fifth."""
    random = np.random.default_rng(0)
    plain, estimated = [], []
    for _ in range(200):
        durations = np.sort(random.uniform(50, 150, 16))
        complete, ages = durations[:10], [durations[9]] * 6
        plain.append(complete.mean() / durations.mean())
        estimated.append(SurvivalCurve(complete.tolist(), ages).mean_remaining(NO_LIMIT) / 100)
    assert np.mean(plain) < 0.85
    assert 0.9 < np.mean(estimated) < 1.2


def test_mean_time_until_the_last_end() -> None:
    """By hand: of two uniform durations in [0, 10] the longer has mean 20/3; one of age 9 has mean 0.5 left."""
    curve = SurvivalCurve(np.linspace(0, 10, 1_001).tolist())
    assert curve.mean_until_last([(0, NO_LIMIT), (0, NO_LIMIT)]) == pytest.approx(20 / 3, rel=0.01)
    assert curve.mean_until_last([(9, NO_LIMIT)]) == pytest.approx(0.5, rel=0.05)
    assert curve.mean_until_last([(0, 2.0), (0, 4.0)]) == pytest.approx(3.373, rel=0.02)


def test_without_complete_durations_all_last_until_the_limit() -> None:
    curve = SurvivalCurve([], [1.0, 3.0])
    assert curve.mean_remaining(10.0) == 10.0
    assert curve.mean_remaining(10.0, age=3.0) == 7.0
    assert curve.mean_until_last([(1.0, 10.0), (3.0, 10.0)]) == pytest.approx(9.0)


def test_zero_durations_have_zero_mean() -> None:
    assert SurvivalCurve([0.0, 0.0]).mean_remaining(10.0) == 0.0
