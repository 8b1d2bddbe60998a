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


@dataclass(frozen=True)
class ChosenSoftmaxRouter:
    """The experts of the largest logits; their shares are the softmax over these logits alone.

    Attributes:
        chosen: The number of experts of a token.
    """

    chosen: int

    def __call__(self, x: jax.Array, weights: Weights) -> Routing:
        """Choose the experts of x [b, t, d]."""
        logits, experts = jax.lax.top_k(linear(x, weights, "router"), self.chosen)
        return Routing(experts, jax.nn.softmax(logits.astype(jnp.float32), axis=-1))


@dataclass(frozen=True)
class ChosenSigmoidRouter:
    """The experts of the largest logits; the share of each is the sigmoid of its logit.

    Attributes:
        chosen: The number of experts of a token.
    """

    chosen: int

    def __call__(self, x: jax.Array, weights: Weights) -> Routing:
        """Choose the experts of x [b, t, d]."""
        logits, experts = jax.lax.top_k(linear(x, weights, "router"), self.chosen)
        return Routing(experts, jax.nn.sigmoid(logits.astype(jnp.float32)))


@dataclass(frozen=True)
class GroupedSigmoidRouter:
    """The experts of the largest scores in the best groups of experts (DeepSeek-AI, 2024, arXiv:2412.19437).

    The score of an expert is the sigmoid of its logit, in float32. Experts are chosen by the score plus a correction, the
    weight ``router_correction`` [e]; the score of a group is the sum of its two best. The share of an expert is its score
    without the correction.

    Attributes:
        chosen: The number of experts of a token.
        groups: The number of groups, of equally many experts.
        kept_groups: The number of groups from which a token's experts come.
        normalised: Whether the shares of a token are divided by their sum.
        scale: The factor of the shares.
    """

    chosen: int
    groups: int
    kept_groups: int
    normalised: bool
    scale: float

    def __call__(self, x: jax.Array, weights: Weights) -> Routing:
        """Choose the experts of x [b, t, d]."""
        scores = jax.nn.sigmoid(x.astype(jnp.float32) @ weights["router"].astype(jnp.float32))
        corrected = scores + weights["router_correction"].astype(jnp.float32)[None, None]
        grouped = corrected.reshape(*corrected.shape[:2], self.groups, -1)
        best_two, _ = jax.lax.top_k(grouped, 2)
        _, kept = jax.lax.top_k(best_two.sum(axis=-1), self.kept_groups)
        is_kept = (kept[..., None] == jnp.arange(self.groups, dtype=kept.dtype)[None, None, None]).any(axis=2)
        allowed = jnp.where(is_kept[..., None], grouped, -jnp.inf).reshape(corrected.shape)
        _, experts = jax.lax.top_k(allowed, self.chosen)
        shares = jnp.take_along_axis(scores, experts, axis=-1)
        if self.normalised:
            shares = shares / (shares.sum(axis=-1, keepdims=True) + 1e-20)
        return Routing(experts, shares * self.scale)
