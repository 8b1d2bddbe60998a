"""Group the layers of a model into segments, each of which repeats a period of layers.

`jax.lax.scan` compiles its body once, however often it is repeated, so a deep model compiles as fast as a shallow one. A
segment is one scan over its periods, and a run of equal layers within a period is a scan inside of it: the 26 layers of
the smallest Gemma 3 are four periods of five windowed layers and a full one, and then two windowed layers. Three layers
are compiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax

Function = Callable[[Any, Any], tuple[Any, Any]]


class Segment(NamedTuple):
    """Consecutive layers that repeat a period.

    Attributes:
        first: The number of the first layer.
        runs: The length of each run of equal layers in a period.
        repeats: The number of periods.
    """

    first: int
    runs: tuple[int, ...]
    repeats: int

    @property
    def period(self) -> int:
        """The number of layers of a period."""
        return sum(self.runs)

    def layers(self, run: int) -> tuple[int, ...]:
        """Return the numbers of all layers of a run, in all periods."""
        begin = self.first + sum(self.runs[:run])
        starts = range(begin, begin + self.period * self.repeats, self.period)
        return tuple(start + offset for start in starts for offset in range(self.runs[run]))


def find_segments(layers: Sequence[Hashable], first: int = 0) -> tuple[Segment, ...]:
    """Return the segments with the fewest layers to compile, and of these the fewest segments.

    Args:
        layers: A value for each layer; layers with equal values compute the same function of their weights.
        first: The number of the first of these layers.
    """
    count = len(layers)
    layers = tuple(layers)
    # best[i] is the cost of the layers from i on: layers to compile, segments, and the first of these segments.
    best: list[tuple[int, int, Segment | None]] = [(0, 0, None)] * (count + 1)
    for begin in range(count - 1, -1, -1):
        choices: list[tuple[int, int, Segment | None]] = []
        for period in range(1, count - begin + 1):
            pattern = layers[begin : begin + period]
            runs = tuple(len(list(equal)) for _, equal in itertools.groupby(pattern))
            repeats, end = 1, begin + period
            while True:
                compiled, segments, _ = best[end]
                choices.append((compiled + len(runs), segments + 1, Segment(first + begin, runs, repeats)))
                if layers[end : end + period] != pattern:
                    break
                repeats, end = repeats + 1, end + period
        best[begin] = min(choices, key=lambda choice: choice[:2])  # of equal ones the shortest period
    found, begin = [], 0
    while (segment := best[begin][2]) is not None:
        found.append(segment)
        begin += segment.period * segment.repeats
    return tuple(found)


def scan_segment(
    segment: Segment, functions: Sequence[Function], x: Any, scanned: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """Apply the layers of a segment in their order.

    Args:
        segment: The segment.
        functions: For each run of a period, the function ``(x, slice of scanned) -> (x, output)`` of one layer.
        x: The input of the first layer.
        scanned: For each run, a pytree of arrays [l, ...] whose slices belong to the layers `Segment.layers` of the run.

    Returns:
        The output of the last layer, and for each run the outputs of its layers, stacked like `scanned`.
    """

    def period(x: Any, slices: Sequence[Any]) -> tuple[Any, list[Any]]:
        outputs = []
        for function, run, of_run in zip(functions, segment.runs, slices, strict=True):
            x, output = _scan(function, x, of_run, run)
            outputs.append(output)
        return x, outputs

    by_period = [
        jax.tree.map(lambda array, run=run: array.reshape(segment.repeats, run, *array.shape[1:]), tree)
        for tree, run in zip(scanned, segment.runs, strict=True)
    ]
    x, outputs = _scan(period, x, by_period, segment.repeats)
    return x, [jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), output) for output in outputs]


def _scan(function: Function, x: Any, scanned: Any, count: int) -> tuple[Any, Any]:
    """Scan a function over `count` slices; a single one needs no loop."""
    if count > 1:
        return jax.lax.scan(function, x, scanned)
    x, output = function(x, jax.tree.map(lambda array: array[0], scanned))
    return x, jax.tree.map(lambda array: array[None], output)
