"""The routers give the experts and shares of their published formulas, computed here token by token in NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models.routing import (
    ChosenSigmoidRouter,
    ChosenSoftmaxRouter,
    GroupedSigmoidRouter,
    Router,
    SoftmaxRouter,
)

WIDTH, EXPERTS, TOKENS = 6, 8, 40
_random = np.random.default_rng(0)
ROUTER = _random.standard_normal((WIDTH, EXPERTS)).astype(np.float32)
CORRECTION = _random.standard_normal(EXPERTS).astype(np.float32)
X = _random.standard_normal((2, TOKENS // 2, WIDTH)).astype(np.float32)
LOGITS = (X @ ROUTER).reshape(TOKENS, EXPERTS).astype(np.float64)


def route(router: Router) -> list[dict[int, float]]:
    """The share of each expert of each token."""
    experts, shares = router(
        jnp.asarray(X), {"router": jnp.asarray(ROUTER), "router_correction": jnp.asarray(CORRECTION)}
    )
    found = zip(np.asarray(experts).reshape(TOKENS, -1), np.asarray(shares).reshape(TOKENS, -1), strict=True)
    return [dict(zip(map(int, chosen), map(float, of_token), strict=True)) for chosen, of_token in found]


def best(scores: np.ndarray, count: int) -> list[int]:
    return [int(number) for number in np.argsort(-scores)[:count]]


@pytest.mark.parametrize("normalised", [False, True])
def test_softmax_over_all_experts(normalised: bool) -> None:
    for logits, got in zip(LOGITS, route(SoftmaxRouter(3, normalised)), strict=True):
        probabilities = np.exp(logits) / np.exp(logits).sum()
        expected = {number: probabilities[number] for number in best(logits, 3)}
        total = sum(expected.values()) if normalised else 1.0
        assert got == pytest.approx({number: share / total for number, share in expected.items()}, abs=1e-6)


def test_softmax_over_the_chosen_experts() -> None:
    for logits, got in zip(LOGITS, route(ChosenSoftmaxRouter(3)), strict=True):
        chosen = best(logits, 3)
        total = sum(np.exp(logits[number]) for number in chosen)
        assert got == pytest.approx({number: np.exp(logits[number]) / total for number in chosen}, abs=1e-6)


def test_sigmoid_of_the_chosen_experts() -> None:
    for logits, got in zip(LOGITS, route(ChosenSigmoidRouter(2)), strict=True):
        assert got == pytest.approx({number: 1 / (1 + np.exp(-logits[number])) for number in best(logits, 2)}, abs=1e-6)


@pytest.mark.parametrize("normalised", [False, True])
def test_corrected_sigmoid_within_the_best_groups(normalised: bool) -> None:
    """Equations 12 to 16 of the report of DeepSeek-V3, with two of four groups."""
    for logits, got in zip(LOGITS, route(GroupedSigmoidRouter(3, 4, 2, normalised, 2.5)), strict=True):
        scores = 1 / (1 + np.exp(-logits))
        corrected = scores + CORRECTION
        groups = best(np.array([np.sort(corrected[2 * group : 2 * group + 2]).sum() for group in range(4)]), 2)
        allowed = np.where([number // 2 in groups for number in range(EXPERTS)], corrected, -np.inf)
        chosen = best(allowed, 3)
        total = sum(scores[number] for number in chosen) if normalised else 1.0
        assert got == pytest.approx({number: 2.5 * scores[number] / total for number in chosen}, abs=1e-6)
