"""Which experts a token is routed to, and the share of each: the forms that families use.

The weight ``router`` [d, e], with ``router_bias`` [e] if there is one, gives a logit for each expert. Nothing here depends
on other tokens: no expert has a capacity, so no token is dropped.

Shape letters: b rows, t position in a row, d width of the residual stream, e experts, k experts of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from birdie_zmq.models.layers import Weights, linear


class Routing(NamedTuple):
    """The experts of each token, int32 [b, t, k], and their shares float32 [b, t, k]."""

    experts: jax.Array
    shares: jax.Array


class Router(Protocol):
    """Chooses the experts of tokens; hashable."""

    def __call__(self, x: jax.Array, weights: Weights) -> Routing:
        """Choose the experts of x [b, t, d]."""
        ...


@dataclass(frozen=True)
class SoftmaxRouter:
    """The most probable experts; their shares are their probabilities (Shazeer et al., 2017, arXiv:1701.06538).

    Attributes:
        chosen: The number of experts of a token.
        normalised: Whether the shares of a token are divided by their sum.
    """

    chosen: int
    normalised: bool

    def __call__(self, x: jax.Array, weights: Weights) -> Routing:
        """Choose the experts of x [b, t, d]."""
        probabilities = jax.nn.softmax(linear(x, weights, "router").astype(jnp.float32), axis=-1)
        shares, experts = jax.lax.top_k(probabilities, self.chosen)
        return Routing(experts, shares / shares.sum(axis=-1, keepdims=True) if self.normalised else shares)
