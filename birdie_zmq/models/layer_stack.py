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
import jax.numpy as jnp

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

    # Slices are taken from the whole stacks. Slices of slices would copy the weights of a run twice.
    def period(x: Any, repeat: Any) -> tuple[Any, list[Any]]:
        outputs = []
        for function, run, stack in zip(functions, segment.runs, scanned, strict=True):

            def layer(x: Any, number: Any, function: Function = function, run: int = run, stack: Any = stack) -> Any:
                return function(x, jax.tree.map(lambda array: _slice(array, repeat * run + number), stack))

            x, output = layer(x, 0) if run == 1 else jax.lax.scan(layer, x, jnp.arange(run, dtype=jnp.int32))
            outputs.append(output)
        return x, outputs

    if segment.repeats == 1:
        x, outputs = period(x, 0)
        outputs = jax.tree.map(lambda array: array[None], outputs)
    else:
        x, outputs = jax.lax.scan(period, x, jnp.arange(segment.repeats, dtype=jnp.int32))
    return x, [
        output if run == 1 else jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), output)
        for output, run in zip(outputs, segment.runs, strict=True)
    ]


def scan_slices(
    segment: Segment, functions: Sequence[Function], x: Any, scanned: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """Apply the layers of a segment on a GPU or a TPU, as `scan_segment` does.

    The loops slice the stacks by their own counters. XLA for GPUs then passes a matrix product the address of a layer's
    weights, where another index makes it copy them first; a decode step does little else than read weights (jax 0.12).
    A run within a repeated period has no such counter, and is sliced as by `scan_segment`.
    """
    if segment.repeats > 1 and segment.period > len(segment.runs):
        return scan_segment(segment, functions, x, scanned)

    def period(x: Any, slices: Sequence[Any]) -> tuple[Any, list[Any]]:
        outputs = []
        for function, run, layers in zip(functions, segment.runs, slices, strict=True):
            x, output = function(x, layers) if run == 1 else jax.lax.scan(function, x, layers)
            outputs.append(output)
        return x, outputs

    if segment.repeats > 1:
        return jax.lax.scan(period, x, list(scanned))
    first = [
        jax.tree.map(lambda array, run=run: array[0] if run == 1 else array, stack)
        for run, stack in zip(segment.runs, scanned, strict=True)
    ]
    x, outputs = period(x, first)
    return x, [
        jax.tree.map(lambda array: array[None], output) if run == 1 else output
        for output, run in zip(outputs, segment.runs, strict=True)
    ]


def _slice(array: jax.Array, index: Any) -> jax.Array:
    """Return a slice along the first axis, at an index int or int32 []."""
    sliced: jax.Array = jax.lax.dynamic_index_in_dim(array, index, keepdims=False)
    return sliced
