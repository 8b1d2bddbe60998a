"""GPT-NeoX, the architecture of Pythia: parallel sub-layers and partly rotated heads (Black et al., arXiv:2204.06745)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from birdie_zmq.models import layers
from birdie_zmq.models.attention import Reading, attention
from birdie_zmq.models.config_fields import Fields, positive
from birdie_zmq.models.rope import Rope, read_rope, rotate
from birdie_zmq.models.weight_map import (
    Layout,
    Params,
    Read,
    TensorSpec,
    bias_of,
    by_inputs,
    by_outputs,
    embedding_of,
    head_of,
    linear,
)


@dataclass(frozen=True)
class GptNeoX:
    """A GPT-NeoX.

    Attributes:
        parallel: Whether attention and feed-forward layer both read the layer's input.
        rope: How the first dimensions of a head are turned.
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
        """Read a ``config.json`` of model_type gpt_neox.

        Raises:
            ValueError: A size is missing or of the wrong type, or the file asks for what is not computed here.
        """
        config = Fields(values)
        d_model, n_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        positive(
            hidden_size=d_model, num_attention_heads=n_heads, num_hidden_layers=config.integer("num_hidden_layers")
        )
        if d_model % n_heads:
            raise ValueError(f"hidden_size {d_model} is not a multiple of num_attention_heads {n_heads}")
        share = config.record("rope_parameters").number("partial_rotary_factor", config.number("rotary_pct", 0.25))
        width = int(d_model // n_heads * share)
        return cls(
            vocab_size=config.integer("vocab_size"),
            d_model=d_model,
            n_layers=config.integer("num_hidden_layers"),
            n_heads=n_heads,
            d_ff=config.integer("intermediate_size"),
            max_length=config.integer("max_position_embeddings"),
            norm_epsilon=config.number("layer_norm_eps", 1e-5),
            activation=layers.check_activation(config.text("hidden_act", "gelu")),
            attention_bias=config.flag("attention_bias", True),
            tied_head=config.flag("tie_word_embeddings", False),
            parallel=config.flag("use_parallel_residual", True),
            rope=read_rope(config, width, theta=config.number("rotary_emb_base", 10_000.0)),
        )

    def layout(self) -> Layout:
        """The tensors of a Hugging Face checkpoint."""
        d, f = self.d_model, self.d_ff
        layer = "gpt_neox.layers.{}."
        of_heads, of_inner = by_outputs(self.n_heads), by_outputs(f)
        layers = {
            "attention_norm": TensorSpec(layer + "input_layernorm.weight", (d,)),
            "attention_norm_bias": TensorSpec(layer + "input_layernorm.bias", (d,)),
            "query_key_value": linear(layer + "attention.query_key_value.weight", d, 3 * d, of_heads),
            "output": linear(layer + "attention.dense.weight", d, d, by_inputs(self.n_heads)),
            "feed_forward_norm": TensorSpec(layer + "post_attention_layernorm.weight", (d,)),
            "feed_forward_norm_bias": TensorSpec(layer + "post_attention_layernorm.bias", (d,)),
            "up": linear(layer + "mlp.dense_h_to_4h.weight", d, f, of_inner),
            "up_bias": bias_of(layer + "mlp.dense_h_to_4h.bias", f, of_inner),
            "down": linear(layer + "mlp.dense_4h_to_h.weight", f, d, by_inputs(f)),
            "down_bias": TensorSpec(layer + "mlp.dense_4h_to_h.bias", (d,)),
        }
        if self.attention_bias:
            layers["query_key_value_bias"] = bias_of(layer + "attention.query_key_value.bias", 3 * d, of_heads)
            layers["output_bias"] = TensorSpec(layer + "attention.dense.bias", (d,))
        outer = {
            "embedding": embedding_of("gpt_neox.embed_in.weight", self.vocab_size, d),
            "final_norm": TensorSpec("gpt_neox.final_layer_norm.weight", (d,)),
            "final_norm_bias": TensorSpec("gpt_neox.final_layer_norm.bias", (d,)),
        }
        if not self.tied_head:
            outer["head"] = head_of("embed_out.weight", self.vocab_size, d)
        redundant = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
        return Layout(outer, layers, self.n_layers, "gpt_neox.", redundant + ("embed_out.weight",) * self.tied_head)

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Layers, key/value heads, and the width of a head."""
        return self.n_layers, self.n_heads, self.d_model // self.n_heads

    def backbone(self, params: Params, tokens: jax.Array, reading: Reading) -> Read:
        """Normalised final hidden states of int [b, t], and the keys and values of every layer."""
        tables = self.rope.tables(reading.positions)
        activate = layers.ACTIVATIONS[self.activation]
        width = self.d_model // self.n_heads

        def layer(
            x: jax.Array, scanned: tuple[jax.Array, dict[str, jax.Array]]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            number, w = scanned
            y = layers.layer_norm(x, w, "attention_norm", self.norm_epsilon)
            # One matrix gives, head by head, query, key and value one after another.
            heads = layers.split_heads(layers.linear(y, w, "query_key_value"), self.n_heads)
            query, key, value = (heads[..., i * width : (i + 1) * width] for i in range(3))
            query, key = rotate(query, tables), rotate(key, tables)
            y = attention(query, key, value, reading, number, scale=width**-0.5)
            attended = x + layers.linear(y, w, "output")
            y = x if self.parallel else attended
            y = layers.linear(layers.layer_norm(y, w, "feed_forward_norm", self.norm_epsilon), w, "up")
            return attended + layers.linear(activate(y), w, "down"), layers.heads_first(key, value)

        numbers = jnp.arange(self.n_layers, dtype=jnp.int32)
        x, (keys, values) = jax.lax.scan(layer, params.outer["embedding"][tokens], (numbers, params.layers))
        return Read(layers.layer_norm(x, params.outer, "final_norm", self.norm_epsilon), keys, values)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., v] of hidden states [..., d]."""
        return layers.unembed(hidden, params.outer)
