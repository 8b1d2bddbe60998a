"""Attention in blocks, over states and over trees of texts, against plain NumPy over whole texts."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from birdie_zmq.models import attention as module
from birdie_zmq.models.attention import UNLIMITED, Reading, State, attention, written

LAYER = 1
"""The layer that is read, of three in a state."""

GARBAGE = 1e9
"""What stands in slots of a state that are not filled."""


@pytest.fixture(autouse=True)
def strict_jax() -> Iterator[None]:
    """No silent promotion of dtypes or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def drawn(
    length: int, heads: int = 4, groups: int = 2, width: int = 8, rows: int = 2, seed: int = 0
) -> list[NDArray[np.float32]]:
    """Queries, keys and values."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((rows, length, n, width), np.float32) for n in (heads, groups, groups)]


def in_bfloat16(arrays: Sequence[ArrayLike]) -> list[jax.Array]:
    return [jnp.asarray(x, jnp.bfloat16) for x in arrays]


def whole(length: int) -> Reading:
    """Rows that are one text each, from its first token on."""
    return Reading(jnp.arange(length, dtype=jnp.int32)[None])


def attended(
    arrays: Sequence[ArrayLike],
    reading: Reading,
    *,
    layer: int = LAYER,
    scale: float = 0.5,
    window: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    limit = None if window is None else jnp.int32(window)
    sizes = module.QUERY_BLOCK, module.MOST_BLOCKS, module.STATE_BLOCK, module.STATE_QUERIES
    got: jax.Array = _compiled(
        [jnp.asarray(x) for x in arrays], reading, jnp.int32(layer), limit, scale=scale, softcap=softcap, sizes=sizes
    )
    return got


@functools.partial(jax.jit, static_argnames=("scale", "softcap", "sizes"))
def _compiled(
    arrays: list[jax.Array],
    reading: Reading,
    layer: jax.Array,
    window: jax.Array | None,
    *,
    scale: float,
    softcap: float | None,
    sizes: tuple[int, int, int, int],
) -> jax.Array:
    """Attention, compiled again where a test has changed the sizes of blocks."""
    assert sizes == (module.QUERY_BLOCK, module.MOST_BLOCKS, module.STATE_BLOCK, module.STATE_QUERIES)
    query, key, value = arrays
    return attention(query, key, value, reading, layer, scale=scale, window=window, softcap=softcap)


def reference(
    arrays: Sequence[ArrayLike], scale: float = 0.5, window: int | None = None, softcap: float | None = None
) -> NDArray[np.float64]:
    """Attention in float64, one row, head and position after another; each row is one text."""
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


def stored(texts: Sequence[Sequence[NDArray[np.float32]]], capacity: int, garbage: float = GARBAGE) -> State:
    """The state that has read texts, each queries, keys and values [1, t, k, h]; other layers hold other numbers."""
    groups, width = texts[0][1].shape[2:]
    lengths, held = [text[1].shape[1] for text in texts], []
    for part in (1, 2):
        array = np.random.default_rng(part).standard_normal((len(texts), 3, groups, capacity, width), np.float32)
        for row, text in enumerate(texts):
            array[row, :, :, lengths[row] :] = garbage
            array[row, LAYER, :, : lengths[row]] = text[part][0].swapaxes(0, 1)
        held.append(jnp.asarray(array))
    return State(held[0], held[1], jnp.array(lengths, jnp.int32))


def behind(state: State, length: int) -> Reading:
    """Rows whose texts begin with what a state holds."""
    return Reading(state.lengths[:, None] + jnp.arange(length, dtype=jnp.int32)[None], state=state)


def after(
    text: Sequence[NDArray[np.float32]], arrays: Sequence[NDArray[np.float32]], row: int, places: Sequence[int]
) -> list[NDArray[np.float32]]:
    """One text: what was read first, then some tokens of a row."""
    return [np.concatenate([x, y[row : row + 1, places]], axis=1) for x, y in zip(text, arrays, strict=True)]


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 3, 4, UNLIMITED])
@pytest.mark.parametrize("length", [4, 8, 11])
def test_attention_in_blocks_is_plain_attention(
    monkeypatch: pytest.MonkeyPatch, length: int, window: int | None, softcap: float | None
) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 4)
    arrays = drawn(length)
    got = attended(arrays, whole(length), window=window, softcap=softcap)
    assert got.shape == (2, length, 32)
    np.testing.assert_allclose(got, reference(arrays, window=window, softcap=softcap), atol=1e-5)


@pytest.mark.parametrize("window", [None, 70])
def test_row_longer_than_a_block_is_plain_attention(window: int | None) -> None:
    length = module.QUERY_BLOCK + 3
    arrays = drawn(length, heads=1, groups=1, width=4)
    np.testing.assert_allclose(
        attended(arrays, whole(length), window=window), reference(arrays, window=window), atol=1e-5
    )


def test_row_is_cut_into_no_more_blocks_than_are_worth_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 2)
    monkeypatch.setattr(module, "MOST_BLOCKS", 3)
    arrays = drawn(11)
    products_of_a_block = 2
    program = str(jax.make_jaxpr(lambda arrays: attended(arrays, whole(11)))(arrays))
    assert program.count("dot_general[") == 3 * products_of_a_block
    np.testing.assert_allclose(attended(arrays, whole(11)), reference(arrays), atol=1e-5)


def test_long_row_never_holds_all_scores_at_once() -> None:
    length = 4 * module.QUERY_BLOCK
    arrays = [jnp.zeros((1, length, 1, 4))] * 3
    used = jax.jit(lambda arrays: attended(arrays, whole(length))).lower(arrays).compile().memory_analysis()
    assert used is not None
    assert used.temp_size_in_bytes < 4 * length * length


def test_scores_beyond_float32s_exponentials_give_finite_attention() -> None:
    query, key, value = drawn(6)
    got = attended([1e4 * query, 1e4 * key, value], whole(6), scale=1.0)
    assert bool(jnp.isfinite(got).all())


def test_attention_in_bfloat16_stays_bfloat16_and_sums_in_float32() -> None:
    arrays = in_bfloat16(drawn(6))
    got = attended(arrays, whole(6))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), reference(arrays), atol=0.03)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (3, 0.7), (6, None), (UNLIMITED, 0.7)])
@pytest.mark.parametrize(
    ("lengths", "capacity"),
    [
        ((0, 9), 12),  # blocks of 4: of the second row three are read, and none of the first row's slots is seen
        ((12, 4), 12),
        ((9, 10), 12),  # two blocks that both rows fill, and one that they do not
        ((5, 1), 12),
        ((0, 0), 12),
        ((2, 3), 3),  # less than a block
        ((0,), 12),  # one row for both
        ((7,), 12),
        ((12,), 12),
    ],
)
def test_attention_over_a_state_is_attention_over_whole_texts(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], capacity: int, window: int | None, softcap: float | None
) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    monkeypatch.setattr(module, "STATE_QUERIES", 4)
    texts = [drawn(length, rows=1, seed=1 + row) for row, length in enumerate(lengths)]
    arrays, state = drawn(5), stored(texts, capacity)
    got = attended(arrays, behind(state, 5), window=window, softcap=softcap)
    for row in range(2):
        text = texts[row if len(texts) == 2 else 0]
        expected = reference(after(text, arrays, row, range(5)), window=window, softcap=softcap)[0, -5:]
        np.testing.assert_allclose(got[row], expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
def test_layers_of_a_state_are_told_apart(rows: int) -> None:
    texts = [drawn(6, rows=1, seed=1 + row) for row in range(rows)]
    arrays, state = drawn(3), stored(texts, 8)
    first, _, last = (attended(arrays, behind(state, 3), layer=layer) for layer in range(3))
    for row in range(2):
        expected = reference(after(texts[row % rows], arrays, row, range(3)))[0, -3:]
        assert not np.allclose(first[row], expected, atol=0.1)
        assert not np.allclose(last[row], expected, atol=0.1)


@pytest.mark.parametrize("lengths", [(6, 1), (6,)])
def test_what_stands_behind_the_length_of_a_state_is_never_seen(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    texts = [drawn(length, rows=1, seed=1 + row) for row, length in enumerate(lengths)]
    arrays, states = drawn(3), [stored(texts, 12, garbage) for garbage in (0.0, GARBAGE, -GARBAGE)]
    clean, *dirty = (attended(arrays, behind(state, 3)) for state in states)
    for got in dirty:
        np.testing.assert_array_equal(got, clean)


def test_blocks_of_a_state_that_no_row_fills_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are none would spoil every sum, even with a weight of zero."""
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    state = stored([drawn(4, rows=1, seed=1), drawn(2, rows=1, seed=2)], 12, 0.0)
    keys, values = (x.at[:, :, :, 4:].set(jnp.nan) for x in (state.keys, state.values))
    arrays = drawn(3)
    got = attended(arrays, behind(State(keys, values, state.lengths), 3))
    np.testing.assert_array_equal(got, attended(arrays, behind(state, 3)))


