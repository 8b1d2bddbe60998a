"""Blockwise attention, over KV caches and over trees of texts, compared with plain NumPy over whole texts."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from birdie_zmq.models.attention import (
    AttentionMetadata,
    AttentionOptions,
    CachedLayer,
    KeysValues,
    KVCache,
)
from birdie_zmq.models.attention import blockwise as module
from birdie_zmq.models.decoder import DecoderState

LAYER = 1
"""The layer under test, of three in a KV cache."""

WIDER = 2**30
"""A window wider than any text."""

GARBAGE = 1e9
"""The content of unfilled slots of a KV cache."""


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """Forbid implicit promotion of dtypes and ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def random_arrays(
    length: int, heads: int = 4, groups: int = 2, width: int = 8, rows: int = 2, seed: int = 0
) -> list[NDArray[np.float32]]:
    """Return random queries, keys and values."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((rows, length, n, width), np.float32) for n in (heads, groups, groups)]


def in_bfloat16(arrays: Sequence[ArrayLike]) -> list[jax.Array]:
    return [jnp.asarray(x, jnp.bfloat16) for x in arrays]


def one_text(length: int) -> AttentionMetadata:
    """Return the metadata of rows that hold one text each, from its first token on."""
    return AttentionMetadata(jnp.arange(length, dtype=jnp.int32)[None])


def run_attention(
    arrays: Sequence[ArrayLike],
    metadata: AttentionMetadata,
    state: DecoderState | None = None,
    *,
    layer: int = LAYER,
    scale: float = 0.5,
    window: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    past = () if state is None else (state.from_position(0).layer(0, jnp.int32(layer)),)
    return run_attention_after(arrays, metadata, past, scale=scale, window=window, softcap=softcap)


def run_attention_after(
    arrays: Sequence[ArrayLike],
    metadata: AttentionMetadata,
    past: tuple[CachedLayer, ...],
    *,
    scale: float = 0.5,
    window: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    options = (scale, window, softcap)
    sizes = module.QUERY_BLOCK, module.MAX_QUERY_BLOCKS, module.STATE_BLOCK, module.STATE_QUERY_CHUNK
    got: jax.Array = _compiled([jnp.asarray(x) for x in arrays], metadata, past, options=options, sizes=sizes)
    return got


@functools.partial(jax.jit, static_argnames=("options", "sizes"))
def _compiled(
    arrays: list[jax.Array],
    metadata: AttentionMetadata,
    past: tuple[CachedLayer, ...],
    *,
    options: tuple[float, int | None, float | None],
    sizes: tuple[int, int, int, int],
) -> jax.Array:
    """Run attention, compiled again if a test has changed the sizes of blocks."""
    assert sizes == (module.QUERY_BLOCK, module.MAX_QUERY_BLOCKS, module.STATE_BLOCK, module.STATE_QUERY_CHUNK)
    query, key, value = arrays
    own = KeysValues(key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3))
    return module.attention(query, own, past, metadata, AttentionOptions(*options))


def reference(
    arrays: Sequence[ArrayLike], scale: float = 0.5, window: int | None = None, softcap: float | None = None
) -> NDArray[np.float64]:
    """Compute attention in float64 with loops over rows, heads and positions; each row is one text."""
    query, key, value = (np.asarray(x, np.float64) for x in arrays)
    batch, length, heads, width = query.shape
    out = np.zeros((batch, length, heads, width))
    for b in range(batch):
        for n in range(heads):
            shared = n // (heads // key.shape[2])
            for t in range(length):
                first = 0 if window is None else max(0, t + 1 - window)
                scores = key[b, first : t + 1, shared] @ query[b, t, n] * scale
                if softcap is not None:
                    scores = np.tanh(scores / softcap) * softcap
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ value[b, first : t + 1, shared]
    return out.reshape(batch, length, heads * width)


def cache_of(texts: Sequence[Sequence[NDArray[np.float32]]], capacity: int, garbage: float = GARBAGE) -> DecoderState:
    """Return the state of texts, each queries, keys and values [1, t, k, h]; other layers hold other numbers."""
    groups, width = texts[0][1].shape[2:]
    lengths, arrays = [text[1].shape[1] for text in texts], []
    for part in (1, 2):
        array = np.random.default_rng(part).standard_normal((len(texts), 3, groups, capacity, width), np.float32)
        for row, text in enumerate(texts):
            array[row, :, :, lengths[row] :] = garbage
            array[row, LAYER, :, : lengths[row]] = text[part][0].swapaxes(0, 1)
        arrays.append(jnp.asarray(array))
    return DecoderState((KVCache(arrays[0].swapaxes(3, 4), arrays[1]),), jnp.array(lengths, jnp.int32))


def with_nan(state: DecoderState, slots: slice) -> DecoderState:
    """Return the state with NaN in some slots of all rows."""
    keys, values = state.caches[0]
    cache = KVCache(keys.at[..., slots].set(jnp.nan), values.at[..., slots, :].set(jnp.nan))
    return state._replace(caches=(cache,))


def continuing(state: DecoderState, length: int) -> tuple[AttentionMetadata, DecoderState]:
    """Return the metadata of rows that continue the texts of a state, and the state."""
    positions = state.lengths[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    return AttentionMetadata(positions), state


def joined(
    text: Sequence[NDArray[np.float32]], arrays: Sequence[NDArray[np.float32]], row: int, positions: Sequence[int]
) -> list[NDArray[np.float32]]:
    """Return one text: the cached tokens, then some tokens of a row."""
    return [np.concatenate([x, y[row : row + 1, positions]], axis=1) for x, y in zip(text, arrays, strict=True)]


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, 0.7), (3, None), (4, 0.7), (WIDER, None)])
@pytest.mark.parametrize("length", [4, 8, 11])
def test_blockwise_attention_matches_plain_attention(
    monkeypatch: pytest.MonkeyPatch, length: int, window: int | None, softcap: float | None
) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 4)
    arrays = random_arrays(length)
    got = run_attention(arrays, one_text(length), window=window, softcap=softcap)
    assert got.shape == (2, length, 32)
    np.testing.assert_allclose(got, reference(arrays, window=window, softcap=softcap), atol=1e-5)


@pytest.mark.parametrize("window", [None, 70])
def test_row_longer_than_a_block_matches_plain_attention(window: int | None) -> None:
    length = module.QUERY_BLOCK + 3
    arrays = random_arrays(length, heads=1, groups=1, width=4)
    np.testing.assert_allclose(
        run_attention(arrays, one_text(length), window=window), reference(arrays, window=window), atol=1e-5
    )


def test_row_has_at_most_the_maximum_number_of_query_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 2)
    monkeypatch.setattr(module, "MAX_QUERY_BLOCKS", 3)
    arrays = random_arrays(11)
    products_per_block = 2
    jaxpr = str(jax.make_jaxpr(lambda arrays: run_attention(arrays, one_text(11)))(arrays))
    assert jaxpr.count("dot_general[") == 3 * products_per_block
    np.testing.assert_allclose(run_attention(arrays, one_text(11)), reference(arrays), atol=1e-5)


def test_long_row_does_not_hold_all_scores_at_once() -> None:
    length = 4 * module.QUERY_BLOCK
    arrays = [jnp.zeros((1, length, 1, 4))] * 3
    used = jax.jit(lambda arrays: run_attention(arrays, one_text(length))).lower(arrays).compile().memory_analysis()
    assert used is not None
    assert used.temp_size_in_bytes < 4 * length * length


def test_scores_too_large_for_exp_give_finite_attention() -> None:
    query, key, value = random_arrays(6)
    got = run_attention([1e4 * query, 1e4 * key, value], one_text(6), scale=1.0)
    assert bool(jnp.isfinite(got).all())


def test_attention_in_bfloat16_stays_bfloat16_and_sums_in_float32() -> None:
    arrays = in_bfloat16(random_arrays(6))
    got = run_attention(arrays, one_text(6))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), reference(arrays), atol=0.03)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (3, 0.7), (6, None), (WIDER, 0.7)])
@pytest.mark.parametrize(
    ("lengths", "capacity"),
    [
        ((0, 9), 12),  # blocks of 4: three are read for the second row, and no slot of the first row is attended to
        ((12, 4), 12),
        ((9, 10), 12),  # two blocks that both rows fill, and one partly filled
        ((5, 1), 12),
        ((0, 0), 12),
        ((2, 3), 3),  # less than a block
        ((0,), 12),  # one cache row for both rows
        ((7,), 12),
        ((12,), 12),
    ],
)
def test_attention_over_a_cache_matches_attention_over_whole_texts(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], capacity: int, window: int | None, softcap: float | None
) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    monkeypatch.setattr(module, "STATE_QUERY_CHUNK", 4)
    texts = [random_arrays(length, rows=1, seed=1 + row) for row, length in enumerate(lengths)]
    arrays, state = random_arrays(5), cache_of(texts, capacity)
    got = run_attention(arrays, *continuing(state, 5), window=window, softcap=softcap)
    for row in range(2):
        text = texts[row if len(texts) == 2 else 0]
        expected = reference(joined(text, arrays, row, range(5)), window=window, softcap=softcap)[0, -5:]
        np.testing.assert_allclose(got[row], expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_each_layer_reads_its_own_cache(rows: int) -> None:
    texts = [random_arrays(6, rows=1, seed=1 + row) for row in range(rows)]
    arrays, state = random_arrays(3), cache_of(texts, 8)
    first, _, last = (run_attention(arrays, *continuing(state, 3), layer=layer) for layer in range(3))
    for row in range(2):
        expected = reference(joined(texts[row % rows], arrays, row, range(3)))[0, -3:]
        assert not np.allclose(first[row], expected, atol=0.1)
        assert not np.allclose(last[row], expected, atol=0.1)


@pytest.mark.parametrize("lengths", [(6, 1), (6,)])
def test_slots_beyond_the_length_of_a_cache_are_not_attended_to(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    texts = [random_arrays(length, rows=1, seed=1 + row) for row, length in enumerate(lengths)]
    arrays, states = random_arrays(3), [cache_of(texts, 12, garbage) for garbage in (0.0, GARBAGE, -GARBAGE)]
    clean, *dirty = (run_attention(arrays, *continuing(state, 3)) for state in states)
    for got in dirty:
        np.testing.assert_array_equal(got, clean)


def test_cache_blocks_that_no_row_reaches_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN would spoil every sum, even with a weight of zero."""
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    state = cache_of([random_arrays(4, rows=1, seed=1), random_arrays(2, rows=1, seed=2)], 12, 0.0)
    arrays = random_arrays(3)
    got = run_attention(arrays, *continuing(with_nan(state, slice(4, None)), 3))
    np.testing.assert_array_equal(got, run_attention(arrays, *continuing(state, 3)))


