"""ALiBi's bias, and attention with it over KV caches and over trees of texts, compared with plain NumPy over whole texts."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from birdie_zmq.models.alibi import Alibi
from birdie_zmq.models.attention import (
    AttentionMetadata,
    AttentionOptions,
    CachedLayer,
    CachedTokens,
    KeysValues,
    KVCache,
)
from birdie_zmq.models.attention import blockwise as module

HEADS, GROUPS, WIDTH = 6, 2, 4
SCALE = 0.5
LAYER = 1
"""The layer under test, of two in a KV cache."""

GARBAGE = 1e9
"""The content of unfilled slots of a KV cache."""

PLAIN, SCALED, ROUNDED = Alibi(HEADS), Alibi(HEADS, 0.5), Alibi(HEADS, 0.5, rounded=True)
EVERY_ALIBI = pytest.mark.parametrize("alibi", [PLAIN, SCALED, ROUNDED])


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """Forbid implicit promotion of dtypes and ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let short texts fill several blocks of queries, of keys, and of queries of the cache."""
    for name, size in (("QUERY_BLOCK", 8), ("STATE_BLOCK", 8), ("STATE_QUERY_CHUNK", 16)):
        monkeypatch.setattr(module, name, size)


class Text(NamedTuple):
    """Queries [t, n, h], and keys and values [t, k, h]."""

    queries: NDArray[np.float32]
    keys: NDArray[np.float32]
    values: NDArray[np.float32]

    def take(self, indices: Sequence[int] | slice) -> "Text":
        return Text(*(x[indices] for x in self))

    def followed_by(self, other: "Text") -> "Text":
        return Text(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def to_bfloat16(self) -> "Text":
        return Text(*(x.astype(bfloat16).astype(np.float32) for x in self))


def random_text(length: int, seed: int = 0) -> Text:
    generator = np.random.default_rng(seed)
    return Text(*(generator.standard_normal((length, n, WIDTH), np.float32) for n in (HEADS, GROUPS, GROUPS)))


def paper_slopes(heads: int) -> list[float]:
    """Return the slopes by the recursion of the paper's code."""
    nearest = 2 ** int(np.log2(heads))
    if nearest == heads:
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    return paper_slopes(nearest) + paper_slopes(2 * nearest)[0::2][: heads - nearest]


def key_bias(alibi: Alibi, length: int) -> NDArray[np.float64]:
    """Return the bias [n, s] by the position of the key alone, to which the softmax makes that of the query add nothing."""
    slopes, positions = np.array(paper_slopes(alibi.heads))[:, None], np.arange(length, dtype=float)[None]
    if alibi.rounded:
        bias = (slopes.astype(bfloat16) * positions.astype(bfloat16)).astype(bfloat16).astype(float)
        return np.asarray(bias * alibi.scale)
    return np.asarray(slopes * positions * alibi.scale)


