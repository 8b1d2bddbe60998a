"""Building blocks of all model families, as functions of arrays: norms, linear maps, heads.

Shape letters: b batch, t position, d width of the residual stream, n query heads, k key/value heads, g query heads per
key/value head (n = k * g), h width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from birdie_zmq.models.cpu_kernels.head import multiply_by_head
from birdie_zmq.models.cpu_kernels.layer_weights import LayerWeights

Weights = Mapping[str, jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_fast": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
"""Activation functions, by Hugging Face's names."""


def linear(x: jax.Array, weights: Weights, name: str) -> jax.Array:
    """Apply ``x @ w``, plus the bias if there is one: [..., in] -> [..., out]."""
    y = weights.multiply(x, name) if isinstance(weights, LayerWeights) else x @ weights[name]
    bias = weights.get(f"{name}_bias")
    return y if bias is None else y + _along_last(bias, y)


def _along_last(weight: jax.Array, x: jax.Array) -> jax.Array:
    """Expand a weight [d] or [n, h] to the rank of x [..., d] or [..., n, h], explicitly rather than by rank promotion."""
    return jnp.expand_dims(weight, range(x.ndim - weight.ndim))


@dataclass(frozen=True)
class Norm:
    """A normalisation of the last axis, computed in float32.

    Attributes:
        kind: ``rms`` scales to unit root mean square (Zhang and Sennrich, arXiv:1910.07467) and rounds to the dtype of
            the input before the weight is applied, ``rms_float32`` after it. ``rms_offset`` is the latter with a weight
            that is stored minus one (Gemma). ``layer`` shifts to mean 0 and scales to variance 1 (Ba et al.,
            arXiv:1607.06450), with a bias if there is one.
        epsilon: Added to the mean square.
        weightless: The names of norms that have no weight and are applied nevertheless.
    """

    kind: Literal["rms", "rms_float32", "rms_offset", "layer"]
    epsilon: float
    weightless: tuple[str, ...] = ()

    def __call__(self, x: jax.Array, weights: Weights, name: str) -> jax.Array:
        """Normalise x by the weight of a name; return x as it is if there is no such weight."""
        weight = weights.get(name)
        if weight is None:
            return self.normalise(x).astype(x.dtype) if name in self.weightless else x
        wide = self.normalise(x)
        if self.kind == "rms":
            return wide.astype(x.dtype) * _along_last(weight, x)
        scale = _along_last(weight.astype(jnp.float32), x)
        wide = wide * (1.0 + scale if self.kind == "rms_offset" else scale)
        bias = weights.get(f"{name}_bias")
        if bias is not None:
            wide = wide + _along_last(bias.astype(jnp.float32), x)
        return wide.astype(x.dtype)

    def normalise(self, x: jax.Array) -> jax.Array:
        """Normalise x without a weight, float32."""
        wide = x.astype(jnp.float32)
        if self.kind == "layer":
            wide = wide - wide.mean(axis=-1, keepdims=True)
        return wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)


def scale(x: jax.Array, factor: float) -> jax.Array:
    """Multiply by a number in float32, and round to the dtype of x, as PyTorch does."""
    return x if factor == 1.0 else (x.astype(jnp.float32) * factor).astype(x.dtype)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Split the last axis into heads: [b, t, n * h] -> [b, t, n, h]."""
    return x.reshape(*x.shape[:2], heads, -1)


def unembed(hidden: jax.Array, outer: Weights, *, by_kernel: bool = False) -> jax.Array:
    """Compute float32 logits [..., v] of hidden states [..., d], with the head [d, v] or a tied embedding [v, d].

    Args:
        hidden: The hidden states.
        outer: The weights outside the layers.
        by_kernel: Whether the kernels of `cpu_kernels` compute what they support.
    """
    logits = multiply_by_head(hidden, outer) if by_kernel else None
    if logits is None:
        head = outer["head"] if "head" in outer else outer["embedding"].T
        logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
    bias = outer.get("head_bias")
    return logits if bias is None else logits + _along_last(bias.astype(jnp.float32), logits)


def check_activation(name: str) -> str:
    """Return the name if it is one of `ACTIVATIONS`.

    Raises:
        ValueError: It is not.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return name
