"""Attention of one query per head to the KV cache of its row, read where it lies.

Each item is a key/value head of a row. Its slots are read in blocks whose scores stay in the processor's nearest cache, with
an online softmax (Milakov and Gimelshein, 2018, arXiv:1805.02867). A row's outputs do not depend on the rows beside it.

Shape letters are those of `attention.interface`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np

from birdie_zmq.models.cpu_kernels.parallel_call import VECTOR_OPTIONS, ParallelCall, floats_at, integers_at, kernel

_UNIT = 8
"""Slots, or elements of a head, whose products are added at once."""

_MAX_HEADS = 16
"""With more query heads for a key/value head, XLA's products are faster."""

_BLOCK = 1024
"""Slots whose scores are computed at once; a multiple of `_UNIT`."""

_MIN_SCORE = np.float32(-1e30)
"""The maximum of no scores, in place of minus infinity: subtracting it from itself gives 0, not NaN."""

_index = numba.types.uintp
"""Unsigned, since Numba lets a negative index count from the end, and a loop with that choice is not computed by vectors."""


@numba.njit(**VECTOR_OPTIONS)  # type: ignore[untyped-decorator]
def _exp(x: Any) -> Any:
    """Return the exponential of a float32 in [-87, 0], or 0 below; the relative error is at most 3e-7.

    It is the method of Cephes (S. L. Moshier, 1989): the argument less a multiple of log 2, and a polynomial.
    """
    bounded = max(x, np.float32(-87.0))
    power = np.floor(bounded * np.float32(1.44269504) + np.float32(0.5))
    rest = bounded - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * rest + np.float32(1.3981999507e-3)
    y = y * rest + np.float32(8.3334519073e-3)
    y = y * rest + np.float32(4.1665795894e-2)
    y = y * rest + np.float32(1.6666665459e-1)
    y = y * rest + np.float32(5.0000001201e-1)
    y = y * rest * rest + rest + np.float32(1.0)
    y = y * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)
    # The last term is 0, or NaN if the argument is: the output of a model that overflows must not look like a number.
    return (y if x >= np.float32(-87.0) else np.float32(0.0)) + (x - bounded) * np.float32(0.0)


@numba.njit(**VECTOR_OPTIONS)  # type: ignore[untyped-decorator]
def _add_scores(scores: Any, query: Any, keys: Any, begin: Any, count: Any) -> None:
    """Set scores [g, count] to the products of queries [g, h] and keys [h, c] from slot `begin` on."""
    heads, width = query.shape
    scores[:, :count] = 0.0
    for h in range(0, width, _UNIT):
        row = _index(h)
        for head in range(heads):
            q = query[head]
            q0, q1, q2, q3 = q[h], q[h + 1], q[h + 2], q[h + 3]
            q4, q5, q6, q7 = q[h + 4], q[h + 5], q[h + 6], q[h + 7]
            for slot in range(_index(count)):
                at = _index(begin) + slot
                scores[_index(head), slot] += (
                    (q0 * keys[row, at] + q1 * keys[row + _index(1), at])
                    + (q2 * keys[row + _index(2), at] + q3 * keys[row + _index(3), at])
                ) + (
                    (q4 * keys[row + _index(4), at] + q5 * keys[row + _index(5), at])
                    + (q6 * keys[row + _index(6), at] + q7 * keys[row + _index(7), at])
                )


@numba.njit(**VECTOR_OPTIONS)  # type: ignore[untyped-decorator]
def _add_values(sums: Any, weights: Any, values: Any, begin: Any, count: Any) -> None:
    """Add to sums [g, h] the values [c, h] from slot `begin` on, with weights [g, count]."""
    heads, width = sums.shape
    for slot in range(0, count, _UNIT):
        at = _index(begin + slot)
        for head in range(heads):
            w = weights[head]
            w0, w1, w2, w3 = w[slot], w[slot + 1], w[slot + 2], w[slot + 3]
            w4, w5, w6, w7 = w[slot + 4], w[slot + 5], w[slot + 6], w[slot + 7]
            for h in range(_index(width)):
                sums[_index(head), h] += (
                    (w0 * values[at, h] + w1 * values[at + _index(1), h])
                    + (w2 * values[at + _index(2), h] + w3 * values[at + _index(3), h])
                ) + (
                    (w4 * values[at + _index(4), h] + w5 * values[at + _index(5), h])
                    + (w6 * values[at + _index(6), h] + w7 * values[at + _index(7), h])
                )


