"""A linear recurrence ``h_t = a_t h_(t-1) + x_t`` of each channel over the tokens of a step, as an associative scan.

Two steps of the recurrence are one step of another, so all tokens take a number of passes that grows with the logarithm of
their number (Blelloch, 1990).

Shape letters: b rows, t position in a row, c channels.
"""

from __future__ import annotations

import jax


def linear_scan(factors: jax.Array, inputs: jax.Array, state: jax.Array) -> jax.Array:
    """Return h [b, t, c] of factors a and inputs x [b, t, c] after a state [b, c], all of one dtype.

    A token with the factor 1 and the input 0 leaves the state as it was, to the bit.
    """
    inputs = inputs.at[:, 0].add(factors[:, 0] * state)
    if inputs.shape[1] == 1:
        return inputs

    def then(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return first[0] * second[0], second[0] * first[1] + second[1]

    scanned: tuple[jax.Array, jax.Array] = jax.lax.associative_scan(then, (factors, inputs), axis=1)
    return scanned[1]
