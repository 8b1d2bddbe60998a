"""Segments, periods and runs of equal layers, and the scan over them."""

import itertools
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from birdie_zmq.models.layer_stack import Segment, find_segments, scan_segment, scan_slices


def compiled(segments: tuple[Segment, ...]) -> int:
    """Return the number of layers that are compiled."""
    return sum(len(segment.runs) for segment in segments)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("A" * 48, [Segment(0, (1,), 48)]),
        ("A", [Segment(0, (1,), 1)]),
        ("AB" * 13, [Segment(0, (1, 1), 13)]),  # Gemma 2
        ("WWWWWF" * 4 + "WW", [Segment(0, (5, 1), 4), Segment(24, (1,), 2)]),  # Gemma 3 1B
        ("WWWF" * 9, [Segment(0, (3, 1), 9)]),  # SmolLM 3
        ("F" * 12 + "W" * 16, [Segment(0, (12, 16), 1)]),  # Qwen 2 with windows in its last layers
        ("DDD" + "E" * 58, [Segment(0, (3, 58), 1)]),
        ("", []),
    ],
)
def test_layers_are_grouped_into_the_fewest_to_compile(layers: str, expected: list[Segment]) -> None:
    assert list(find_segments(layers)) == expected


def test_segments_count_layers_from_the_first() -> None:
    assert find_segments("ABAB", 10) == (Segment(10, (1, 1), 2),)


def test_segments_cover_all_layers_in_order() -> None:
    generator = random.Random(0)
    for _ in range(200):
        layers = "".join(generator.choice("AAB") for _ in range(generator.randrange(1, 15)))
        segments = find_segments(layers)
        order: list[int] = []
        for segment in segments:
            for run, length in enumerate(segment.runs):
                numbers = segment.layers(run)
                assert len(numbers) == length * segment.repeats
                assert len({layers[number] for number in numbers}) == 1
                order += numbers
        assert sorted(order) == list(range(len(layers)))
        runs = 1 + sum(one != other for one, other in itertools.pairwise(layers))
        assert compiled(segments) <= runs


@pytest.mark.parametrize("scan", [scan_segment, scan_slices])
@pytest.mark.parametrize("layers", ["AAB" * 3, "A", "AAAA", "AB", "AB" * 3, "AAABB", "AAB"])
def test_scan_applies_each_layer_to_the_output_of_the_one_before(scan: Any, layers: str) -> None:
    (segment,) = find_segments(layers)
    weights = np.arange(1.0, len(layers) + 1, dtype=np.float32)

    def apply(kind: str, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x * weight if kind == "A" else x + weight
        return x, x

    functions, scanned = [], []
    for run in range(len(segment.runs)):
        numbers = segment.layers(run)
        functions.append(lambda x, weight, kind=layers[numbers[0]]: apply(kind, x, weight))
        scanned.append(jnp.asarray(weights[np.array(numbers)]))
    last, outputs = scan(segment, functions, jnp.float32(1.0), scanned)

    x, expected = np.float32(1.0), []
    for kind, weight in zip(layers, weights, strict=True):
        x = x * weight if kind == "A" else x + weight
        expected.append(x)
    assert float(last) == expected[-1]
    for run, output in enumerate(outputs):
        np.testing.assert_allclose(output, [expected[number] for number in segment.layers(run)])