def test_scores_too_large_for_exp_give_finite_attention_over_a_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    texts = [[np.float32(1e4) * x for x in random_arrays(length, rows=1, seed=1)] for length in (9, 0)]
    query, key, value = random_arrays(3)
    got = run_attention([1e4 * query, 1e4 * key, value], *continuing(cache_of(texts, 12), 3), scale=1.0)
    assert bool(jnp.isfinite(got).all())


def test_attention_over_a_cache_in_bfloat16_stays_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    text, arrays = random_arrays(9, rows=1, seed=1), random_arrays(3)
    state = cache_of([text], 12)
    narrow = DecoderState((KVCache(*in_bfloat16(state.caches[0])),), state.lengths)
    got = run_attention(in_bfloat16(arrays), *continuing(narrow, 3))
    assert got.dtype == jnp.bfloat16
    for row in range(2):
        expected = reference(joined(text, arrays, row, range(3)))[0, -3:]
        np.testing.assert_allclose(got[row].astype(jnp.float32), expected, atol=0.03)


TREES = [
    # For each row: the depth and the subtree end of each token, then the paths from roots to leaves.
    ([0, 1, 2, 2, 1, 0, 1, 2], [5, 4, 3, 4, 5, 8, 8, 8], [[0, 1, 2], [0, 1, 3], [0, 4], [5, 6, 7]]),
    ([0, 1, 2, 3, 3, 4, 0, 1], [6, 6, 6, 4, 6, 6, 8, 8], [[0, 1, 2, 3], [0, 1, 2, 4, 5], [6, 7]]),
]


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (2, None), (3, 0.7), (8, None)])
@pytest.mark.parametrize("lengths", [(), (0,), (7,), (2, 9)])
def test_each_path_of_a_tree_matches_the_text_alone(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], window: int | None, softcap: float | None
) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    monkeypatch.setattr(module, "STATE_QUERY_CHUNK", 4)
    texts = [random_arrays(length, rows=1, seed=1 + row) for row, length in enumerate(lengths)] or [
        random_arrays(0, rows=1)
    ]
    state = cache_of(texts, 12) if lengths else None
    depths, ends = (jnp.array([tree[part] for tree in TREES], jnp.int32) for part in (0, 1))
    arrays, positions = random_arrays(8), depths if state is None else state.lengths[:, None] + depths
    metadata = AttentionMetadata(positions, ends)
    got = run_attention(arrays, metadata, state, window=window, softcap=softcap)
    for row, (_, _, paths) in enumerate(TREES):
        for path in paths:
            alone = joined(texts[row if len(texts) == 2 else 0], arrays, row, path)
            expected = reference(alone, window=window, softcap=softcap)[0, -len(path) :]
            np.testing.assert_allclose(got[row, np.array(path)], expected, atol=1e-5)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (3, 0.7), (8, None), (16, None)])
