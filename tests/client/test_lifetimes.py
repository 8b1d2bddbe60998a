"""How long things last, where some of them still do."""

from __future__ import annotations

import numpy as np
import pytest

from birdie_zmq.client.lifetimes import Survival


def test_durations_that_are_all_over_last_their_mean() -> None:
    survival = Survival([1.0, 2.0, 6.0])
    assert survival.mean == pytest.approx(3.0)
    assert survival.residual(1.5) == pytest.approx(((2 - 1.5) + (6 - 1.5)) / 2)
    assert survival.residual(6.0) == 0.0


def test_kaplan_and_meiers_estimate_where_some_go_on() -> None:
    """By hand: of four, one ends at 1, one is 2 old, one ends at 3, one is 5 old: 1, then 3/4, then 3/8 survive."""
    survival = Survival([1.0, 3.0], [2.0, 5.0])
    tail = 3 / 8 * (1 + 2 + 3 + 5) / 2  # Two ends only: the hazard of all the time.
    assert survival.mean == pytest.approx(1 + 3 / 4 * 2 + 3 / 8 * 2 + tail)
    assert survival.residual(2.0) == pytest.approx((3 / 4 * 1 + 3 / 8 * 2 + tail) / (3 / 4))


def test_the_first_to_end_of_a_crowd_do_not_speak_for_all() -> None:
    """Ten of sixteen have ended: their own mean is a fifth too short."""
    random = np.random.default_rng(0)
    plain, estimated = [], []
    for _ in range(200):
        durations = np.sort(random.uniform(50, 150, 16))
        ended, ages = durations[:10], [durations[9]] * 6
        plain.append(ended.mean() / durations.mean())
        estimated.append(Survival(ended.tolist(), ages).mean / 100)
    assert np.mean(plain) < 0.85
    assert 0.9 < np.mean(estimated) < 1.2


def test_nothing_that_has_ended_says_nothing() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Survival([], [1.0])
    with pytest.raises(ValueError, match="above 0"):
        Survival([0.0])
