"""Gemma 2 and Gemma 3 (text).

Differences from Llama: embeddings are scaled by sqrt(d), norms multiply by 1 + weight, each sub-layer has a norm after
it as well as before it, and sliding-window layers alternate with full-attention layers. Gemma 2 caps scores and logits
by tanh. Gemma 3 normalises queries and keys and has two RoPE bases. Gemma Team, 2024, arXiv:2408.00118; 2025,
arXiv:2503.19786.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from birdie_zmq.models import layers
from birdie_zmq.models.attention import NO_WINDOW, AttentionMetadata, AttentionOptions, attention
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.llama import windows_from_layer_types
from birdie_zmq.models.rope import Rope, read_rope, rotate
from birdie_zmq.models.weight_map import (
    BackboneOutput,
    Params,
    TensorSpec,
    WeightMap,
    embedding_spec,
    gated_layer_specs,
    head_spec,
)


@dataclass(frozen=True)
class Gemma:
    """A decoder of the Gemma family.

    Attributes:
        windows: Attention window of each layer in positions; empty if every layer has full attention.
        query_scalar: Attention scores are divided by its square root.
        score_cap: Bound of the attention scores, None for none.
        logit_cap: Bound of the logits, None for none.
        rope: Rotary embedding of full-attention layers, and in Gemma 2 of all layers.
        window_rope: Rotary embedding of sliding-window layers.
        query_key_norm: Whether queries and keys are normalised (Gemma 3).
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    d_ff: int
    max_length: int
    norm_epsilon: float
    activation: str
    attention_bias: bool
    tied_head: bool
    query_scalar: float
    score_cap: float | None
    logit_cap: float | None
    windows: tuple[int, ...]
    rope: Rope
    window_rope: Rope
    query_key_norm: bool

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any]) -> Self:
        """Read a configuration of model_type gemma2 or gemma3_text.

        Args:
            values: All keys, as `birdie_zmq.models.config` returns them.

        Raises:
            ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
        """
        config = ConfigReader(values)
        config.require("use_bidirectional_attention", (False,))
        is_gemma3 = config.text("model_type") == "gemma3_text"
        n_layers = config.integer("num_hidden_layers")
        n_heads, n_kv_heads = config.integer("num_attention_heads"), config.integer("num_key_value_heads")
        head_width = config.integer("head_dim")
        require_positive(num_hidden_layers=n_layers, num_attention_heads=n_heads, num_key_value_heads=n_kv_heads)
        if n_heads % n_kv_heads:
            raise ValueError(f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}")
        rope = read_rope(config, head_width, section="full_attention" if is_gemma3 else None)
        return cls(
            vocab_size=config.integer("vocab_size"),
            d_model=config.integer("hidden_size"),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_width=head_width,
            d_ff=config.integer("intermediate_size"),
            max_length=config.integer("max_position_embeddings"),
            norm_epsilon=config.number("rms_norm_eps"),
            activation=layers.check_activation(config.text("hidden_activation")),
            attention_bias=config.flag("attention_bias", False),
            tied_head=config.flag("tie_word_embeddings", True),
            query_scalar=config.number("query_pre_attn_scalar"),
            score_cap=config.optional_number("attn_logit_softcapping"),
            logit_cap=config.optional_number("final_logit_softcapping"),
            windows=windows_from_layer_types(
                config.texts("layer_types", n_layers), config.optional_integer("sliding_window")
            ),
            rope=rope,
            window_rope=read_rope(config, head_width, section="sliding_attention") if is_gemma3 else rope,
            query_key_norm=is_gemma3,
        )

    @property
    def position_limit(self) -> int | None:
        """The number of positions that the rotary embedding supports; None for any number."""
        limits = [rope.position_limit for rope in (self.rope, self.window_rope) if rope.position_limit is not None]
        return min(limits, default=None)

    def weight_map(self) -> WeightMap:
        """Return the tensors of a Hugging Face checkpoint."""
        d, f = self.d_model, self.d_ff
        layer = "model.layers.{}."
        biased = ("query", "key", "value", "output") if self.attention_bias else ()
        layers = gated_layer_specs(layer, d, (self.n_heads, self.n_kv_heads), self.head_width, f, biased) | {
            "attention_norm": TensorSpec(layer + "input_layernorm.weight", (d,)),
            "after_attention_norm": TensorSpec(layer + "post_attention_layernorm.weight", (d,)),
            "feed_forward_norm": TensorSpec(layer + "pre_feedforward_layernorm.weight", (d,)),
            "after_feed_forward_norm": TensorSpec(layer + "post_feedforward_layernorm.weight", (d,)),
        }
        if self.query_key_norm:
            layers["query_norm"] = TensorSpec(layer + "self_attn.q_norm.weight", (self.head_width,))
            layers["key_norm"] = TensorSpec(layer + "self_attn.k_norm.weight", (self.head_width,))
        outer = {
            "embedding": embedding_spec("model.embed_tokens.weight", self.vocab_size, d),
            "final_norm": TensorSpec("model.norm.weight", (d,)),
        }
        if not self.tied_head:
            outer["head"] = head_spec("lm_head.weight", self.vocab_size, d)
        tied_head = "lm_head.weight" if self.tied_head else None
        return WeightMap(outer, layers, self.n_layers, "model.", (".rotary_emb.inv_freq",), tied_head)

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Number of layers, number of key/value heads and width of a head."""
        return self.n_layers, self.n_kv_heads, self.head_width

    def backbone(self, params: Params, tokens: jax.Array, metadata: AttentionMetadata) -> BackboneOutput:
        """Compute normalised final hidden states of int [b, t], and the keys and values of every layer."""
        full, windowed = self.rope.tables(metadata.positions), self.window_rope.tables(metadata.positions)
        windows = jnp.asarray(np.array(self.windows or (NO_WINDOW,) * self.n_layers, np.int32))

        def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
            # Weights are stored minus one. The product is rounded once, after the scale (Llama rounds before it).
            wide = layers.rms_norm(x.astype(jnp.float32), 1.0 + weight.astype(jnp.float32), self.norm_epsilon)
            return wide.astype(x.dtype)

        def layer(
            x: jax.Array, scanned: tuple[jax.Array, dict[str, jax.Array], jax.Array]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            number, w, window = scanned
            y = norm(x, w["attention_norm"])
            query, key, value = layers.query_key_value(y, w, self.n_heads, self.n_kv_heads)
            if self.query_key_norm:
                query, key = norm(query, w["query_norm"]), norm(key, w["key_norm"])
            is_full = window == NO_WINDOW
            cos, sin = (jnp.where(is_full, *tables) for tables in zip(full, windowed, strict=True))
            query, key = rotate(query, (cos, sin)), rotate(key, (cos, sin))
            scale = self.query_scalar**-0.5
            y = attention(query, key, value, metadata, number, AttentionOptions(scale, window, self.score_cap))
            x = x + norm(layers.linear(y, w, "output"), w["after_attention_norm"])
            y = norm(x, w["feed_forward_norm"])
            y = layers.gated_feed_forward(y, w, self.activation)
            return x + norm(y, w["after_feed_forward_norm"]), layers.heads_first(key, value)

        embedding = params.outer["embedding"]
        # The factor is rounded to the dtype of the weights, as the models were trained with it.
        x = embedding[tokens] * jnp.asarray(self.d_model**0.5, embedding.dtype)
        numbers = jnp.arange(self.n_layers, dtype=jnp.int32)
        x, (keys, values) = jax.lax.scan(layer, x, (numbers, params.layers, windows))
        return BackboneOutput(norm(x, params.outer["final_norm"]), keys, values)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Compute float32 logits [..., v] of hidden states [..., d]."""
        logits = layers.unembed(hidden, params.outer)
        return logits if self.logit_cap is None else jnp.tanh(logits / self.logit_cap) * self.logit_cap
