"""The gated delta rule in chunks equals one token after another, and padding leaves its state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.models import delta_rule
from birdie_zmq.models.delta_rule import DeltaInputs, gated_delta_rule, invert_unit_triangular

ROWS, HEADS, KEY, VALUE = 2, 3, 6, 4

compute = jax.jit(gated_delta_rule)


def random_inputs(length: int, seed: int = 0) -> DeltaInputs:
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return random.standard_normal((ROWS, HEADS, length, *shape)).astype(np.float32)

    key = draw(KEY)
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    arrays = draw(KEY), key, draw(VALUE), -np.abs(draw()), 1 / (1 + np.exp(-draw()))
    return DeltaInputs(*map(jnp.asarray, arrays))


def one_by_one(inputs: DeltaInputs, state: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the definition, in float64."""
    outputs = []
    query, key, value, decay, rate = (np.asarray(x, np.float64) for x in inputs)
    for t in range(key.shape[2]):
        state = state * np.exp(decay[:, :, t])[..., None, None]
        found = np.einsum("bnhw,bnh->bnw", state, key[:, :, t])
        state = state + np.einsum("bnh,bnw,bn->bnhw", key[:, :, t], value[:, :, t] - found, rate[:, :, t])
        outputs.append(np.einsum("bnhw,bnh->bnw", state, query[:, :, t]))
    return np.stack(outputs, axis=2), state


@pytest.mark.parametrize("length", [1, 13, 150])
def test_chunks_equal_the_definition(length: int) -> None:
    inputs = random_inputs(length)
    before = np.random.default_rng(1).standard_normal((ROWS, HEADS, KEY, VALUE))
    expected, after = one_by_one(inputs, before)
    got, state = compute(inputs, jnp.asarray(before, jnp.float32))
    np.testing.assert_allclose(got, expected, atol=2e-5)
    np.testing.assert_allclose(state, after, atol=2e-5)


@pytest.mark.parametrize("padding", [1, 51])
def test_tokens_without_rate_and_decay_leave_the_state(padding: int) -> None:
    inputs, more = random_inputs(13), random_inputs(padding, seed=2)
    still = more._replace(decay=jnp.zeros_like(more.decay), rate=jnp.zeros_like(more.rate))
    state = jnp.zeros((ROWS, HEADS, KEY, VALUE))
    padded = DeltaInputs(*(jnp.concatenate(pair, axis=2) for pair in zip(inputs, still, strict=True)))
    np.testing.assert_allclose(compute(padded, state)[1], compute(inputs, state)[1], atol=1e-6)
    kept = jnp.ones_like(state)
    np.testing.assert_array_equal(compute(still, kept)[1], kept)


def test_equal_keys_that_replace_their_value_lose_no_bits() -> None:
    """Powers of the triangular matrix would have numbers of 18 digits here."""
    ones = jnp.ones((1, 1, delta_rule.CHUNK, KEY)) / KEY**0.5
    value = jnp.asarray(np.random.default_rng(3).standard_normal((1, 1, delta_rule.CHUNK, VALUE)), jnp.float32)
    still = jnp.zeros((1, 1, delta_rule.CHUNK))
    got, _ = compute(DeltaInputs(ones, ones, value, still, still + 1), jnp.zeros((1, 1, KEY, VALUE)))
    np.testing.assert_allclose(got, value, atol=1e-5)


@pytest.mark.parametrize("size", [8, 64])
def test_inverse_of_a_triangular_matrix(size: int) -> None:
    below = np.tril(np.random.default_rng(4).uniform(-1, 1, (2, 3, size, size)), -1) / 4
    inverse = jax.jit(invert_unit_triangular)(jnp.asarray(below, jnp.float32))
    np.testing.assert_allclose(inverse @ (below + np.eye(size)), np.broadcast_to(np.eye(size), below.shape), atol=2e-5)
