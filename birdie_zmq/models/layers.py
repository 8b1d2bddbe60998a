"""Building blocks of all model families, as plain functions of arrays: norms, linear maps, heads.

Shape letters: b batch, t position, d width of the residual stream, n query heads, k key/value heads, g query heads per
key/value head (n = k * g), h width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

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
    y = x @ weights[name]
    bias = weights.get(f"{name}_bias")
    return y if bias is None else y + _along_last(bias, y)


def _along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Expand a vector [d] to the rank of x [..., d], explicitly rather than by rank promotion."""
    return jnp.expand_dims(vector, range(x.ndim - 1))


def rms_norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    """Scale the last axis to unit root mean square in float32, then by `weight` (Zhang and Sennrich, arXiv:1910.07467)."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return wide.astype(x.dtype) * _along_last(weight, x)


def layer_norm(x: jax.Array, weights: Weights, name: str, epsilon: float) -> jax.Array:
    """Normalise the last axis to mean 0 and variance 1 in float32, then scale and shift (Ba et al., arXiv:1607.06450)."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    scale, shift = (_along_last(weights[key].astype(jnp.float32), x) for key in (name, f"{name}_bias"))
    return (wide * scale + shift).astype(x.dtype)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Split the last axis into heads: [b, t, n * h] -> [b, t, n, h]."""
    return x.reshape(*x.shape[:2], heads, -1)


def heads_first(key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Transpose keys and values [b, t, k, h] to the order of the KV cache, [b, k, t, h]."""
    return key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)


def query_key_value(x: jax.Array, weights: Weights, heads: int, groups: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Project [b, t, d] to queries [b, t, n, h] and keys and values [b, t, k, h], with a matrix for each."""
    query, key, value = (linear(x, weights, name) for name in ("query", "key", "value"))
    return split_heads(query, heads), split_heads(key, groups), split_heads(value, groups)


def gated_feed_forward(x: jax.Array, weights: Weights, activation: str) -> jax.Array:
    """Apply a gated feed-forward layer, [b, t, d] -> [b, t, d] (Shazeer, 2020, arXiv:2002.05202)."""
    gate = ACTIVATIONS[activation](linear(x, weights, "gate"))
    return linear(gate * linear(x, weights, "up"), weights, "down")


def unembed(hidden: jax.Array, outer: Weights) -> jax.Array:
    """Compute float32 logits [..., v] of hidden states [..., d], with the head [d, v] or a tied embedding [v, d]."""
    head = outer["head"] if "head" in outer else outer["embedding"].T
    return jnp.matmul(hidden, head, preferred_element_type=jnp.float32)


def check_activation(name: str) -> str:
    """Return the name if it is one of `ACTIVATIONS`.

    Raises:
        ValueError: It is not.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"the activation {name!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return name
