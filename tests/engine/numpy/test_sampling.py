"""Sampling in NumPy: the tokens that are kept, and what the sampled token depends on."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.engine.backend import SamplingMetadata, TokenChoice
from birdie_zmq.engine.jax import sampling as jax_sampling
from birdie_zmq.engine.numpy import sampling
from birdie_zmq.types import SamplingParams

LOGITS = np.random.default_rng(3).normal(scale=3.0, size=(40, 50)).astype(np.float32)
TIED = np.round(LOGITS) + np.float32(0)  # zeros without a sign, because JAX distinguishes them

SAMPLING_PARAMS = [
    SamplingParams(),
    SamplingParams(top_k=1),
    SamplingParams(top_k=7),
    SamplingParams(top_k=1000),
    SamplingParams(top_p=0.3),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.999),
    SamplingParams(min_p=0.1),
    SamplingParams(min_p=1.0),
    SamplingParams(top_k=20, top_p=0.7, min_p=0.05),
]


@pytest.mark.parametrize("logits", [LOGITS, TIED], ids=["distinct", "tied"])
@pytest.mark.parametrize("params", SAMPLING_PARAMS, ids=str)
def test_the_same_tokens_are_kept_as_in_jax(params: SamplingParams, logits: sampling.Logits) -> None:
    expected = np.asarray(jax_sampling.filter_logits(jnp.asarray(logits), jax_sampling.sampling_arrays(params)))

    np.testing.assert_array_equal(sampling.filter_logits(logits, params), expected)


def sample(params: SamplingParams, logits: sampling.Logits, keys: list[int], counts: list[int]) -> list[int]:
    chosen = sampling.sample(logits, SamplingMetadata(TokenChoice(params), keys, np.array(counts, np.int32)))
    assert chosen.finite.all()
    tokens: list[int] = chosen.tokens.tolist()
    return tokens


def test_a_row_samples_by_its_key_and_count_independent_of_other_rows() -> None:
    keys, counts = [5, 6, 2**62 - 1, 5], [0, 0, 9, 1]
    batched = sample(SamplingParams(), LOGITS[[0, 0, 0, 0]], keys, counts)
    alone = [sample(SamplingParams(), LOGITS[:1], [key], [number])[0] for key, number in zip(keys, counts, strict=True)]

    assert batched == alone
    many = sample(SamplingParams(), LOGITS[[0] * 40], list(range(40)), [0] * 40)
    assert len(set(many)) > 3
    assert many != sample(SamplingParams(), LOGITS[[0] * 40], list(range(40)), [1] * 40)


def test_token_frequencies_match_the_probabilities_at_the_temperature() -> None:
    count, logits = 4000, np.array([[0.0, 1.0, 2.0, -1.0]], np.float32)
    tokens = sample(SamplingParams(temperature=2.0), logits.repeat(count, 0), list(range(count)), [0] * count)

    likelihood = np.exp(logits[0] / 2) / np.exp(logits[0] / 2).sum()
    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / count, likelihood, atol=0.03)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_logits_are_flagged(value: float) -> None:
    logits = LOGITS[:3].copy()
    logits[1, 4] = value

    chosen = sampling.sample(
        logits, SamplingMetadata(TokenChoice(SamplingParams(top_k=5, top_p=0.9)), [1, 2, 3], np.zeros(3, np.int32))
    )

    assert chosen.finite.tolist() == [True, False, True]
    assert not sampling.sample(
        np.full((1, 4), -np.inf, np.float32),
        SamplingMetadata(TokenChoice(SamplingParams()), [1], np.zeros(1, np.int32)),
    ).finite


@pytest.mark.parametrize("params", [SamplingParams(temperature=1.7), SamplingParams(top_k=20, top_p=0.9)], ids=str)
def test_the_same_keys_sample_the_same_tokens_as_in_jax(params: SamplingParams) -> None:
    keys = [0, 1, 2**32, 2**63 + 12345, *range(7, 43)]
    counts = [0, 3, 1, 500, *([0, 1] * 18)]
    words = np.array([jax_sampling.key_data(key) for key in keys], np.uint32)
    jax_keys = jax_sampling.SamplingKeys(jnp.asarray(words), jnp.asarray(counts, jnp.int32))
    expected, _ = jax_sampling.sample(jnp.asarray(LOGITS), jax_sampling.sampling_arrays(params), jax_keys)

    assert sample(params, LOGITS, keys, counts) == expected.tolist()