@numba.njit(**VECTOR_OPTIONS)  # type: ignore[untyped-decorator]
def _weigh(scores: Any, first: Any, count: Any, total: Any, maximum: Any) -> Any:
    """Replace scores [..., first to count] by their exponentials relative to the new maximum, and others by 0.

    Return the factor of earlier sums, the new total weight and the new maximum.
    """
    new = maximum
    for slot in range(_index(first), _index(count)):
        new = max(new, scores[slot])
    factor = _exp(maximum - new)
    added = np.float32(0.0)
    for slot in range(_index(first), _index(count)):
        weight = _exp(scores[slot] - new)
        scores[slot] = weight
        added += weight
    scores[:first] = 0.0
    return factor, total * factor + added, new


def _attend(item: Any, addresses: Any, sizes: Any) -> None:
    """Attend from the queries of one key/value head of a row to the slots of the row."""
    rows, layers, groups, heads = int(sizes[0]), int(sizes[1]), int(sizes[2]), int(sizes[3])
    width, capacity = int(sizes[4]), int(sizes[5])
    row, group = item // groups, item % groups
    query = floats_at(addresses[0], (rows, groups, heads, width))[row, group]
    layer = int(integers_at(addresses[3], 1)[0])
    keys = floats_at(addresses[1], (rows, layers, groups, width, capacity))[row, layer, group]
    values = floats_at(addresses[2], (rows, layers, groups, capacity, width))[row, layer, group]
    first, end = int(integers_at(addresses[4], rows)[row]), int(integers_at(addresses[5], rows)[row])
    sums = floats_at(addresses[6], (rows, groups, heads, width))[row, group]
    total = floats_at(addresses[7], (rows, groups, heads))[row, group]
    maximum = floats_at(addresses[8], (rows, groups, heads))[row, group]
    sums[:] = 0.0
    total[:] = 0.0
    maximum[:] = _MIN_SCORE
    scores = np.empty((heads, _BLOCK), np.float32)
    begin = first // _UNIT * _UNIT
    while begin < end:
        filled = min(_BLOCK, end - begin)
        count = -(-filled // _UNIT) * _UNIT
        _add_scores(scores, query, keys, begin, count)
        for head in range(heads):
            hidden = max(0, first - begin)
            factor, total[head], maximum[head] = _weigh(scores[head], hidden, filled, total[head], maximum[head])
            scores[head, filled:count] = 0.0
            for h in range(width):
                sums[head, h] *= factor
        _add_values(sums, scores, values, begin, count)
        begin += count


_call = ParallelCall("attend_to_cache", kernel(_attend, VECTOR_OPTIONS))


def attend_to_cache(
    queries: jax.Array, keys: jax.Array, values: jax.Array, layer: jax.Array, slots: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array] | None:
    """Attend from one token of each row to some slots of a KV cache.

    Args:
        queries: float32 [r, k, g, h], scaled.
        keys: float32 [r, l, k, h, c].
        values: float32 [r, l, k, c, h].
        layer: int32 [], the index of the layer.
        slots: int32 [r] each, the first slot of each row that its token attends to, and the end of these slots.

    Returns:
        The weighted sums of values [r, k, g, h], not divided by the total weight, which is [r, k, g], and the maximum
        score [r, k, g] that the weights are relative to. Without slots, they are 0, 0 and `_MIN_SCORE`. None if the kernel
        does not compute it, for these dtypes or sizes.
    """
    rows, groups, heads, width = queries.shape
    capacity = keys.shape[4]
    if not queries.dtype == keys.dtype == values.dtype == jnp.float32 or len(keys) != rows:
        return None
    if width % _UNIT or capacity % _UNIT or heads > _MAX_HEADS:
        return None
    sizes = (rows, keys.shape[1], groups, heads, width, capacity)
    per_head = (rows, groups, heads)
    sums, total, maximum = _call(
        rows * groups, sizes, (queries, keys, values, layer, *slots), queries.shape, per_head, per_head
    )
    return sums, total, maximum
