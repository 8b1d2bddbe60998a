"""An operation of XLA whose items a Numba function computes in several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest

from birdie_zmq.models.cpu_kernels.parallel_call import NUMBA_OPTIONS, ParallelCall, floats_at


@numba.njit(**NUMBA_OPTIONS)  # type: ignore[untyped-decorator]
def _scale(item: Any, addresses: Any, sizes: Any) -> None:
    """Multiply a row of x [rows, width] by its number and by a factor."""
    shape = (int(sizes[0]), int(sizes[1]))
    x, y = floats_at(addresses[0], shape)[item], floats_at(addresses[2], shape)[item]
    factor = floats_at(addresses[1], (1,))[0]
    for index in range(shape[1]):
        y[index] = x[index] * item * factor


@pytest.fixture(scope="module")
def scale() -> Any:
    """Return a function that multiplies each row of float32 [rows, width] by its number and by a factor float32 []."""
    call = ParallelCall("test_scale", _scale)

    def scale(x: jax.Array, factor: jax.Array) -> jax.Array:
        (y,) = call(len(x), x.shape, (x, factor), x.shape)
        return y

    return scale


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_every_item_is_computed_once(scale: Any, rows: int) -> None:
    x = np.random.default_rng(0).normal(size=(rows, 7)).astype(np.float32)

    y = jax.jit(scale)(x, jnp.float32(2.0))

    np.testing.assert_array_equal(y, x * np.arange(rows, dtype=np.float32)[:, None] * 2.0)


def test_calls_in_a_loop_follow_one_another(scale: Any) -> None:
    x = np.ones((4, 3), np.float32)

    def step(y: Any, number: Any) -> Any:
        return scale(y, number), y

    last, _ = jax.jit(lambda x: jax.lax.scan(step, x, jnp.array([1.0, 3.0, 5.0], jnp.float32)))(x)

    np.testing.assert_array_equal(last[:, 0], [0.0, 15.0, 15.0 * 8, 15.0 * 27])


def test_executables_run_in_several_threads_at_once(scale: Any) -> None:
    def compute(x: Any) -> Any:
        return jax.lax.fori_loop(0, 50, lambda _, y: scale(y, jnp.float32(1.0)) * 0 + x + scale(x, jnp.float32(1.0)), x)

    inputs = [np.full((64, 33), number, np.float32) for number in range(8)]
    compiled = jax.jit(compute).lower(inputs[0]).compile()

    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda x: np.asarray(compiled(x)), inputs * 4))

    for x, y in zip(inputs * 4, outputs, strict=True):
        np.testing.assert_array_equal(y, x + x * np.arange(64, dtype=np.float32)[:, None])
