"""JAX's random numbers in NumPy: Threefry-2x32 (Salmon et al., 2011), as ``jax.random`` with ``threefry_partitionable`` uses it.

The same keys then give the same samples in every engine. Shape letters: n numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_TINY = np.finfo(np.float32).tiny


def gumbel(key: int, number: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the Gumbel noise float32[n] of some tokens for a key of at most 64 bits and a number of sampled tokens.

    Equals ``-log(-log(u))`` for ``u = jax.random.uniform(jax.random.fold_in(key, number), …)`` at these indices int64[n],
    but for rounding.
    """
    first, second = threefry(_words(key >> 32, key & 0xFFFFFFFF), np.zeros(1, np.uint32), _word(number)[None])
    high, low = threefry(np.concatenate([first, second]), _word(indices >> 32), _word(indices & 0xFFFFFFFF))
    mantissa = ((high ^ low) >> np.uint32(9)) | np.uint32(0x3F800000)
    uniform = np.maximum(mantissa.view(np.float32) - np.float32(1), _TINY)
    noise: npt.NDArray[np.float32] = -np.log(-np.log(uniform))
    return noise


def threefry(key: Words, high: Words, low: Words) -> tuple[Words, Words]:
    """Return the 20 rounds of Threefry-2x32 of counters, given as words uint32[n] each, with a key uint32[2]."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    with np.errstate(over="ignore"):
        x, y = high + keys[0], low + keys[1]
        for group in range(5):
            for rotation in _ROTATIONS[group % 2]:
                x = x + y
                y = ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))) ^ x
            x = x + keys[(group + 1) % 3]
            y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _word(value: npt.ArrayLike) -> Words:
    return np.asarray(value).astype(np.uint32)


def _words(*values: int) -> Words:
    return np.array(values, np.uint32)