def test_scores_beyond_float32s_exponentials_give_finite_attention_over_a_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    texts = [[np.float32(1e4) * x for x in drawn(length, rows=1, seed=1)] for length in (9, 0)]
    query, key, value = drawn(3)
    got = attended([1e4 * query, 1e4 * key, value], behind(stored(texts, 12), 3), scale=1.0)
    assert bool(jnp.isfinite(got).all())


def test_attention_over_a_state_in_bfloat16_stays_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    text, arrays = drawn(9, rows=1, seed=1), drawn(3)
    state = stored([text], 12)
    keys, values = in_bfloat16([state.keys, state.values])
    got = attended(in_bfloat16(arrays), behind(State(keys, values, state.lengths), 3))
    assert got.dtype == jnp.bfloat16
    for row in range(2):
        expected = reference(after(text, arrays, row, range(3)))[0, -3:]
        np.testing.assert_allclose(got[row].astype(jnp.float32), expected, atol=0.03)


TREES = [
    # Of each row: for each token the depth and the end of what hangs from it, then the paths from roots to leaves.
    ([0, 1, 2, 2, 1, 0, 1, 2], [5, 4, 3, 4, 5, 8, 8, 8], [[0, 1, 2], [0, 1, 3], [0, 4], [5, 6, 7]]),
    ([0, 1, 2, 3, 3, 4, 0, 1], [6, 6, 6, 4, 6, 6, 8, 8], [[0, 1, 2, 3], [0, 1, 2, 4, 5], [6, 7]]),
]


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (1, None), (2, None), (3, 0.7), (8, None)])
@pytest.mark.parametrize("lengths", [(), (0,), (7,), (2, 9)])
def test_each_path_of_a_tree_is_attended_as_if_alone(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], window: int | None, softcap: float | None
) -> None:
    monkeypatch.setattr(module, "STATE_BLOCK", 4)
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    monkeypatch.setattr(module, "STATE_QUERIES", 4)
    texts = [drawn(length, rows=1, seed=1 + row) for row, length in enumerate(lengths)] or [drawn(0, rows=1)]
    state = stored(texts, 12) if lengths else None
    depths, ends = (jnp.array([tree[part] for tree in TREES], jnp.int32) for part in (0, 1))
    arrays, positions = drawn(8), depths if state is None else state.lengths[:, None] + depths
    got = attended(arrays, Reading(positions, ends, state), window=window, softcap=softcap)
    for row, (_, _, paths) in enumerate(TREES):
        for path in paths:
            alone = after(texts[row if len(texts) == 2 else 0], arrays, row, path)
            expected = reference(alone, window=window, softcap=softcap)[0, -len(path) :]
            np.testing.assert_allclose(got[row, np.array(path)], expected, atol=1e-5)


