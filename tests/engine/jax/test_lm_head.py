"""The LM head in blocks of the vocabulary gives the same results as the whole LM head."""

from __future__ import annotations

import jax
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from birdie_zmq.engine.jax import lm_head

Floats = npt.NDArray[np.float32]


def in_blocks(
    logits: Floats, targets: npt.ArrayLike, block: int
) -> tuple[Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Score from blocks of the logits, and check the size of each block."""
    sizes = []

    def part(begin: jax.Array | int, size: int) -> jax.Array:
        sizes.append(size)
        return jax.lax.dynamic_slice_in_dim(jax.numpy.asarray(logits), begin, size, axis=1)

    scores = lm_head.score_in_blocks(part, jax.numpy.asarray(targets, np.int32), logits.shape[1], block)
    assert max(sizes) <= block
    return tuple(np.asarray(column) for column in scores)  # type: ignore[return-value]


# Few different values, so that equal logits, and rows that exclude all tokens, are common.
@given(
    arrays(np.float32, (3, 7), elements=st.sampled_from([-np.inf, -1000.0, -1.0, 0.0, 0.5, 1000.0])),
    arrays(np.int32, 3, elements=st.integers(0, 6)),
    st.integers(1, 7),
)
def test_blocks_of_any_size_give_the_same_scores(logits: Floats, targets: npt.NDArray[np.int32], block: int) -> None:
    whole = [np.asarray(column) for column in lm_head.score(jax.numpy.asarray(logits), jax.numpy.asarray(targets))]

    logprobs, greedy, finite = in_blocks(logits, targets, block)

    np.testing.assert_array_equal(finite, whole[2])
    np.testing.assert_allclose(logprobs[finite], whole[0][finite], atol=1e-5, rtol=1e-6)
    np.testing.assert_array_equal(greedy[finite], whole[1][finite])


def test_first_of_equal_tokens_is_greedy() -> None:
    logits = np.zeros((4, 4), np.float32)

    _, greedy, _ = in_blocks(logits, [0, 1, 2, 3], 2)

    assert greedy.tolist() == [True, False, False, False]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 3, 6])
def test_non_finite_value_in_any_block_flags_its_row_alone(value: float, at: int) -> None:
    logits = np.zeros((2, 7), np.float32)
    logits[1, at] = value

    _, _, finite = in_blocks(logits, [2, 2], 3)

    assert finite.tolist() == [True, False]


@pytest.mark.parametrize("block", [1, 3, 7])
def test_masked_target_scores_minus_infinity_and_a_row_of_masked_tokens_is_flagged(block: int) -> None:
    logits = np.zeros((3, 7), np.float32)
    logits[1, :4] = logits[2] = -np.inf

    logprobs, greedy, finite = in_blocks(logits, [2, 2, 2], block)

    np.testing.assert_allclose(logprobs[:2], [-np.log(7), -np.inf], atol=1e-6)
    assert not greedy[1]
    assert finite.tolist() == [True, True, False]


def test_blocks_of_bfloat16_are_summed_in_float32() -> None:
    logits = np.linspace(-3, 3, 4096, dtype=np.float32)[None]
    rounded = jax.numpy.asarray(logits, "bfloat16")

    logprobs, _, _ = lm_head.score_in_blocks(
        lambda begin, size: jax.lax.dynamic_slice_in_dim(rounded, begin, size, axis=1),
        jax.numpy.asarray([100], np.int32),
        4096,
        512,
    )

    wide = np.asarray(rounded, np.float64)
    assert logprobs[0] == pytest.approx(wide[0, 100] - np.log(np.exp(wide).sum()), abs=1e-4)


@settings(max_examples=5)
@given(
    arrays(np.float32, (3, 7), elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 8.0])),
    st.sampled_from([2, 4]),
    st.sampled_from([1, 3]),
)
def test_blocks_of_any_size_give_the_same_most_likely_tokens(logits: Floats, block: int, top: int) -> None:
    def part(begin: jax.Array | int, size: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(jax.numpy.asarray(logits), begin, size, axis=1)

    targets = jax.numpy.zeros(3, np.int32)
    whole = [np.asarray(column) for column in lm_head.score_top(jax.numpy.asarray(logits), targets, top)]

    found = [np.asarray(column) for column in lm_head.score_in_blocks(part, targets, 7, block, top)]

    expected = np.argsort(-logits, axis=-1, kind="stable")[:, :top]  # of equal logits, the lower ids
    is_real = np.take_along_axis(logits, expected, axis=-1) > -np.inf
    np.testing.assert_array_equal(found[3][is_real], expected[is_real])
    np.testing.assert_array_equal(whole[3][is_real], expected[is_real])
    np.testing.assert_allclose(found[4][is_real], whole[4][is_real], atol=1e-5, rtol=1e-6)
    # lm_eval calls a token greedy if its log-probability equals that of the most likely one, to the last bit.
    is_greedy = (expected[:, 0] == 0) & whole[2]
    np.testing.assert_array_equal(whole[0][is_greedy], whole[4][is_greedy, 0])
    np.testing.assert_array_equal(found[0][is_greedy], found[4][is_greedy, 0])
