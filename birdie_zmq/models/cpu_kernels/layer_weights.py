"""The weights of one layer, with the stacks that hold them."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from birdie_zmq.models import cpu_kernels


class LayerWeights(dict[str, jax.Array]):
    """The weights of a layer by name, whose products with single tokens are computed from the stacks of all layers.

    A slice of a stack that nothing else uses is not computed.

    Args:
        weights: The weights.
        stacks: The stacks [l, ...] by the same names.
        layer: int32 [], the index of the layer in them.
    """

    def __init__(self, weights: Mapping[str, jax.Array], stacks: Mapping[str, jax.Array], layer: jax.Array) -> None:
        super().__init__(weights)
        self._stacks = stacks
        self._layer = layer

    def multiply(self, x: jax.Array, name: str) -> jax.Array:
        """Return ``x @ weights[name]``, [..., in] -> [..., out]."""
        kernels = cpu_kernels.load() if x.ndim == 3 and x.shape[1] == 1 else None
        if kernels is not None:
            product = kernels.multiply_by_layer(x[:, 0], self._stacks[name], self._layer)
            if product is not None:
                return product[:, None]
        return x @ self[name]