def reference(text: Text, alibi: Alibi, bias: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Compute attention [t, n * h] of one text in float64, head by head."""
    length = len(text.keys)
    bias = key_bias(alibi, length) if bias is None else bias
    out = np.zeros((length, HEADS, WIDTH))
    for head in range(HEADS):
        group = head // (HEADS // GROUPS)
        scores = text.queries[:, head].astype(float) @ text.keys[:, group].astype(float).T * SCALE + bias[head]
        scores[np.triu_indices(length, 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=-1, keepdims=True) @ text.values[:, group]
    return out.reshape(length, -1)


def run_attention(
    rows: Sequence[Text],
    metadata: AttentionMetadata,
    alibi: Alibi,
    cached: Sequence[Text] = (),
    capacity: int = 0,
    dtype: str = "float32",
) -> NDArray[np.float32]:
    """Compute attention [b, t, n * h] of rows of equal length, after the texts in a KV cache if there are any."""
    query, key, value = (jnp.asarray(np.stack(part), dtype) for part in zip(*rows, strict=True))
    own = KeysValues(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))
    past = None
    if cached:
        arrays = np.full((2, len(cached), 2, GROUPS, capacity, WIDTH), GARBAGE, np.float32)
        for row, text in enumerate(cached):
            for part, x in enumerate(text[1:]):
                arrays[part, row, LAYER, :, : len(x)] = x.swapaxes(0, 1)
        cache = KVCache(jnp.asarray(arrays[0].swapaxes(3, 4), dtype), jnp.asarray(arrays[1], dtype))
        lengths = jnp.array([len(text.keys) for text in cached], jnp.int32)
        past = CachedTokens((cache,), lengths, jnp.int32(0)).layer(0, jnp.int32(LAYER))

    def run(query: jax.Array, own: KeysValues, past: CachedLayer | None, metadata: AttentionMetadata) -> jax.Array:
        return module.attention(
            query, own, () if past is None else (past,), metadata, AttentionOptions(SCALE, alibi=alibi)
        )

    got = jax.jit(run)(query, own, past, metadata)
    assert got.dtype == jnp.dtype(dtype)
    return np.asarray(got.astype(jnp.float32))


def positions_from(begins: Sequence[int], length: int) -> jax.Array:
    return jnp.asarray(np.array(begins, np.int32)[:, None] + np.arange(length, dtype=np.int32))


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 16, 71, 112])
def test_slopes_are_those_of_the_paper(heads: int) -> None:
    slopes = Alibi(heads).slopes
    assert slopes.dtype == jnp.float32
    np.testing.assert_allclose(slopes, paper_slopes(heads), rtol=1e-6)


def test_bias_is_the_slope_times_the_position() -> None:
    positions = jnp.arange(5, dtype=jnp.int32)
    bias = Alibi(2).bias(Alibi(2).slopes[:, None], positions[None])
    np.testing.assert_array_equal(bias, [[0, 0.0625, 0.125, 0.1875, 0.25], np.arange(5) / 256])
    np.testing.assert_array_equal(Alibi(2, 4.0).bias(Alibi(2, 4.0).slopes[:, None], positions[None]), bias * 4)


def test_rounded_bias_has_the_values_of_bfloat16() -> None:
    positions = jnp.arange(3000, dtype=jnp.int32)[None]
    got = jax.jit(ROUNDED.bias)(ROUNDED.slopes[:, None], positions)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, key_bias(ROUNDED, 3000))
    plain = SCALED.bias(SCALED.slopes[:, None], positions)
    assert np.abs(got - plain).max() > 1


@EVERY_ALIBI
@pytest.mark.parametrize("length", [4, 8, 21])
def test_blockwise_attention_matches_plain_attention(alibi: Alibi, length: int, small_blocks: None) -> None:
    texts = [random_text(length, seed) for seed in range(2)]
    got = run_attention(texts, AttentionMetadata(positions_from([0], length)), alibi)
    for row, text in zip(got, texts, strict=True):
        np.testing.assert_allclose(row, reference(text, alibi), atol=1e-5)


@EVERY_ALIBI
@pytest.mark.parametrize("length", [1, 21])
def test_attention_over_a_cache_matches_plain_attention(alibi: Alibi, length: int, small_blocks: None) -> None:
    cached = [random_text(count, seed) for seed, count in enumerate((0, 7, 40))]
    rows = [random_text(length, 10 + seed) for seed in range(3)]
    lengths = [len(text.keys) for text in cached]
    metadata = AttentionMetadata(positions_from(lengths, length))
    got = run_attention(rows, metadata, alibi, cached, 64)
    for row, begin, past, text in zip(got, lengths, cached, rows, strict=True):
        np.testing.assert_allclose(row, reference(past.followed_by(text), alibi)[begin:], atol=1e-5)


@EVERY_ALIBI
@pytest.mark.parametrize("length", [0, 50])
@pytest.mark.parametrize("rows_sharded", [False, True])
def test_attention_of_trees_behind_a_shared_cache_matches_plain_attention(
    alibi: Alibi, length: int, rows_sharded: bool, small_blocks: None
) -> None:
    """The tree is 0 1 2 with the branches 3 4 and 5, and then 6 7, at depths that its tokens' order does not show."""
    depths, ends = [0, 1, 2, 3, 4, 3, 0, 1], [6, 6, 6, 5, 5, 6, 8, 8]
    paths = [[0, 1, 2, 3, 4], [0, 1, 2, 5], [6, 7]]
    rows, prefix = [random_text(8, seed) for seed in range(4)], random_text(length, 9)
    metadata = AttentionMetadata(
        jnp.asarray(np.array([depths] * 4, np.int32) + length),
        jnp.array([ends] * 4, jnp.int32),
        rows_sharded=rows_sharded,
    )
    got = run_attention(rows, metadata, alibi, [prefix], 64)
    for row, text in zip(got, rows, strict=True):
        for path in paths:
            alone = reference(prefix.followed_by(text.take(path)), alibi)[length:]
            np.testing.assert_allclose(row[path], alone, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_more_queries_than_attend_to_the_cache_at_once(shared: bool) -> None:
    count, length = 700, 600
    assert count * HEADS // GROUPS > 2 * module.STATE_QUERY_CHUNK
    cached = [random_text(length, seed) for seed in range(1 if shared else 2)]
    rows = [random_text(count, 10 + seed) for seed in range(2)]
    metadata = AttentionMetadata(positions_from([length] * 2, count))
    got = run_attention(rows, metadata, ROUNDED, cached, 768)
    for row, text, past in zip(got, rows, (cached * 2)[:2], strict=True):
        np.testing.assert_allclose(row, reference(past.followed_by(text), ROUNDED)[length:], atol=1e-5)


def test_bias_of_bfloat16_weights_is_float32() -> None:
    """Far from the first token, bfloat16 would round the bias to a multiple of 8, or of a fraction of the slope."""
    length = 2000
    cached, text = random_text(length).to_bfloat16(), random_text(8, 1).to_bfloat16()
    metadata = AttentionMetadata(positions_from([length], 8))
    got = run_attention([text], metadata, PLAIN, [cached], 2048, "bfloat16")[0]
    whole = cached.followed_by(text)
    np.testing.assert_allclose(got, reference(whole, PLAIN)[length:], atol=0.02)
    rounded = key_bias(PLAIN, length + 8).astype(bfloat16).astype(float)
    assert np.abs(got - reference(whole, PLAIN, rounded)[length:]).max() > 0.5
