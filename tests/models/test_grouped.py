"""The products of tokens with the weights of their experts equal those of a loop over tokens, on every platform."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from birdie_zmq.models import grouped
from birdie_zmq.models.grouped import ExpertWeights, GroupedProducts, Groups, Product, group_by_expert

WIDTH, EXPERTS, LAYERS = 8, 5, 2
WAYS = [grouped.visit_experts, grouped.scan_blocks, grouped.multiply_ragged]


def expert(x: jax.Array, product: Product) -> jax.Array:
    return product(jnp.tanh(product(x, "in")), "out")


@functools.cache
def weights() -> ExpertWeights:
    random = np.random.default_rng(0)
    shapes = {"in": (WIDTH, 6), "in_bias": (6,), "out": (6, WIDTH)}
    arrays = {name: random.standard_normal((LAYERS, EXPERTS, *shape)) for name, shape in shapes.items()}
    return ExpertWeights({name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}, jnp.int32(1))


def by_loop(rows: NDArray[np.float32], experts: NDArray[np.int32]) -> NDArray[np.float32]:
    """Each row by its own expert; zeros for none."""
    inward, bias, out = (np.asarray(weights().arrays[name])[1] for name in ("in", "in_bias", "out"))
    found = np.zeros_like(rows)
    for number, chosen in enumerate(experts):
        if chosen < EXPERTS:
            found[number] = np.tanh(rows[number] @ inward[chosen] + bias[chosen]) @ out[chosen]
    return found


def tokens_of(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "experts",
    [
        pytest.param(
            [4, 0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 2, 5, 5], id="more rows than a block, and none of expert 1"
        ),
        pytest.param([3] * 70, id="one expert has all rows"),
        pytest.param([5, 5, 5], id="no row has an expert"),
        pytest.param([2], id="one row"),
        pytest.param(list(range(5)) * 50, id="several blocks of each expert"),
    ],
)
def test_each_row_is_computed_by_its_expert(way: Callable[..., jax.Array], experts: list[int]) -> None:
    chosen, rows = np.array(experts, np.int32), tokens_of(len(experts))
    groups = group_by_expert(jnp.asarray(chosen), EXPERTS)
    got = np.asarray(jax.jit(way, static_argnums=3)(jnp.asarray(rows)[groups.order], groups, weights(), expert))
    assert got.shape == rows.shape
    order = np.asarray(groups.order)
    has_expert = chosen[order] < EXPERTS
    np.testing.assert_allclose(got[has_expert], by_loop(rows, chosen)[order][has_expert], atol=2e-6)


def test_groups_count_only_rows_with_an_expert() -> None:
    groups = group_by_expert(jnp.array([1, 5, 0, 1, 5], jnp.int32), EXPERTS)
    np.testing.assert_array_equal(groups.counts, [1, 2, 0, 0, 0])
    np.testing.assert_array_equal(groups.order, [2, 0, 3, 1, 4])


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_tokens_of_no_expert_get_zeros(platform: str) -> None:
    experts = np.array([[0, 3], [5, 5], [4, 1], [2, 5]], np.int32)
    x = tokens_of(4)
    got = np.asarray(GroupedProducts(weights(), expert, platform)(jnp.asarray(x)[:, None], jnp.asarray(experts)))
    expected = by_loop(np.repeat(x, 2, axis=0), experts.reshape(-1)).reshape(4, 2, WIDTH)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert not got[1].any()


def test_each_expert_of_a_token_may_have_an_input_of_its_own() -> None:
    experts, x = np.array([[0, 3], [4, 1]], np.int32), tokens_of(4)
    got = np.asarray(
        GroupedProducts(weights(), expert, "cpu")(jnp.asarray(x).reshape(2, 2, WIDTH), jnp.asarray(experts))
    )
    np.testing.assert_allclose(got.reshape(4, WIDTH), by_loop(x, experts.reshape(-1)), atol=2e-6)


def _products(way: Callable[..., jax.Array]) -> set[int]:
    """The rows of the matrix products in a compiled executable for 640 rows."""

    def run(rows: jax.Array, groups: Groups, weights: ExpertWeights) -> jax.Array:
        return way(rows, groups, weights, expert)

    groups = group_by_expert(jnp.zeros(640, jnp.int32), EXPERTS)
    text = jax.jit(run).lower(jnp.zeros((640, WIDTH)), groups, weights()).compile().as_text()
    assert text is not None
    return {int(rows) for rows in re.findall(r"f32\[(\d+),\d+\]\S* dot\(", text)}


def test_a_cpu_multiplies_blocks_and_not_all_rows_by_all_experts() -> None:
    assert _products(grouped.visit_experts) == {grouped.MAX_CPU_BLOCK}
    assert 640 in _products(grouped.multiply_ragged)  # the reason for blocks: a ragged product of a CPU is a dense one


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_ragged_products_of_16_bit_numbers_have_the_precision_that_tpus_compile(dtype: str, precision: str) -> None:
    typed = ExpertWeights({name: array.astype(dtype) for name, array in weights().arrays.items()}, jnp.int32(1))
    groups = group_by_expert(jnp.zeros(8, jnp.int32), EXPERTS)
    rows = jnp.zeros((8, WIDTH), dtype)
    with jax.default_matmul_precision("highest"):
        traced = jax.make_jaxpr(lambda x: grouped.multiply_ragged(x, groups, typed, expert))(rows)
    found = re.findall(r"precision=[^\n]*Precision\.(\w+)", str(traced)) or re.findall(r"precision=(\w+)", str(traced))
    assert set(found) == {precision}
