"""What Gemma 3n and Gemma 4 share: embeddings of each layer's own, and layers that use the keys and values of others.

Each layer adds a gated embedding of the token to the residual stream. The embeddings of all layers are one table
[v, l * p], and the residual stream before the first layer contributes to each of them.

Shape letters: b rows, t position in a row, d width of the residual stream, v vocabulary, l layers, p width of the
embedding of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.families.common import LAYER, Sizes
from birdie_zmq.models.layers import ACTIVATIONS, Norm, Weights, linear
from birdie_zmq.models.weight_map import TensorSpec, embedding_spec, linear_specs, norm_specs


def embed_for_layers(outer: Weights, norm: Norm, tokens: jax.Array, x: jax.Array) -> jax.Array:
    """Return the embeddings [l, b, t, p] that the layers add for tokens [b, t].

    Args:
        outer: The tensors outside of the layers, with those of `per_layer_outer_specs`.
        norm: The norm of what the residual stream contributes.
        tokens: int [b, t].
        x: The residual stream [b, t, d] before the first layer.
    """
    table, width = outer["layer_embedding"], outer["layer_projection_norm"].shape[0]

    def split(y: jax.Array) -> jax.Array:
        return y.reshape(*y.shape[:2], -1, width)

    # The table may lack tokens at the end of the vocabulary, which stand for images and sounds.
    own = split(table[jnp.where(tokens < table.shape[0], tokens, 0)]) * jnp.asarray(width**0.5, x.dtype)
    projected = split(linear(x, outer, "layer_projection")) * jnp.asarray(x.shape[-1] ** -0.5, x.dtype)
    projected = norm(projected, outer, "layer_projection_norm")
    return jnp.moveaxis((projected + own) * jnp.asarray(2**-0.5, x.dtype), 2, 0)


def add_layer_embedding(x: jax.Array, weights: Weights, activation: str, embedding: jax.Array) -> jax.Array:
    """Gate the embedding [b, t, p] of a layer by x [b, t, d], and project it to [b, t, d]."""
    gated = ACTIVATIONS[activation](linear(x, weights, "layer_input_gate")) * embedding
    return linear(gated, weights, "layer_input_projection")


def per_layer_outer_specs(config: ConfigReader, sizes: Sizes, width: int) -> dict[str, TensorSpec]:
    """Return the tensors outside of the layers that embed tokens for each layer, in `width` dimensions."""
    vocab_size = config.integer("vocab_size_per_layer_input")
    require_positive(vocab_size_per_layer_input=vocab_size)
    total = sizes.n_layers * width
    return {
        "layer_embedding": embedding_spec("model.embed_tokens_per_layer.weight", vocab_size, total),
        **linear_specs("model.per_layer_model_projection", sizes.d_model, total, key="layer_projection"),
        **norm_specs("model.per_layer_projection_norm", width, key="layer_projection_norm"),
    }


def per_layer_specs(sizes: Sizes, width: int) -> dict[str, TensorSpec]:
    """Return the tensors of a layer with an embedding of its own in `width` dimensions."""
    return {
        **linear_specs(LAYER + "per_layer_input_gate", sizes.d_model, width, key="layer_input_gate"),
        **linear_specs(LAYER + "per_layer_projection", width, sizes.d_model, key="layer_input_projection"),
        **sizes.norm_specs(layer_input_norm="post_per_layer_input_norm"),
    }


def read_shared_layers(config: ConfigReader, types: Sequence[str]) -> tuple[int | None, ...]:
    """Return for each layer the number of the layer whose keys and values it uses; None if it has its own.

    The last ``num_kv_shared_layers`` layers use those of the last layer before them that has the same type.

    Raises:
        ValueError: There is no such layer.
    """
    count = config.integer("num_kv_shared_layers", 0)
    own = types[: len(types) - count]
    missing = set(types) - set(own)
    if count < 0 or missing:
        raise ValueError(
            f"num_kv_shared_layers={count} is not supported: no layer before the last {count} of {len(types)} layers has "
            f"the type {', '.join(sorted(missing))}"
        )
    last = {kind: number for number, kind in enumerate(own)}
    return (None,) * len(own) + tuple(last[kind] for kind in types[len(own) :])


def unused_tensors(shared: Sequence[int | None]) -> tuple[str, ...]:
    """Return the tensors that checkpoints may have for layers without keys and values of their own."""
    numbers = [number for number, keys_of in enumerate(shared) if keys_of is not None]
    modules = ("k_proj", "v_proj", "k_norm", "v_norm")
    return tuple(f".layers.{number}.self_attn.{module}.weight" for number in numbers for module in modules)
