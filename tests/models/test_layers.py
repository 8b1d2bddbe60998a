"""The building blocks of all families, compared with plain NumPy."""

from collections.abc import Iterator
from math import erf, exp, pi, sqrt, tanh
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models import layers


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """Forbid implicit promotion of dtypes and ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_rms_norm_matches_numpy(shape: tuple[int, ...]) -> None:
    x = jax.random.normal(jax.random.key(0), shape) * 3 + 1
    weight = jnp.linspace(0.5, 1.5, 6)
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.1) * np.asarray(weight)
    for kind, stored in (("rms", weight), ("rms_float32", weight), ("rms_offset", weight - 1.0)):
        norm = layers.Norm(cast(Any, kind), 0.1)
        np.testing.assert_allclose(norm(x, {"n": stored}, "n"), expected, atol=1e-5)
        np.testing.assert_allclose(norm.normalise(x), expected / np.asarray(weight), atol=1e-5)


def test_norm_without_a_weight_changes_nothing() -> None:
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(layers.Norm("rms", 0.1)(x, {"m": jnp.ones(6)}, "n"), x)


def test_each_head_may_have_a_norm_of_its_own() -> None:
    x, weight = jax.random.normal(jax.random.key(0), (2, 3, 4, 6)), jnp.arange(24.0).reshape(4, 6)
    got = layers.Norm("layer", 0.1)(x, {"n": weight, "n_bias": 2.0 * weight}, "n")
    for head in range(4):
        alone = layers.Norm("layer", 0.1)(x[:, :, head], {"n": weight[head], "n_bias": 2.0 * weight[head]}, "n")
        np.testing.assert_allclose(got[:, :, head], alone, atol=1e-6)


def test_kinds_of_rms_norm_round_in_different_places() -> None:
    x, weight = (jax.random.normal(jax.random.key(seed), (64,), jnp.bfloat16) for seed in (0, 1))
    wide = np.asarray(x, np.float64) / np.sqrt((np.asarray(x, np.float64) ** 2).mean())
    early, late = (layers.Norm(cast(Any, kind), 0.0)(x, {"n": weight}, "n") for kind in ("rms", "rms_float32"))
    rounded = jnp.asarray(wide, jnp.bfloat16)
    np.testing.assert_array_equal(early, rounded * weight)
    np.testing.assert_array_equal(late, jnp.asarray(wide * np.asarray(weight, np.float64), jnp.bfloat16))
    assert not np.array_equal(early, late)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_layer_norm_matches_numpy(shape: tuple[int, ...]) -> None:
    x = jax.random.normal(jax.random.key(0), shape) * 3 + 1
    weights = {"n": jnp.linspace(0.5, 1.5, 6), "n_bias": jnp.linspace(-1, 1, 6), "other": jnp.zeros(6)}
    wide = np.asarray(x, np.float64)
    normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 0.1)
    expected = normed * np.asarray(weights["n"]) + np.asarray(weights["n_bias"])
    np.testing.assert_allclose(layers.Norm("layer", 0.1)(x, weights, "n"), expected, atol=1e-5)


def test_norms_of_bfloat16_are_computed_in_float32() -> None:
    """In bfloat16 the squares of these values would not differ, and their mean would not be exact."""
    x = (1 + jnp.arange(512, dtype=jnp.float32) / 128).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    one = jnp.ones(512, jnp.bfloat16)
    rms = layers.Norm("rms", 0.0)(x, {"n": one}, "n")
    layer = layers.Norm("layer", 0.0)(x, {"n": one, "n_bias": 0 * one}, "n")
    assert rms.dtype == layer.dtype == jnp.bfloat16
    half_a_step = 2**-8
    np.testing.assert_allclose(rms.astype(jnp.float32), wide / np.sqrt((wide**2).mean()), rtol=half_a_step)
    expected = (wide - wide.mean()) / wide.std()
    np.testing.assert_allclose(layer.astype(jnp.float32), expected, rtol=half_a_step, atol=1e-5)


def test_linear_adds_only_an_existing_bias() -> None:
    x, w, bias = jnp.ones((2, 3, 4)), jnp.arange(20.0).reshape(4, 5), jnp.arange(5.0)
    without = layers.linear(x, {"w": w, "v_bias": bias}, "w")
    np.testing.assert_allclose(without, np.tile(np.asarray(w.sum(0)), (2, 3, 1)))
    np.testing.assert_allclose(layers.linear(x, {"w": w, "w_bias": bias}, "w"), without + np.arange(5.0)[None, None])


def test_split_heads_keeps_the_dimensions_of_a_head_together() -> None:
    x = jnp.arange(24.0).reshape(1, 2, 12)
    split = layers.split_heads(x, 3)
    assert split.shape == (1, 2, 3, 4)
    np.testing.assert_array_equal(split[0, 1, 2], x[0, 1, 8:])


def test_unembed_of_bfloat16_gives_unrounded_float32() -> None:
    hidden, head = jnp.full((1, 3), 1.0, jnp.bfloat16), jnp.array([[1.0], [2.0**-9], [2.0**-9]], jnp.bfloat16)
    got = layers.unembed(hidden, {"head": head})
    assert got.dtype == jnp.float32
    assert float(got[0, 0]) == 1.0 + 2.0**-8
    biased = layers.unembed(hidden, {"head": head, "head_bias": jnp.array([2.0**-9], jnp.bfloat16)})
    assert float(biased[0, 0]) == 1.0 + 2.0**-8 + 2.0**-9


@pytest.mark.parametrize("x", [-3.0, -0.5, 0.0, 1.0, 2.5])
def test_activations_match_their_definitions(x: float) -> None:
    approximated = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    expected = {
        "silu": x / (1 + exp(-x)),
        "relu": max(x, 0.0),
        "gelu": x / 2 * (1 + erf(x / sqrt(2))),
        "gelu_new": approximated,
        "gelu_fast": approximated,
        "gelu_pytorch_tanh": approximated,
    }
    assert expected.keys() == layers.ACTIVATIONS.keys()
    for name, activate in layers.ACTIVATIONS.items():
        assert float(activate(jnp.float32(x))) == pytest.approx(expected[name], abs=1e-6), name


def test_unknown_activation_is_refused_with_a_list_of_supported_ones() -> None:
    assert layers.check_activation("gelu_new") == "gelu_new"
    with pytest.raises(ValueError, match=r"'quick_gelu'.*gelu_pytorch_tanh"):
        layers.check_activation("quick_gelu")
