"""Sampling like the logits processors of transformers: which tokens stay, and how often each is sampled."""

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

from birdie_zmq.engine.jax.sampling import SamplingArrays, SamplingKeys, filter_logits, sample


def arrays_of(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> SamplingArrays:
    return SamplingArrays(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p))


jitted_filter: Any = jax.jit(filter_logits)
jitted_sample: Any = jax.jit(sample)


def kept_tokens(logits: npt.ArrayLike, chosen: SamplingArrays) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.isfinite(np.asarray(jitted_filter(jnp.asarray(logits, jnp.float32), chosen)))
    return found


def by_sorting(row: npt.NDArray[np.floating], top_k: int, top_p: float, min_p: float) -> npt.NDArray[np.bool_]:
    """Apply the filters one after another, each with a sort, in float64; for rows without equal logits."""
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


# Logits that differ by at least a thousandth, and thresholds that no sum of probabilities meets except by rounding.
@given(
    arrays(np.int32, 12, elements=st.integers(-4000, 4000), unique=True),
    st.integers(0, 14),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_filters_keep_the_same_tokens_as_sorting(
    thousandths: npt.NDArray[np.int32], top_k: int, top_p: float, min_p: float
) -> None:
    row = thousandths.astype(np.float32) / 1000
    expected = by_sorting(row, top_k, top_p, min_p)
    nearby = [by_sorting(row, top_k, top_p + by, min_p + by) for by in (-1e-6, 1e-6)]

    found = kept_tokens([row], arrays_of(1.0, top_k, top_p, min_p))[0]

    assert any((found == one).all() for one in (expected, *nearby))


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (arrays_of(), [0, 1, 2, 3]),
        (arrays_of(top_k=1), [0]),
        (arrays_of(top_k=3), [0, 1, 2]),
        (arrays_of(top_k=100), [0, 1, 2, 3]),
        (arrays_of(top_p=0.4), [0]),  # the likeliest alone is enough
        (arrays_of(top_p=0.45), [0]),
        (arrays_of(top_p=0.51), [0, 1]),
        (arrays_of(top_p=0.81), [0, 1, 2]),
        (arrays_of(top_p=1e-9), [0]),
        (arrays_of(min_p=0.5), [0, 1]),
        (arrays_of(min_p=1.0), [0]),
        (arrays_of(top_k=2, top_p=0.6), [0]),  # the first of the two tokens left by top_k has 5/8
        (arrays_of(top_k=2, top_p=0.7), [0, 1]),
    ],
)
def test_each_filter_keeps_the_expected_tokens(chosen: SamplingArrays, expected: list[int]) -> None:
    likelihood = [0.5, 0.3, 0.15, 0.05]

    assert np.flatnonzero(kept_tokens([np.log(likelihood)], chosen)[0]).tolist() == expected


def test_equally_likely_tokens_stay_together() -> None:
    assert kept_tokens(np.zeros((1, 4)), arrays_of(top_k=2)).all()


def test_each_row_has_its_own_threshold() -> None:
    flat, steep = np.zeros(4), np.array([9.0, 0.0, 0.0, 0.0])

    assert kept_tokens([flat, steep], arrays_of(top_p=0.9)).sum(axis=1).tolist() == [4, 1]


def sampling_keys(seeds: npt.ArrayLike, sampled: npt.ArrayLike) -> SamplingKeys:
    low = np.asarray(seeds, np.uint32)
    return SamplingKeys(jnp.asarray(np.stack([np.zeros_like(low), low], axis=1)), jnp.asarray(sampled, jnp.int32))


CASES = {
    "all": (arrays_of(), [0.5, 0.3, 0.15, 0.05]),
    "temperature": (arrays_of(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    "top_p": (arrays_of(top_p=0.9), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]),
    "top_k": (arrays_of(top_k=2), [0.625, 0.375, 0.0, 0.0]),
    "min_p": (arrays_of(min_p=0.2), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0.0]),
}


@pytest.mark.parametrize("case", CASES)
def test_sampled_frequencies_follow_the_distribution(case: str) -> None:
    chosen, likelihood = CASES[case]
    count = 20_000
    logits = np.tile(np.log([0.5, 0.3, 0.15, 0.05]), (count, 1)).astype(np.float32)

    tokens, finite = jitted_sample(jnp.asarray(logits), chosen, sampling_keys(np.arange(count), np.zeros(count)))

    found = np.bincount(np.asarray(tokens), minlength=4)
    assert finite.all()
    assert not found[np.array(likelihood) == 0].any()
    # Five standard deviations: the seeds are fixed, and another sampler would be off by hundreds.
    deviations = np.sqrt(count * np.array(likelihood) * (1 - np.array(likelihood)))
    assert (np.abs(found - count * np.array(likelihood)) <= 5 * deviations).all()


def test_sampled_token_depends_only_on_its_key_and_count() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 1000)).astype(np.float32)
    seeds, sampled = np.array([7, 7, 8, 9, 10, 11]), np.array([0, 1, 0, 5, 0, 0])
    together, _ = jitted_sample(jnp.asarray(logits), arrays_of(), sampling_keys(seeds, sampled))

    alone = [
        int(
            jitted_sample(
                jnp.asarray(logits[i : i + 1]), arrays_of(), sampling_keys(seeds[i : i + 1], sampled[i : i + 1])
            )[0][0]
        )
        for i in range(6)
    ]
    same, _ = jitted_sample(jnp.asarray(logits[[0, 0, 0]]), arrays_of(), sampling_keys([7, 7, 8], [0, 1, 0]))

    assert np.asarray(together).tolist() == alone
    assert len(set(np.asarray(same).tolist())) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_row_is_flagged_alone(value: float) -> None:
    logits = np.zeros((2, 5), np.float32)
    logits[1, 2] = value

    _, finite = jitted_sample(jnp.asarray(logits), arrays_of(top_p=0.9), sampling_keys([1, 2], [0, 0]))

    assert finite.tolist() == [True, False]


def test_excluded_token_is_never_sampled() -> None:
    logits = np.full((500, 3), -np.inf, np.float32)
    logits[:, 1:] = 0

    tokens, finite = jitted_sample(jnp.asarray(logits), arrays_of(), sampling_keys(np.arange(500), np.zeros(500)))

    assert finite.all()
    assert set(np.asarray(tokens).tolist()) == {1, 2}
