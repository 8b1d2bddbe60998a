"""Causal convolutions with a state give the sums over a whole text, whatever its chunks and its padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.models.causal_convolution import causal_convolution, convolution_specs, convolution_state

CHANNELS = 3


def weights_of(taps: int) -> dict[str, jax.Array]:
    generator = np.random.default_rng(taps)
    specs = convolution_specs("conv", CHANNELS, taps, bias=True, key="kernel")
    return {key: jnp.asarray(generator.standard_normal(spec.shape), jnp.float32) for key, spec in specs.items()}


def expected_of(texts: NDArray[np.float32], weights: dict[str, jax.Array]) -> NDArray[np.float64]:
    kernel, bias = np.asarray(weights["kernel"], np.float64)[:, 0], np.asarray(weights["kernel_bias"], np.float64)
    taps = kernel.shape[1]
    padded = np.pad(texts.astype(np.float64), ((0, 0), (taps - 1, 0), (0, 0)))
    sums = np.stack([padded[:, k : k + texts.shape[1]] * kernel[:, k] for k in range(taps)]).sum(axis=0) + bias
    activated: NDArray[np.float64] = sums / (1 + np.exp(-sums))
    return activated


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_chunks_and_padding_give_the_outputs_of_whole_texts(taps: int) -> None:
    weights = weights_of(taps)
    texts = np.random.default_rng(0).standard_normal((2, 11, CHANNELS)).astype(np.float32)
    expected = expected_of(texts, weights)
    whole, _ = causal_convolution(
        jnp.asarray(texts), jnp.zeros((2, *convolution_state(CHANNELS, taps).shape)), weights, "kernel", "silu"
    )
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    state, at = jnp.zeros((2, taps - 1, CHANNELS)), np.zeros(2, int)
    for width, lengths in ((5, (5, 2)), (5, (0, 3)), (1, (1, 0)), (5, (5, 5)), (5, (0, 1))):
        chunk = np.full((2, width, CHANNELS), np.nan, np.float32)  # a padding token that counts would be seen
        for row, length in enumerate(lengths):
            chunk[row, :length] = texts[row, at[row] : at[row] + length]
        real = jnp.arange(width)[None] < jnp.asarray(lengths)[:, None]
        before = state
        got, state = causal_convolution(jnp.asarray(chunk), state, weights, "kernel", "silu", real)
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(got[row, :length], expected[row, at[row] : at[row] + length], atol=1e-5)
            if length == 0:
                np.testing.assert_array_equal(state[row], before[row])
        at += lengths
    assert at.tolist() == [11, 11]
