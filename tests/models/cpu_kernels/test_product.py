"""The product of a few rows with the matrix of one layer of a stack."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models.cpu_kernels.product import multiply_by_layer


def _arrays(rows: int, layers: int, inputs: int, outputs: int) -> tuple[Any, Any]:
    random = np.random.default_rng(rows)
    return (
        random.normal(size=(rows, inputs)).astype(np.float32),
        random.normal(size=(layers, inputs, outputs)).astype(np.float32),
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 16, 23, 32])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 16), (72, 96), (64, 208)])
def test_product_equals_that_of_numpy_in_float64(rows: int, inputs: int, outputs: int) -> None:
    x, stack = _arrays(rows, 3, inputs, outputs)

    for layer in range(3):
        y = jax.jit(multiply_by_layer)(x, stack, jnp.int32(layer))

        expected = x.astype(np.float64) @ stack[layer].astype(np.float64)
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * inputs**0.5)


def test_row_is_the_same_to_the_bit_beside_any_others() -> None:
    x, stack = _arrays(32, 2, 136, 112)
    together = np.asarray(multiply_by_layer(jnp.asarray(x), jnp.asarray(stack), jnp.int32(1)))

    for rows in (1, 2, 3, 5, 8, 16):
        some = np.asarray(multiply_by_layer(jnp.asarray(x[-rows:]), jnp.asarray(stack), jnp.int32(1)))
        np.testing.assert_array_equal(some, together[-rows:])


@pytest.mark.parametrize(
    ("x", "stack"),
    [
        (jnp.zeros((33, 16)), jnp.zeros((1, 16, 16))),
        (jnp.zeros((1, 12)), jnp.zeros((1, 12, 16))),
        (jnp.zeros((1, 16)), jnp.zeros((1, 16, 24))),
        (jnp.zeros((1, 16), jnp.bfloat16), jnp.zeros((1, 16, 16), jnp.bfloat16)),
        (jnp.zeros((1, 16)), jnp.zeros((1, 2, 16, 16))),
    ],
    ids=["many rows", "inputs", "outputs", "bfloat16", "experts"],
)
def test_other_sizes_and_dtypes_are_left_to_xla(x: jax.Array, stack: jax.Array) -> None:
    assert multiply_by_layer(x, stack, jnp.int32(0)) is None