def test_written_keys_and_values_stand_behind_each_rows_own() -> None:
    shape = (2, 3, 2, 8, 4)
    state = State(jnp.full(shape, -1.0), jnp.full(shape, -2.0), jnp.array([0, 3], jnp.int32))
    keys, values = (jax.random.normal(jax.random.key(seed), (3, 2, 2, 4, 4)) for seed in (0, 1))
    after_step = written(state, keys, values, jnp.array([4, 2], jnp.int32))
    np.testing.assert_array_equal(after_step.lengths, [4, 5])
    assert after_step.lengths.dtype == jnp.int32
    for got, new, old in ((after_step.keys, keys, -1.0), (after_step.values, values, -2.0)):
        np.testing.assert_array_equal(got[0, :, :, :4], new[:, 0])
        np.testing.assert_array_equal(got[1, :, :, :3], jnp.full((3, 2, 3, 4), old))
        np.testing.assert_array_equal(got[1, :, :, 3:5], new[:, 1, :, :2])


def test_row_that_reads_nothing_keeps_what_it_has_and_is_written_over_by_the_next_step() -> None:
    shape = (2, 1, 1, 6, 2)
    state = State(jnp.zeros(shape), jnp.zeros(shape), jnp.array([2, 0], jnp.int32))
    steps = [jnp.full((1, 2, 1, 3, 2), float(number)) for number in (1, 2)]
    once = written(state, steps[0], steps[0], jnp.array([0, 1], jnp.int32))
    twice = written(once, steps[1], steps[1], jnp.array([3, 3], jnp.int32))
    np.testing.assert_array_equal(twice.lengths, [5, 4])
    for got in (twice.keys, twice.values):
        np.testing.assert_array_equal(got[0, 0, 0, :5, 0], [0, 0, 2, 2, 2])
        np.testing.assert_array_equal(got[1, 0, 0, :4, 0], [1, 2, 2, 2])
