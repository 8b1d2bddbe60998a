"""GPT-NeoX, the architecture of Pythia: parallel sub-layers, partly rotated heads (Black et al., arXiv:2204.06745)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from birdie_zmq.models import layers
from birdie_zmq.models.attention import AttentionMetadata, AttentionOptions, attention
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.rope import Rope, read_rope, rotate
from birdie_zmq.models.weight_map import (
    BackboneOutput,
    Params,
    TensorSpec,
    WeightMap,
    bias_spec,
    column_parallel,
    embedding_spec,
    head_spec,
    linear_spec,
    row_parallel,
)


@dataclass(frozen=True)
class GptNeoX:
    """A decoder of the GPT-NeoX family.

    Attributes:
        parallel: Whether attention and feed-forward layer both take the layer's input.
        rope: Rotary embedding of the first dimensions of each head.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_length: int
    norm_epsilon: float
    activation: str
    attention_bias: bool
    tied_head: bool
    parallel: bool
    rope: Rope

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any]) -> Self:
        """Read a configuration of model_type gpt_neox.

        Args:
            values: All keys, as `birdie_zmq.models.config` returns them.

        Raises:
            ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
        """
        config = ConfigReader(values)
        d_model, n_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        require_positive(
            hidden_size=d_model, num_attention_heads=n_heads, num_hidden_layers=config.integer("num_hidden_layers")
        )
        if d_model % n_heads:
            raise ValueError(f"hidden_size {d_model} is not a multiple of num_attention_heads {n_heads}")
        return cls(
            vocab_size=config.integer("vocab_size"),
            d_model=d_model,
            n_layers=config.integer("num_hidden_layers"),
            n_heads=n_heads,
            d_ff=config.integer("intermediate_size"),
            max_length=config.integer("max_position_embeddings"),
            norm_epsilon=config.number("layer_norm_eps"),
            activation=layers.check_activation(config.text("hidden_act")),
            attention_bias=config.flag("attention_bias", True),
            tied_head=config.flag("tie_word_embeddings", False),
            parallel=config.flag("use_parallel_residual", True),
            rope=read_rope(config, d_model // n_heads, partial=True),
        )

    @property
    def position_limit(self) -> int | None:
        """The number of positions that the rotary embedding supports; None for any number."""
        return self.rope.position_limit

    def weight_map(self) -> WeightMap:
        """Return the tensors of a Hugging Face checkpoint."""
        d, f = self.d_model, self.d_ff
        layer = "gpt_neox.layers.{}."
        by_head, by_inner = column_parallel(self.n_heads), column_parallel(f)
        layers = {
            "attention_norm": TensorSpec(layer + "input_layernorm.weight", (d,)),
            "attention_norm_bias": TensorSpec(layer + "input_layernorm.bias", (d,)),
            "query_key_value": linear_spec(layer + "attention.query_key_value.weight", d, 3 * d, by_head),
            "output": linear_spec(layer + "attention.dense.weight", d, d, row_parallel(self.n_heads)),
            "feed_forward_norm": TensorSpec(layer + "post_attention_layernorm.weight", (d,)),
            "feed_forward_norm_bias": TensorSpec(layer + "post_attention_layernorm.bias", (d,)),
            "up": linear_spec(layer + "mlp.dense_h_to_4h.weight", d, f, by_inner),
            "up_bias": bias_spec(layer + "mlp.dense_h_to_4h.bias", f, by_inner),
            "down": linear_spec(layer + "mlp.dense_4h_to_h.weight", f, d, row_parallel(f)),
            "down_bias": TensorSpec(layer + "mlp.dense_4h_to_h.bias", (d,)),
        }
        if self.attention_bias:
            layers["query_key_value_bias"] = bias_spec(layer + "attention.query_key_value.bias", 3 * d, by_head)
            layers["output_bias"] = TensorSpec(layer + "attention.dense.bias", (d,))
        outer = {
            "embedding": embedding_spec("gpt_neox.embed_in.weight", self.vocab_size, d),
            "final_norm": TensorSpec("gpt_neox.final_layer_norm.weight", (d,)),
            "final_norm_bias": TensorSpec("gpt_neox.final_layer_norm.bias", (d,)),
        }
        if not self.tied_head:
            outer["head"] = head_spec("embed_out.weight", self.vocab_size, d)
        redundant = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
        tied_head = "embed_out.weight" if self.tied_head else None
        return WeightMap(outer, layers, self.n_layers, "gpt_neox.", redundant, tied_head)

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Number of layers, number of key/value heads and width of a head."""
        return self.n_layers, self.n_heads, self.d_model // self.n_heads

    def backbone(self, params: Params, tokens: jax.Array, metadata: AttentionMetadata) -> BackboneOutput:
        """Compute normalised final hidden states of int [b, t], and the keys and values of every layer."""
        tables = self.rope.tables(metadata.positions)
        activate = layers.ACTIVATIONS[self.activation]
        width = self.d_model // self.n_heads

        def layer(
            x: jax.Array, scanned: tuple[jax.Array, dict[str, jax.Array]]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            number, w = scanned
            y = layers.layer_norm(x, w, "attention_norm", self.norm_epsilon)
            # The outputs of the matrix are the query, key and value of each head in turn.
            heads = layers.split_heads(layers.linear(y, w, "query_key_value"), self.n_heads)
            query, key, value = (heads[..., i * width : (i + 1) * width] for i in range(3))
            query, key = rotate(query, tables), rotate(key, tables)
            y = attention(query, key, value, metadata, number, AttentionOptions(width**-0.5))
            attended = x + layers.linear(y, w, "output")
            y = x if self.parallel else attended
            y = layers.linear(layers.layer_norm(y, w, "feed_forward_norm", self.norm_epsilon), w, "up")
            return attended + layers.linear(activate(y), w, "down"), layers.heads_first(key, value)

        numbers = jnp.arange(self.n_layers, dtype=jnp.int32)
        x, (keys, values) = jax.lax.scan(layer, params.outer["embedding"][tokens], (numbers, params.layers))
        return BackboneOutput(layers.layer_norm(x, params.outer, "final_norm", self.norm_epsilon), keys, values)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Compute float32 logits [..., v] of hidden states [..., d]."""
        return layers.unembed(hidden, params.outer)
