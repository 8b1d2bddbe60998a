"""A feed-forward layer of many experts; each token uses a few of them.

The weights of the experts are ``experts_gate`` and ``experts_up`` [e, d, f], or ``experts_gate_up`` [e, d, 2f] in place of
both, and ``experts_down`` [e, f, d], each with a bias if there is one, such as ``experts_down_bias`` [e, d]. Experts that
every token uses are one feed-forward layer of the weights ``shared_gate``, ``shared_up`` and ``shared_down``; with
``shared_router`` [d, 1] it has a share of its own.

On a mesh, each device computes its part of the experts for the rows of its group, and the parts are summed: the inner
dimension of every expert is divided, so devices have equal work whatever is routed where. Experts that one tensor of the
file holds together, or that have biases, are divided among the devices instead.

Shape letters: b rows, t position in a row, d width of the residual stream, e experts, f width of an expert, k experts of
a token, l layers of a stack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from birdie_zmq.models.decoder_layer import FeedForward, LayerStep
from birdie_zmq.models.grouped import ExpertWeights, GroupedProducts, Product
from birdie_zmq.models.layers import ACTIVATIONS, Weights, linear
from birdie_zmq.models.routing import Router, Routing
from birdie_zmq.models.sharding import MODEL_AXIS, row_axis, tensor_shardings
from birdie_zmq.models.weight_map import TensorSpec

_OwnExperts = tuple[dict[str, jax.Array], jax.Array]
"""The fields of `ExpertWeights`, as a pytree whose shardings can be given as one of specs."""


@dataclass(frozen=True)
class RoutedFeedForward:
    """A feed-forward layer of experts.

    Attributes:
        router: What chooses the experts of a token.
        experts: The number of experts.
        activation: The activation of the gate.
        specs: The tensors of the experts, by parameter name.
    """

    router: Router
    experts: int
    activation: str
    specs: Mapping[str, TensorSpec] = field(hash=False)

    @property
    def unsliced(self) -> frozenset[str]:
        """The names of the weights that the layer takes whole, for all layers of its stack."""
        return frozenset(self.specs)

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> jax.Array:
        """Apply the layer, [b, t, d] -> [b, t, d]; padding reaches no expert, and gets zeros from them."""
        real = jnp.ones(x.shape[:2], bool) if step.metadata.real is None else step.metadata.real
        routers = {name: weight for name, weight in weights.items() if name.startswith("router")}
        own = ExpertWeights({name: weights[name] for name in self.specs}, step.place)
        target = step.metadata.target
        apply: Callable[..., jax.Array] = functools.partial(self._apply, target.platform)
        if target.mesh is not None:
            apply = self._on_mesh(apply, len(x), routers, target.mesh)
        y = apply(x, real, routers, (dict(own.arrays), own.layer))
        return y + self._shared(x, weights, step) if "shared_down" in weights else y

    def expert(self, x: jax.Array, product: Product) -> jax.Array:
        """Compute one expert, [rows, d] -> [rows, d]."""
        if "experts_gate_up" in self.specs:
            gate, up = jnp.split(product(x, "experts_gate_up"), 2, axis=-1)
        else:
            gate, up = product(x, "experts_gate"), product(x, "experts_up")
        return product(ACTIVATIONS[self.activation](gate) * up, "experts_down")

    def mix(self, x: jax.Array, routing: Routing, weights: ExpertWeights, platform: str) -> jax.Array:
        """Add the outputs of each token's experts by their shares: [b, t, d] -> float32 [b, t, d]."""
        chosen, grouped = routing.experts.shape[-1], GroupedProducts(weights, self.expert, platform)
        y = grouped(x.reshape(-1, 1, x.shape[-1]), routing.experts.reshape(-1, chosen))
        return (y.astype(jnp.float32) * routing.shares.reshape(-1, chosen, 1)).sum(axis=1).reshape(x.shape)

    def _shared(self, x: jax.Array, weights: Weights, step: LayerStep) -> jax.Array:
        shared = {
            name.removeprefix("shared_"): weight for name, weight in weights.items() if name.startswith("shared_")
        }
        y = FeedForward(self.activation)(x, shared, step)
        return jax.nn.sigmoid(linear(x, weights, "shared_router")) * y if "shared_router" in weights else y

    def _apply(self, platform: str, x: jax.Array, real: jax.Array, routers: Weights, own: _OwnExperts) -> jax.Array:
        """Apply the experts, or the parts of them, that this device has to x [b, t, d]."""
        weights, (experts, shares) = ExpertWeights(*own), self.router(x, routers)
        experts = jnp.where(real[..., None], experts, self.experts)
        if weights.experts < self.experts:
            experts = experts - jax.lax.axis_index(MODEL_AXIS) * weights.experts
            experts = jnp.where((experts >= 0) & (experts < weights.experts), experts, weights.experts)
        return self.mix(x, Routing(experts, shares), weights, platform).astype(x.dtype)

    def _on_mesh(
        self, apply: Callable[..., jax.Array], batch: int, routers: Weights, mesh: Mesh
    ) -> Callable[..., jax.Array]:
        """Return the function `apply` for a batch of rows on a mesh."""
        parts = {name: tensor_shardings(spec, mesh).stacked.spec for name, spec in self.specs.items()}
        is_divided = any(MODEL_AXIS in part for part in parts.values())

        def local(*arguments: Any) -> jax.Array:
            y = apply(*arguments)
            if is_divided:
                y = jax.lax.psum(y, MODEL_AXIS)  # type: ignore[no-untyped-call]
            return y

        rows = PartitionSpec(row_axis(batch, mesh))  # type: ignore[no-untyped-call]
        whole = PartitionSpec()  # type: ignore[no-untyped-call]
        in_specs = (rows, rows, dict.fromkeys(routers, whole), (parts, whole))
        # Whether a result is replicated cannot be inferred through loops of unknown length.
        return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=rows, check_vma=False)
