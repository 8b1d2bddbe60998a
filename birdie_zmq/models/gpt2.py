"""GPT-2: learned positions, layer norms, biases in every layer (Radford et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from birdie_zmq.models import layers
from birdie_zmq.models.attention import AttentionMetadata, AttentionOptions, attention
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.weight_map import (
    BackboneOutput,
    Params,
    TensorSpec,
    WeightMap,
    bias_spec,
    column_parallel,
    embedding_spec,
    head_spec,
    row_parallel,
)


@dataclass(frozen=True)
class Gpt2:
    """A decoder of the GPT-2 family.

    Attributes:
        max_length: Number of learned positions, and so the maximum length of a text.
        scaled_scores: Whether attention scores are divided by the square root of the head's width.
        scaled_by_layer: Whether they are also divided by the layer's number, counted from 1.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_length: int
    norm_epsilon: float
    activation: str
    tied_head: bool
    scaled_scores: bool
    scaled_by_layer: bool

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any]) -> Self:
        """Read a configuration of model_type gpt2.

        Args:
            values: All keys, as `birdie_zmq.models.config` returns them.

        Raises:
            ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
        """
        config = ConfigReader(values)
        config.require("add_cross_attention", (False,))
        d_model, n_heads, n_layers = config.integer("n_embd"), config.integer("n_head"), config.integer("n_layer")
        require_positive(n_embd=d_model, n_head=n_heads, n_layer=n_layers)
        if d_model % n_heads:
            raise ValueError(f"n_embd {d_model} is not a multiple of n_head {n_heads}")
        return cls(
            vocab_size=config.integer("vocab_size"),
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            d_ff=config.integer("n_inner", 4 * d_model),
            max_length=config.integer("n_positions"),
            norm_epsilon=config.number("layer_norm_epsilon"),
            activation=layers.check_activation(config.text("activation_function")),
            tied_head=config.flag("tie_word_embeddings", True),
            scaled_scores=config.flag("scale_attn_weights", True),
            scaled_by_layer=config.flag("scale_attn_by_inverse_layer_idx", False),
        )

    @property
    def position_limit(self) -> int:
        """The number of learned positions."""
        return self.max_length

    def weight_map(self) -> WeightMap:
        """Return the tensors of a Hugging Face checkpoint, whose layers store matrices as [in, out]."""
        d, f = self.d_model, self.d_ff
        layer = "transformer.h.{}."
        by_head = column_parallel(self.n_heads)
        layers = {
            "attention_norm": TensorSpec(layer + "ln_1.weight", (d,)),
            "attention_norm_bias": TensorSpec(layer + "ln_1.bias", (d,)),
            # Queries, keys and values are concatenated: a shard does not have whole heads, so devices exchange them.
            "query_key_value": TensorSpec(layer + "attn.c_attn.weight", (d, 3 * d), shard=by_head),
            "query_key_value_bias": bias_spec(layer + "attn.c_attn.bias", 3 * d, by_head),
            "output": TensorSpec(layer + "attn.c_proj.weight", (d, d), shard=row_parallel(self.n_heads)),
            "output_bias": TensorSpec(layer + "attn.c_proj.bias", (d,)),
            "feed_forward_norm": TensorSpec(layer + "ln_2.weight", (d,)),
            "feed_forward_norm_bias": TensorSpec(layer + "ln_2.bias", (d,)),
            "up": TensorSpec(layer + "mlp.c_fc.weight", (d, f), shard=column_parallel(f)),
            "up_bias": bias_spec(layer + "mlp.c_fc.bias", f, column_parallel(f)),
            "down": TensorSpec(layer + "mlp.c_proj.weight", (f, d), shard=row_parallel(f)),
            "down_bias": TensorSpec(layer + "mlp.c_proj.bias", (d,)),
        }
        outer = {
            "embedding": embedding_spec("transformer.wte.weight", self.vocab_size, d),
            "positions": TensorSpec("transformer.wpe.weight", (self.max_length, d)),
            "final_norm": TensorSpec("transformer.ln_f.weight", (d,)),
            "final_norm_bias": TensorSpec("transformer.ln_f.bias", (d,)),
        }
        if not self.tied_head:
            outer["head"] = head_spec("lm_head.weight", self.vocab_size, d)
        redundant = (".attn.bias", ".attn.masked_bias")
        tied_head = "lm_head.weight" if self.tied_head else None
        return WeightMap(outer, layers, self.n_layers, "transformer.", redundant, tied_head)

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Number of layers, number of key/value heads and width of a head."""
        return self.n_layers, self.n_heads, self.d_model // self.n_heads

    def backbone(self, params: Params, tokens: jax.Array, metadata: AttentionMetadata) -> BackboneOutput:
        """Compute normalised final hidden states of int [b, t], and the keys and values of every layer.

        Raises:
            ValueError: A row has more tokens than there are learned positions.
        """
        length = tokens.shape[1]
        if metadata.ends is None and length > self.max_length:
            raise ValueError(
                f"{length} tokens exceed the {self.max_length} learned positions of this GPT-2; lower max_length"
            )
        activate = layers.ACTIVATIONS[self.activation]
        scale = (self.d_model // self.n_heads) ** -0.5 if self.scaled_scores else 1.0
        scales = jnp.full((self.n_layers,), scale, jnp.float32)
        if self.scaled_by_layer:
            scales = scales / jnp.arange(1, self.n_layers + 1, dtype=jnp.float32)

        def layer(
            x: jax.Array, scanned: tuple[jax.Array, dict[str, jax.Array], jax.Array]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            number, w, scale = scanned
            y = layers.linear(layers.layer_norm(x, w, "attention_norm", self.norm_epsilon), w, "query_key_value")
            query, key, value = (layers.split_heads(part, self.n_heads) for part in jnp.split(y, 3, axis=-1))
            x = x + layers.linear(attention(query, key, value, metadata, number, AttentionOptions(scale)), w, "output")
            y = layers.linear(layers.layer_norm(x, w, "feed_forward_norm", self.norm_epsilon), w, "up")
            return x + layers.linear(activate(y), w, "down"), layers.heads_first(key, value)

        x = params.outer["embedding"][tokens] + params.outer["positions"][metadata.positions]
        numbers = jnp.arange(self.n_layers, dtype=jnp.int32)
        x, (keys, values) = jax.lax.scan(layer, x, (numbers, params.layers, scales))
        return BackboneOutput(layers.layer_norm(x, params.outer, "final_norm", self.norm_epsilon), keys, values)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Compute float32 logits [..., v] of hidden states [..., d]."""
        return layers.unembed(hidden, params.outer)
