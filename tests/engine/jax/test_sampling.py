"""Tokens are drawn as transformers' processors would have it: which stay, and how often each comes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from birdie_zmq.engine.jax.sampling import Chance, Limits, draw, kept


def limits(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Limits:
    return Limits(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))


compiled: Any = jax.jit(kept)
drawing: Any = jax.jit(draw)


def stays(logits: npt.ArrayLike, chosen: Limits) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.isfinite(np.asarray(compiled(jnp.asarray(logits, jnp.float32), chosen)))
    return found


def by_sorting(row: npt.NDArray[np.floating], top_k: int, top_p: float, min_p: float) -> npt.NDArray[np.bool_]:
    """One after another, with a sort each, in float64; for rows without equal logits."""
    stay = np.ones(len(row), bool)
    wide = row.astype(np.float64)
    if top_k:
        stay &= wide >= np.sort(wide)[::-1][min(top_k, len(row)) - 1]
    likelihood = np.where(stay, np.exp(wide - wide.max()), 0)
    likelihood /= likelihood.sum()
    order = np.argsort(-likelihood)
    before = np.cumsum(likelihood[order]) - likelihood[order]
    stay[order[before >= top_p]] = False
    likely: npt.NDArray[np.bool_] = likelihood >= min_p * likelihood.max()
    return stay & likely


# Logits that differ by a thousandth at least, and limits that no sum of theirs meets but for rounding.
@given(
    arrays(np.int32, 12, elements=st.integers(-4000, 4000), unique=True),
    st.integers(0, 14),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_the_tokens_that_stay_are_those_that_sorting_leaves(
    thousandths: npt.NDArray[np.int32], top_k: int, top_p: float, min_p: float
) -> None:
    row = thousandths.astype(np.float32) / 1000
    expected = by_sorting(row, top_k, top_p, min_p)
    nearby = [by_sorting(row, top_k, top_p + by, min_p + by) for by in (-1e-6, 1e-6)]

    found = stays([row], limits(1.0, top_k, top_p, min_p))[0]

    assert any((found == one).all() for one in (expected, *nearby))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (limits(), [0, 1, 2, 3]),
        (limits(top_k=1), [0]),
        (limits(top_k=3), [0, 1, 2]),
        (limits(top_k=100), [0, 1, 2, 3]),
        (limits(top_p=0.4), [0]),  # the likeliest alone is enough
        (limits(top_p=0.45), [0]),
        (limits(top_p=0.51), [0, 1]),
        (limits(top_p=0.81), [0, 1, 2]),
        (limits(top_p=1e-9), [0]),
        (limits(min_p=0.5), [0, 1]),
        (limits(min_p=1.0), [0]),
        (limits(top_k=2, top_p=0.6), [0]),  # of the two that top_k leaves the first is five eighths
        (limits(top_k=2, top_p=0.7), [0, 1]),
    ],
)
def test_limits_mean_what_their_names_say(chosen: Limits, expected: list[int]) -> None:
    likelihood = [0.5, 0.3, 0.15, 0.05]

    assert np.flatnonzero(stays([np.log(likelihood)], chosen)[0]).tolist() == expected


def test_equal_tokens_stay_together() -> None:
    assert stays(np.zeros((1, 4)), limits(top_k=2)).all()


def test_each_row_has_a_limit_of_its_own() -> None:
    flat, steep = np.zeros(4), np.array([9.0, 0.0, 0.0, 0.0])

    assert stays([flat, steep], limits(top_p=0.9)).sum(axis=1).tolist() == [4, 1]


def chance(seeds: npt.ArrayLike, drawn: npt.ArrayLike) -> Chance:
    low = np.asarray(seeds, np.uint32)
    return Chance(jnp.asarray(np.stack([np.zeros_like(low), low], axis=1)), jnp.asarray(drawn, jnp.int32))


CASES = {
    "all": (limits(), [0.5, 0.3, 0.15, 0.05]),
    "temperature": (limits(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    "top_p": (limits(top_p=0.9), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]),
    "top_k": (limits(top_k=2), [0.625, 0.375, 0.0, 0.0]),
    "min_p": (limits(min_p=0.2), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]),
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_come_as_often_as_they_are_likely(case: str) -> None:
    chosen, likelihood = CASES[case]
    count = 20_000
    logits = np.tile(np.log([0.5, 0.3, 0.15, 0.05]), (count, 1)).astype(np.float32)

    tokens, finite = drawing(jnp.asarray(logits), chosen, chance(np.arange(count), np.zeros(count)))

    found = np.bincount(np.asarray(tokens), minlength=4)
    assert finite.all()
    assert not found[np.array(likelihood) == 0].any()
    # Five standard deviations: the seeds are fixed, and another sampler would be off by hundreds.
    deviations = np.sqrt(count * np.array(likelihood) * (1 - np.array(likelihood)))
    assert (np.abs(found - count * np.array(likelihood)) <= 5 * deviations).all()


def test_a_token_depends_on_its_rows_key_and_on_how_many_were_drawn_alone() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 1000)).astype(np.float32)
    seeds, drawn = np.array([7, 7, 8, 9, 10, 11]), np.array([0, 1, 0, 5, 0, 0])
    together, _ = drawing(jnp.asarray(logits), limits(), chance(seeds, drawn))

    alone = [
        int(drawing(jnp.asarray(logits[i : i + 1]), limits(), chance(seeds[i : i + 1], drawn[i : i + 1]))[0][0])
        for i in range(6)
    ]
    same, _ = drawing(jnp.asarray(logits[[0, 0, 0]]), limits(), chance([7, 7, 8], [0, 1, 0]))

    assert np.asarray(together).tolist() == alone
    assert len(set(np.asarray(same).tolist())) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_flagged_alone(value: float) -> None:
    logits = np.zeros((2, 5), np.float32)
    logits[1, 2] = value

    _, finite = drawing(jnp.asarray(logits), limits(top_p=0.9), chance([1, 2], [0, 0]))

    assert finite.tolist() == [True, False]


def test_a_token_that_the_model_excludes_is_never_drawn() -> None:
    logits = np.full((500, 3), -np.inf, np.float32)
    logits[:, 1:] = 0

    tokens, finite = drawing(jnp.asarray(logits), limits(), chance(np.arange(500), np.zeros(500)))

    assert finite.all()
    assert set(np.asarray(tokens).tolist()) == {1, 2}
