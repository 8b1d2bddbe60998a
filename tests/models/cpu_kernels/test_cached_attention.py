"""Attention of one query per head to the KV cache of its row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models.cpu_kernels.cached_attention import attend_to_cache

_CAPACITY, _LAYERS, _GROUPS, _WIDTH = 2304, 2, 2, 16


def _attend(heads: int, first: list[int], end: list[int], rows: slice = slice(None)) -> tuple[Any, Any]:
    """Return the attention of rows to their slots, and what NumPy computes in float64; [r, k, g, h]."""
    random, count = np.random.default_rng(heads), len(end)
    queries = random.normal(size=(count, _GROUPS, heads, _WIDTH)).astype(np.float32)
    keys = random.normal(size=(count, _LAYERS, _GROUPS, _WIDTH, _CAPACITY)).astype(np.float32)
    values = random.normal(size=(count, _LAYERS, _GROUPS, _CAPACITY, _WIDTH)).astype(np.float32)
    slots = np.array(first, np.int32), np.array(end, np.int32)
    given = (x[rows] for x in (queries, keys, values))
    sums, total, maximum = jax.jit(attend_to_cache)(*given, jnp.int32(1), (slots[0][rows], slots[1][rows]))
    got = np.asarray(sums) / np.maximum(np.asarray(total), 1e-30)[..., None]
    expected = np.zeros(queries.shape)
    for row, (begin, stop) in enumerate(zip(first, end, strict=True)):
        scores = np.einsum("kgh,khc->kgc", queries[row], keys[row, 1, :, :, begin:stop].astype(np.float64))
        if begin < stop:
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            expected[row] = np.einsum("kgc,kch->kgh", weights, values[row, 1, :, begin:stop])
            expected[row] /= weights.sum(-1)[..., None]
            np.testing.assert_allclose(maximum[row], scores.max(-1), rtol=1e-5) if rows == slice(None) else None
    return got, expected[rows]


@pytest.mark.parametrize("heads", [1, 3, 16])
def test_attention_equals_that_of_numpy_in_float64(heads: int) -> None:
    end = [1, 7, 8, 9, 63, 1024, 1025, _CAPACITY]

    got, expected = _attend(heads, [0] * len(end), end)

    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)


def test_slots_before_the_first_are_not_read() -> None:
    first, end = [0, 5, 8, 1000, 1024, 1100, 2303], [20, 6, 9, 1001, 2000, 2304, 2304]

    got, expected = _attend(2, first, end)

    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)


def test_row_without_slots_has_no_weight() -> None:
    queries, keys = jnp.ones((1, 1, 2, 8)), jnp.ones((1, 1, 1, 8, 64))

    sums, total, maximum = attend_to_cache(
        queries, keys, keys.swapaxes(3, 4), jnp.int32(0), (jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    )  # type: ignore[misc]

    assert not np.asarray(sums).any()
    assert not np.asarray(total).any()
    np.testing.assert_array_equal(maximum, np.float32(-1e30))


def test_row_is_the_same_to_the_bit_beside_any_others() -> None:
    first, end = [0, 3, 0, 900], [1500, 70, 1, 2304]
    together, _ = _attend(3, first, end)

    for row in range(len(end)):
        alone, _ = _attend(3, first, end, slice(row, row + 1))
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize("array", ["queries", "keys", "values"])
@pytest.mark.parametrize("slot", [0, 5, 37])
def test_nan_reaches_the_output(array: str, slot: int) -> None:
    queries, keys, values = np.ones((1, 1, 1, 8)), np.ones((1, 1, 1, 8, 64)), np.ones((1, 1, 1, 64, 8))
    if array == "queries":
        queries[..., slot % 8] = np.nan
    elif array == "keys":
        keys[..., 3, slot] = np.nan
    else:
        values[..., slot, :] = np.nan
    given = [jnp.asarray(x, jnp.float32) for x in (queries, keys, values)]
    slots = jnp.zeros(1, jnp.int32), jnp.full(1, 38, jnp.int32)

    attended = attend_to_cache(given[0], given[1], given[2], jnp.int32(0), slots)

    assert attended is not None
    assert np.isnan(np.asarray(attended[0]) / np.asarray(attended[1])[..., None]).all()


def test_large_scores_do_not_overflow() -> None:
    queries, keys = jnp.full((1, 1, 1, 8), 100.0), jnp.zeros((1, 1, 1, 8, 64)).at[..., 3].set(100.0)
    values = jnp.arange(64.0)[None, None, None, :, None] * jnp.ones(8)

    sums, total, _ = attend_to_cache(
        queries, keys, values, jnp.int32(0), (jnp.zeros(1, jnp.int32), jnp.full(1, 64, jnp.int32))
    )  # type: ignore[misc]

    np.testing.assert_array_equal(sums / total[..., None], 3.0)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        (jnp.zeros((1, 1, 17, 8)), jnp.zeros((1, 1, 1, 8, 64))),
        (jnp.zeros((1, 1, 1, 12)), jnp.zeros((1, 1, 1, 12, 64))),
        (jnp.zeros((1, 1, 1, 8)), jnp.zeros((1, 1, 1, 8, 60))),
        (jnp.zeros((2, 1, 1, 8)), jnp.zeros((1, 1, 1, 8, 64))),
        (jnp.zeros((1, 1, 1, 8), jnp.bfloat16), jnp.zeros((1, 1, 1, 8, 64), jnp.bfloat16)),
    ],
    ids=["many heads", "width", "capacity", "shared row", "bfloat16"],
)
def test_other_sizes_and_dtypes_are_left_to_xla(queries: jax.Array, keys: jax.Array) -> None:
    slots = jnp.zeros(len(keys), jnp.int32), jnp.zeros(len(keys), jnp.int32)

    assert attend_to_cache(queries, keys, keys.swapaxes(3, 4), jnp.int32(0), slots) is None
