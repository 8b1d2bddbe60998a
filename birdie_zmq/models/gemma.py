"""Gemma 2 and Gemma 3 (text).

What sets them apart from Llama: embeddings scaled by sqrt(d), norms that multiply by 1 + weight, a norm behind each
sub-layer as well as before it, layers that see a window between layers that see everything, scores and logits bent by
tanh (2), norms of queries and keys and two RoPE bases (3). Gemma Team, 2024, arXiv:2408.00118; 2025, arXiv:2503.19786.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from birdie_zmq.models import layers
from birdie_zmq.models.attention import UNLIMITED, Reading, attention
from birdie_zmq.models.config_fields import Fields, positive
from birdie_zmq.models.llama import windows_of
from birdie_zmq.models.rope import Rope, read_rope, rotate
from birdie_zmq.models.weight_map import Layout, Params, Read, TensorSpec, embedding_of, gated_layer, head_of


@dataclass(frozen=True)
class Gemma:
    """A decoder of the Gemma family.

    Attributes:
        windows: For each layer how many positions it sees, or empty where every layer sees all.
        query_scalar: Attention scores are divided by its square root.
        score_cap: Bound of the attention scores, None for none.
        logit_cap: Bound of the logits, None for none.
        rope: How heads are turned in layers that see everything, and in Gemma 2 in all of them.
        window_rope: How heads are turned in layers that see a window.
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
        """Read a ``config.json`` of model_type gemma2 or gemma3_text.

        Raises:
            ValueError: A size is missing or of the wrong type, or the file asks for what is not computed here.
        """
        config = Fields(values)
        config.require("use_bidirectional_attention", (False,))
        third = config.text("model_type") == "gemma3_text"
        n_layers = config.integer("num_hidden_layers")
        n_heads, n_kv_heads = config.integer("num_attention_heads"), config.integer("num_key_value_heads")
        head_width = config.integer("head_dim", 256)
        positive(num_hidden_layers=n_layers, num_attention_heads=n_heads, num_key_value_heads=n_kv_heads)
        if n_heads % n_kv_heads:
            raise ValueError(f"num_attention_heads {n_heads} is no multiple of num_key_value_heads {n_kv_heads}")
        # Of every `period` layers the last sees everything; old files say only the period.
        period = config.integer("sliding_window_pattern", 6) if third else 2
        types = config.texts("layer_types", n_layers) or tuple(
            "sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(n_layers)
        )
        if not third:
            rope = window_rope = read_rope(config, head_width)
        elif "full_attention" in config.record("rope_parameters"):
            rope = read_rope(config, head_width, section="full_attention", theta=1e6)
            window_rope = read_rope(config, head_width, section="sliding_attention")
        else:
            rope = read_rope(config, head_width, theta=1e6)
            window_rope = Rope(head_width, config.number("rope_local_base_freq", 10_000.0))
        return cls(
            vocab_size=config.integer("vocab_size"),
            d_model=config.integer("hidden_size"),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_width=head_width,
            d_ff=config.integer("intermediate_size"),
            max_length=config.integer("max_position_embeddings"),
            norm_epsilon=config.number("rms_norm_eps", 1e-6),
            activation=layers.check_activation(config.text("hidden_activation", "gelu_pytorch_tanh")),
            attention_bias=config.flag("attention_bias", False),
            tied_head=config.flag("tie_word_embeddings", True),
            query_scalar=config.number("query_pre_attn_scalar", 256),
            score_cap=config.optional_number("attn_logit_softcapping", None if third else 50.0),
            logit_cap=config.optional_number("final_logit_softcapping", None if third else 30.0),
            windows=windows_of(types, config.integer("sliding_window", 4096)),
            rope=rope,
            window_rope=window_rope,
            query_key_norm=third,
        )

    def layout(self) -> Layout:
        """The tensors of a Hugging Face checkpoint."""
        d, f = self.d_model, self.d_ff
        layer = "model.layers.{}."
        biased = ("query", "key", "value", "output") if self.attention_bias else ()
        layers = gated_layer(layer, d, (self.n_heads, self.n_kv_heads), self.head_width, f, biased) | {
            "attention_norm": TensorSpec(layer + "input_layernorm.weight", (d,)),
            "after_attention_norm": TensorSpec(layer + "post_attention_layernorm.weight", (d,)),
            "feed_forward_norm": TensorSpec(layer + "pre_feedforward_layernorm.weight", (d,)),
            "after_feed_forward_norm": TensorSpec(layer + "post_feedforward_layernorm.weight", (d,)),
        }
        if self.query_key_norm:
            layers["query_norm"] = TensorSpec(layer + "self_attn.q_norm.weight", (self.head_width,))
            layers["key_norm"] = TensorSpec(layer + "self_attn.k_norm.weight", (self.head_width,))
        outer = {
            "embedding": embedding_of("model.embed_tokens.weight", self.vocab_size, d),
            "final_norm": TensorSpec("model.norm.weight", (d,)),
        }
        if not self.tied_head:
            outer["head"] = head_of("lm_head.weight", self.vocab_size, d)
        return Layout(outer, layers, self.n_layers, "model.", ("lm_head.weight",) * self.tied_head)

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Layers, key/value heads, and the width of a head."""
        return self.n_layers, self.n_kv_heads, self.head_width

    def backbone(self, params: Params, tokens: jax.Array, reading: Reading) -> Read:
        """Normalised final hidden states of int [b, t], and the keys and values of every layer."""
        full, windowed = self.rope.tables(reading.positions), self.window_rope.tables(reading.positions)
        windows = jnp.asarray(np.array(self.windows or (UNLIMITED,) * self.n_layers, np.int32))

        def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
            # Weights are stored less one. The product is rounded once, after the scale (Llama rounds before it).
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
            everything = window == UNLIMITED
            cos, sin = (jnp.where(everything, here, there) for here, there in zip(full, windowed, strict=True))
            query, key = rotate(query, (cos, sin)), rotate(key, (cos, sin))
            scale = self.query_scalar**-0.5
            y = attention(query, key, value, reading, number, scale=scale, window=window, softcap=self.score_cap)
            x = x + norm(layers.linear(y, w, "output"), w["after_attention_norm"])
            y = norm(x, w["feed_forward_norm"])
            y = layers.gated_feed_forward(y, w, self.activation)
            return x + norm(y, w["after_feed_forward_norm"]), layers.heads_first(key, value)

        embedding = params.outer["embedding"]
        # The factor is rounded to the dtype of the weights, as the models were trained with it.
        x = embedding[tokens] * jnp.asarray(self.d_model**0.5, embedding.dtype)
        numbers = jnp.arange(self.n_layers, dtype=jnp.int32)
        x, (keys, values) = jax.lax.scan(layer, x, (numbers, params.layers, windows))
        return Read(norm(x, params.outer["final_norm"]), keys, values)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., v] of hidden states [..., d]."""
        logits = layers.unembed(hidden, params.outer)
        return logits if self.logit_cap is None else jnp.tanh(logits / self.logit_cap) * self.logit_cap