@pytest.mark.parametrize("length", [1, 3])
def test_rows_after_a_prefix_that_is_held_once_match_the_text_alone(
    monkeypatch: pytest.MonkeyPatch, length: int, window: int | None, softcap: float | None
) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    prefix, texts = random_arrays(7, rows=1, seed=3), [random_arrays(n, rows=1, seed=4 + n) for n in (0, 5)]
    shared, state = cache_of([prefix], 12), cache_of(texts, 8)
    past = (shared.from_position(0), state.from_position(shared.lengths[0]))
    positions = 7 + state.lengths[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
    arrays, layers = random_arrays(length), tuple(each.layer(0, jnp.int32(LAYER)) for each in past)
    got = run_attention_after(arrays, AttentionMetadata(positions), layers, window=window, softcap=softcap)
    for row, text in enumerate(texts):
        alone = joined(joined(prefix, text, 0, range(text[0].shape[1])), arrays, row, range(length))
        np.testing.assert_allclose(got[row], reference(alone, window=window, softcap=softcap)[0, -length:], atol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_cache_blocks_before_the_window_are_not_read(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    state = cache_of([random_arrays(11, rows=1, seed=1), random_arrays(9, rows=1, seed=2)], 12)
    first = (9 - window + 1) // 4 * 4  # of the row with fewer tokens
    arrays = random_arrays(3)
    got = run_attention(arrays, *continuing(with_nan(state, slice(0, first)), 3), window=window)
    np.testing.assert_array_equal(got, run_attention(arrays, *continuing(state, 3), window=window))


def test_keys_and_values_are_appended_to_each_row() -> None:
    shape = (2, 4, 2, 8, 4)
    cache = KVCache(jnp.full(shape, -1.0).swapaxes(3, 4), jnp.full(shape, -2.0))
    lengths = jnp.array([0, 3], jnp.int32)
    own = KeysValues(*(jax.random.normal(jax.random.key(seed), (3, 2, 2, 4, 4)) for seed in (0, 1)))
    extended = module.append_tokens(cache, 1, own, lengths)
    for got, new, old in ((extended.keys.swapaxes(3, 4), own.keys, -1.0), (extended.values, own.values, -2.0)):
        np.testing.assert_array_equal(got[:, 0], jnp.full((2, 2, 8, 4), old))
        np.testing.assert_array_equal(got[0, 1:, :, :4], new[:, 0])
        np.testing.assert_array_equal(got[1, 1:, :, :3], jnp.full((3, 2, 3, 4), old))
        np.testing.assert_array_equal(got[1, 1:, :, 3:7], new[:, 1])
        np.testing.assert_array_equal(got[0, 1:, :, 4:], jnp.full((3, 2, 4, 4), old))


def test_padding_is_overwritten_by_the_next_step() -> None:
    shape = (2, 1, 1, 6, 2)
    cache = KVCache(jnp.zeros(shape).swapaxes(3, 4), jnp.zeros(shape))
    lengths = jnp.array([2, 0], jnp.int32)
    steps = [KeysValues(*[jnp.full((1, 2, 1, 3, 2), float(number))] * 2) for number in (1, 2)]
    once = module.append_tokens(cache, 0, steps[0], lengths)
    twice = module.append_tokens(once, 0, steps[1], lengths + jnp.array([0, 1], jnp.int32))
    for got in (twice.keys.swapaxes(3, 4), twice.values):
        np.testing.assert_array_equal(got[0, 0, 0, :5, 0], [0, 0, 2, 2, 2])
        np.testing.assert_array_equal(got[1, 0, 0, :4, 0], [1, 2, 2, 2])
