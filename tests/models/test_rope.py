"""Rotary positions: frequencies of every scaling type compared with calculations by hand, and invariants."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.rope import KINDS, Rope, read_rope, rotate

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1000,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 4096}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 2.0, 4.0, 8.0],
    "long_factor": [9.0] * 4,
    "original_max_position_embeddings": 1024,
}


def read(width: int, parameters: dict[str, Any], max_position_embeddings: int = 2048, **keywords: Any) -> Rope:
    values = {"max_position_embeddings": max_position_embeddings, "rope_parameters": parameters}
    return read_rope(ConfigReader(values), width, **keywords)


def plain(width: int, theta: float = 10_000.0) -> list[float]:
    return [theta ** (-2 * i / width) for i in range(width // 2)]


def first_positions(count: int) -> jax.Array:
    """Return the positions of one row of `count` tokens."""
    return jnp.arange(count, dtype=jnp.int32)[None]


def test_default_frequencies_match_the_paper() -> None:
    np.testing.assert_allclose(Rope(8).frequencies(), [1, 0.1, 0.01, 0.001], rtol=1e-6)
    np.testing.assert_allclose(Rope(64, 5e5).frequencies(), plain(64, 5e5), rtol=1e-6)


def test_linear_divides_every_frequency() -> None:
    rope = read(8, {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0})
    np.testing.assert_allclose(rope.frequencies(), [0.25, 0.025, 0.0025, 0.00025], rtol=1e-6)


def test_llama3_keeps_short_wavelengths_scales_long_ones_and_blends_between() -> None:
    # Wavelengths are 6.28, 62.8, 628 and 6283; those below 1000 / 4 are kept, those above 1000 / 1 are divided.
    blend = (1000 / (2 * math.pi / 0.01) - 1) / (4 - 1)
    assert 0 < blend < 1
    expected = [1, 0.1, (1 - blend) * 0.01 / 8 + blend * 0.01, 0.001 / 8]
    np.testing.assert_allclose(read(8, LLAMA3).frequencies(), expected, rtol=1e-6)


def test_yarn_keeps_the_first_dimensions_scales_the_last_and_ramps_between() -> None:
    def dimension_of(periods: float) -> float:
        """Return the fractional dimension with this number of periods in the original length."""
        return 32 * math.log(4096 / (periods * 2 * math.pi)) / (2 * math.log(10_000))

    assert (math.floor(dimension_of(32)), math.ceil(dimension_of(1))) == (5, 12)
    frequencies, unscaled = read(32, YARN).frequencies(), plain(32)
    np.testing.assert_allclose(frequencies[:6], unscaled[:6], rtol=1e-6)
    np.testing.assert_allclose(frequencies[12:], np.array(unscaled[12:]) / 4, rtol=1e-6)
    np.testing.assert_allclose(frequencies[8], unscaled[8] * (4 / 7 + 3 / 7 / 4), rtol=1e-6)
    exact = read(32, YARN | {"truncate": False}).frequencies()
    scaled_share = (8 - dimension_of(32)) / (dimension_of(1) - dimension_of(32))
    np.testing.assert_allclose(exact[8], unscaled[8] * (1 - scaled_share + scaled_share / 4), rtol=1e-6)


def test_yarn_ramp_of_zero_length_is_a_step() -> None:
    frequencies = read(8, YARN | {"original_max_position_embeddings": 2}).frequencies()
    np.testing.assert_allclose(frequencies, [1, 0.1 / 4, 0.01 / 4, 0.001 / 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"factor": 1.0}, 1.0),
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 2.0, "mscale_all_dim": 0.5}, (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
        ({"mscale": 2.0}, 0.1 * math.log(4) + 1),
        ({"mscale": 2.0, "mscale_all_dim": 0}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 0.5}, 1.5),
    ],
)
def test_yarn_attention_factor(change: dict[str, float], expected: float) -> None:
    assert read(32, YARN | change).attention_factor == pytest.approx(expected, rel=1e-12)


def test_attention_factor_scales_the_tables() -> None:
    rope = read(32, YARN | {"attention_factor": 1.5})
    unscaled = dataclasses.replace(rope, attention_factor=1.0)
    for scaled, table in zip(rope.tables(first_positions(9)), unscaled.tables(first_positions(9)), strict=True):
        np.testing.assert_allclose(scaled, 1.5 * np.asarray(table), rtol=1e-6)


def test_tables_are_cos_and_sin_of_position_times_frequency() -> None:
    positions = np.array([[0, 1, 2, 3, 49], [7, 8, 9, 3, 2]], np.int32)
    cos, sin = Rope(4, 100.0).tables(jnp.asarray(positions))
    assert cos.dtype == sin.dtype == jnp.float32
    assert cos.shape == sin.shape == (2, 5, 2)
    angles = positions[:, :, None] * np.array([1.0, 0.1])
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-5)


def test_every_number_of_llama3_is_read() -> None:
    assert read(8, LLAMA3 | {"rope_theta": 500.0}) == Rope(8, 500.0, "llama3", 8.0, 1000, 1.0, 4.0)


@pytest.mark.parametrize("parameters", [LLAMA3, YARN, LONGROPE])
def test_missing_original_length_is_refused_with_its_key(parameters: dict[str, Any]) -> None:
    rest = {key: value for key, value in parameters.items() if key != "original_max_position_embeddings"}
    with pytest.raises(ValueError, match=r"^original_max_position_embeddings must be an integer"):
        read(8, rest)


def test_yarn_factor_of_null_is_the_ratio_of_the_lengths() -> None:
    assert read(8, YARN | {"factor": None}, 16_384).factor == 4.0


def test_dynamic_scales_nothing_up_to_its_length() -> None:
    """transformers scales only texts that are longer than max_position_embeddings."""
    rope = read(8, {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}, 77)
    assert rope == Rope(8, 500.0, position_limit=77)
    np.testing.assert_allclose(rope.frequencies(), plain(8, 500.0), rtol=1e-6)


def test_longrope_divides_each_frequency_by_its_own_short_factor() -> None:
    rope = read(8, LONGROPE)
    np.testing.assert_allclose(rope.frequencies(), [1, 0.1 / 2, 0.01 / 4, 0.001 / 8], rtol=1e-6)
    assert rope.position_limit == 1024


@pytest.mark.parametrize(
    ("change", "longest", "expected"),
    [
        ({}, 4096, math.sqrt(1 + math.log(4) / math.log(1024))),
        ({}, 1024, 1.0),
        ({}, 512, 1.0),
        ({"factor": 16.0}, 4096, math.sqrt(1 + math.log(16) / math.log(1024))),
        ({"attention_factor": 1.5, "factor": 16.0}, 4096, 1.5),
    ],
)
def test_longrope_attention_factor(change: dict[str, float], longest: int, expected: float) -> None:
    assert read(8, LONGROPE | change, longest).attention_factor == pytest.approx(expected, rel=1e-12)


def test_longrope_warns_of_a_length_below_that_of_the_config(caplog: pytest.LogCaptureFixture) -> None:
    assert read(8, LONGROPE, 1024).position_limit == 1024
    assert not caplog.messages
    read(8, LONGROPE, 4096)
    (message,) = caplog.messages
    assert message.startswith("longrope is supported up to the original length of 1024 tokens, which is now max_length")
    assert message.endswith("max_position_embeddings is 4096")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"short_factor": [1.0] * 3}, "short_factor must be a list of 4 numbers"),
        ({"short_factor": None}, "short_factor must be a list of 4 numbers"),
        ({"short_factor": [1.0, 2.0, "x", 1.0]}, "short_factor must be a number, not 'x'"),
        ({"short_factor": [1.0, 0.0, 1.0, 1.0]}, "4 factors above 0"),
        ({"original_max_position_embeddings": 1}, "original_max_position_embeddings above 1, not 1"),
    ],
)
def test_invalid_longrope_is_refused_with_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(8, LONGROPE | change)


@pytest.mark.parametrize("kind", ["default", "linear"])
def test_partial_rotation_narrows_the_rotated_width_where_the_family_has_it(kind: str) -> None:
    parameters = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 2.0, "partial_rotary_factor": 0.25}
    assert read(16, parameters, partial=True).width == 4
    assert read(16, parameters | {"partial_rotary_factor": None}, partial=True).width == 16


def test_partial_rotation_is_ignored_without_scaling_in_other_families() -> None:
    parameters = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
    assert read(16, parameters) == Rope(16)


@pytest.mark.parametrize("kind", ["dynamic", "linear"])
def test_partial_rotation_is_refused_with_scaling_in_other_families(kind: str) -> None:
    parameters = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 2.0, "partial_rotary_factor": 0.25}
    with pytest.raises(ValueError, match=f"partial_rotary_factor=0.25 with the rope_type '{kind}' is not supported"):
        read(16, parameters)
    assert read(16, parameters | {"partial_rotary_factor": 1.0}).width == 16


def test_section_selects_the_parameters_of_a_layer_type() -> None:
    config = ConfigReader(
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            }
        }
    )
    assert read_rope(config, 8, section="full_attention") == Rope(8, 1e6, "linear", 8.0)
    assert read_rope(config, 8, section="sliding_attention") == Rope(8, 5e3)


def test_unknown_scaling_type_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match=f"has the unknown rope_type 'su'; supported: {', '.join(KINDS)}"):
        read(8, {"rope_type": "su", "rope_theta": 10_000.0, "factor": 2.0})


@pytest.mark.parametrize("key", ["rope_type", "rope_theta"])
def test_missing_type_or_base_is_refused_with_its_key(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} must be"):
        read(8, {"rope_type": "default", "rope_theta": 10_000.0} | {key: None})


@pytest.mark.parametrize("parameters", [{"rope_type": "linear", "rope_theta": 1.5}, LLAMA3 | {"factor": None}])
def test_missing_factor_is_refused_with_its_key(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^factor must be a number"):
        read(8, parameters)


@pytest.mark.parametrize("key", ["low_freq_factor", "high_freq_factor"])
def test_missing_number_of_llama3_is_refused_with_its_key(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        read(8, LLAMA3 | {key: None})


@pytest.mark.parametrize("width", [0, 1, 7])
def test_odd_or_empty_heads_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"{width} dimensions"):
        Rope(width)


def test_rotate_pairs_each_dimension_with_the_one_half_a_width_away() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    rotated = np.asarray(rotate(x, Rope(8).tables(first_positions(5))))
    angles = np.arange(5)[:, None] * np.array(plain(8))
    expected = (np.asarray(x[..., :4]) + 1j * np.asarray(x[..., 4:])) * np.exp(1j * angles)[None, :, None]
    np.testing.assert_allclose(rotated[..., :4] + 1j * rotated[..., 4:], expected, atol=1e-5)


def test_rotate_keeps_dimensions_beyond_the_width() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 12))
    rotated = rotate(x, Rope(8).tables(first_positions(5)))
    np.testing.assert_array_equal(rotated[..., 8:], x[..., 8:])
    np.testing.assert_array_equal(rotated[..., :8], rotate(x[..., :8], Rope(8).tables(first_positions(5))))
    assert not np.allclose(rotated[:, 1:, :, :8], x[:, 1:, :, :8], atol=0.1)


def test_rotate_uses_the_positions_of_each_row() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    positions = jnp.array([[4, 5, 6], [1, 0, 5]], jnp.int32)
    rope = Rope(8)
    rotated = rotate(x, rope.tables(positions))
    for row in range(2):
        alone = rotate(x[row : row + 1], rope.tables(positions[row : row + 1]))
        np.testing.assert_array_equal(rotated[row : row + 1], alone)
    assert not np.allclose(rotated[1], rotate(x[1:], rope.tables(positions[:1]))[0], atol=0.1)


def test_rotate_preserves_norms_and_the_first_position() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 50, 3, 8))
    rotated = rotate(x, Rope(8).tables(first_positions(50)))
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])


def test_rotate_keeps_the_dtype() -> None:
    x = jnp.ones((1, 4, 1, 8), jnp.bfloat16)
    assert rotate(x, Rope(8).tables(first_positions(4))).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
        LLAMA3,
        YARN,
        LONGROPE | {"short_factor": [1.0, 2.0] * 4},
    ],
)
def test_scores_depend_only_on_the_relative_position(parameters: dict[str, Any]) -> None:
    """Place the same query and key at every position."""
    tables = read(16, parameters).tables(first_positions(40))
    vectors = jax.random.normal(jax.random.key(3), (2, 1, 1, 1, 16))
    query, key = (np.asarray(rotate(jnp.tile(x, (1, 40, 1, 1)), tables))[0, :, 0] for x in vectors)
    scores = query @ key.T
    np.testing.assert_allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-4)
    assert np.ptp(scores[0]) > 1
