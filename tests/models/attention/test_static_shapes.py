"""Attention with static shapes, compared with blockwise attention over the same tokens."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models.alibi import Alibi
from birdie_zmq.models.attention import (
    AttentionImplementation,
    AttentionMetadata,
    AttentionOptions,
    CachedTokens,
    CacheSize,
    KeysValues,
    static_shapes,
)
from birdie_zmq.models.attention.blockwise import BlockwiseAttention
from birdie_zmq.models.attention.static_shapes import StaticAttention

IMPLEMENTATIONS = (StaticAttention, BlockwiseAttention)
HEADS, GROUPS, WIDTH, LAYERS, LAYER, CAPACITY = 6, 2, 8, 2, 1, 192

OPTIONS = {
    "plain": AttentionOptions(0.5),
    "window": AttentionOptions(0.5, window=20),
    "softcap and alibi": AttentionOptions(0.5, softcap=0.7, alibi=Alibi(HEADS)),
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


class Case(NamedTuple):
    """Three rows of `length` tokens after caches with these numbers of tokens in their rows, one cache after another."""

    lengths: tuple[tuple[int, ...], ...]
    length: int
    trees: bool = False


CASES = {
    "texts": Case((), 12),
    "trees": Case((), 12, trees=True),
    "rows of their own": Case(((150, 0, 64),), 12),
    "trees after one row for all": Case(((100,),), 12, trees=True),
    "one token after a prefix and rows of their own": Case(((30,), (150, 0, 5)), 1),
}


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """Forbid implicit promotion of dtypes and ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def tokens(rows: int, length: int, seed: int) -> tuple[jax.Array, KeysValues]:
    """Return queries, and keys and values."""
    generator = np.random.default_rng(seed)
    query = jnp.asarray(generator.standard_normal((rows, length, HEADS, WIDTH), np.float32))
    shape = (rows, GROUPS, length, WIDTH)
    return query, KeysValues(*(jnp.asarray(generator.standard_normal(shape, np.float32)) for _ in range(2)))


@functools.partial(jax.jit, static_argnames=("implementation", "options", "case", "score_bytes"))
def attend(
    implementation: AttentionImplementation,
    options: AttentionOptions,
    case: Case,
    score_bytes: int,
) -> jax.Array:
    """Attend after the caches of a case; compiled again if a test has changed the memory for scores."""
    assert score_bytes == static_shapes.SCORE_BYTES
    lengths, length, trees = case
    past, begin = [], jnp.int32(0)
    for number, filled in enumerate(lengths):
        cache = implementation.create_cache(len(filled), CacheSize(LAYERS, GROUPS, WIDTH), CAPACITY, "float32")
        _, own = tokens(len(filled), max(1, *filled), 10 + number)
        stacked = KeysValues(*(jnp.stack([-x, x]) for x in own))  # the layer under test is the second
        cache = implementation.append_tokens(cache, 0, stacked, jnp.zeros(len(filled), jnp.int32))
        past.append(CachedTokens((cache,), jnp.array(filled, jnp.int32), begin).layer(0, jnp.int32(LAYER)))
        begin = begin + filled[0]
    before = (
        (begin - lengths[-1][0] + jnp.array(lengths[-1], jnp.int32))[:, None]
        if lengths
        else jnp.zeros((1, 1), jnp.int32)
    )
    query, own = tokens(3, length, 0)
    if trees:  # 0 1 2 with the branches 3 4 and 5, and then 6 and what follows
        ends = jnp.array([[6, 6, 6, 5, 5, 6] + [length] * (length - 6)] * 3, jnp.int32)
        depths = jnp.array([[0, 1, 2, 3, 4, 3, *range(length - 6)]] * 3, jnp.int32)
        metadata = AttentionMetadata(before + depths, ends)
    else:
        metadata = AttentionMetadata(before + jnp.arange(length, dtype=jnp.int32)[None])
    return implementation.attend(query, own, past, metadata, options)


def run(implementation: AttentionImplementation, options: AttentionOptions, case: Case) -> jax.Array:
    got: jax.Array = attend(implementation, options, case, static_shapes.SCORE_BYTES)
    return got


@EVERY_OPTION
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_static_shapes_give_the_attention_of_blocks(
    monkeypatch: pytest.MonkeyPatch, options: AttentionOptions, case: Case
) -> None:
    if case.length > 1:
        monkeypatch.setattr(static_shapes, "SCORE_BYTES", 3 * 4 * HEADS * 12 * 4)  # the scores of few queries at a time
    got, expected = (run(each(), options, case) for each in IMPLEMENTATIONS)
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_tokens_after_empty_rows_have_finite_attention() -> None:
    assert bool(jnp.isfinite(run(StaticAttention(), OPTIONS["plain"], Case(((0, 0, 0),), 4))).all())


def test_a_window_reads_as_many_slots_as_it_spans() -> None:
    """NaN would spoil every sum, even with a weight of zero."""
    implementation = StaticAttention()
    cache = implementation.create_cache(1, CacheSize(1, GROUPS, WIDTH), CAPACITY, "float32")
    spoilt = type(cache)(*(x.at[:, :, : 180 - static_shapes.SLOT_UNIT].set(jnp.nan) for x in cache))
    past = CachedTokens((spoilt,), jnp.array([180], jnp.int32), jnp.int32(0)).layer(0, jnp.int32(0))
    query, own = tokens(1, 4, 0)
    metadata = AttentionMetadata(180 + jnp.arange(4, dtype=jnp.int32)[None])
    compute = jax.jit(functools.partial(implementation.attend, options=AttentionOptions(0.5, window=20)))
    got = compute(query, own, [past], metadata)
    assert bool(jnp.isfinite(got).all())


def test_no_loop_depends_on_how_many_tokens_a_row_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_shapes, "SCORE_BYTES", 2**12)
    case = CASES["rows of their own"]

    def has_unknown_loop(implementation: AttentionImplementation) -> bool:
        # A loop of known length is a scan in a jaxpr.
        return "while[" in str(jax.make_jaxpr(lambda: run(implementation, OPTIONS["plain"], case))())

    assert has_unknown_loop(BlockwiseAttention())
    assert not has_unknown_loop(StaticAttention())
