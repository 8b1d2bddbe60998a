"""The product of a few rows with the transpose of a matrix, and the head of a model that it computes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models.cpu_kernels.head import multiply_by_head
from birdie_zmq.models.cpu_kernels.transposed_product import multiply_by_transpose
from birdie_zmq.models.layers import unembed


def _arrays(rows: int, width: int, outputs: int) -> tuple[Any, Any]:
    random = np.random.default_rng(rows)
    return (
        random.normal(size=(rows, width)).astype(np.float32),
        random.normal(size=(outputs, width)).astype(np.float32),
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 16, 31])
@pytest.mark.parametrize(("width", "outputs"), [(16, 8), (48, 67), (80, 200)])
def test_product_equals_that_of_numpy_in_float64(rows: int, width: int, outputs: int) -> None:
    x, matrix = _arrays(rows, width, outputs)

    y = jax.jit(multiply_by_transpose)(x, matrix)

    np.testing.assert_allclose(y, x.astype(np.float64) @ matrix.astype(np.float64).T, rtol=0, atol=2e-6 * width**0.5)


def test_row_is_the_same_to_the_bit_beside_any_others() -> None:
    x, matrix = _arrays(31, 144, 101)
    together = np.asarray(multiply_by_transpose(jnp.asarray(x), jnp.asarray(matrix)))

    for rows in (1, 2, 3, 5, 8, 16):
        some = np.asarray(multiply_by_transpose(jnp.asarray(x[-rows:]), jnp.asarray(matrix)))
        np.testing.assert_array_equal(some, together[-rows:])


def test_nan_stays_nan() -> None:
    x, matrix = _arrays(3, 32, 24)
    x[1, 5] = np.nan
    matrix[7, 30] = np.inf

    y = np.asarray(multiply_by_transpose(jnp.asarray(x), jnp.asarray(matrix)))

    assert np.isnan(y[1]).all()
    assert np.isinf(y[[0, 2], 7]).all()
    assert np.isfinite(np.delete(y[[0, 2]], 7, axis=1)).all()


@pytest.mark.parametrize(
    ("x", "matrix"),
    [
        (jnp.zeros((1, 24)), jnp.zeros((16, 24))),
        (jnp.zeros((1, 16)), jnp.zeros((7, 16))),
        (jnp.zeros((1, 16), jnp.bfloat16), jnp.zeros((16, 16), jnp.bfloat16)),
        (jnp.zeros((1, 1, 16)), jnp.zeros((16, 16))),
    ],
    ids=["width", "outputs", "bfloat16", "rank"],
)
def test_other_sizes_and_dtypes_are_left_to_xla(x: jax.Array, matrix: jax.Array) -> None:
    assert multiply_by_transpose(x, matrix) is None


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("rows", [1, 31, 32])
def test_head_of_single_tokens_is_computed_by_a_kernel(rows: int, *, is_tied: bool) -> None:
    x, matrix = _arrays(rows, 64, 112)
    outer = {"embedding": jnp.asarray(matrix), "head_bias": jnp.arange(112.0)}
    if not is_tied:
        outer |= {"embedding": jnp.zeros((112, 64)), "head": jnp.asarray(matrix.T)}

    logits = unembed(jnp.asarray(x), outer, by_kernel=True)

    np.testing.assert_allclose(logits, unembed(jnp.asarray(x), outer), atol=2e-5)
    assert (multiply_by_head(jnp.asarray(x), outer) is not None) == (rows < 32), (
        "a step of texts has 32 positions or more"
    )
    assert multiply_by_head(jnp.asarray(x)[None], outer) is None
