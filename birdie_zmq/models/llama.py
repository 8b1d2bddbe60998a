"""The Llama family: Llama 1 to 3, SmolLM, Mistral, Ministral, Qwen 2 and Qwen 3.

Pre-normalisation with RMSNorm, rotary positions, grouped-query attention and a gated feed-forward layer (Touvron et
al., 2023, arXiv:2302.13971; Shazeer, 2020, arXiv:2002.05202). Members differ in biases, in norms of queries and keys,
and in sliding-window layers. The conventions are those of Hugging Face's classes, so that the same weights give the
same logits in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from birdie_zmq.models import layers
from birdie_zmq.models.attention import NO_WINDOW, AttentionMetadata, AttentionOptions, attention
from birdie_zmq.models.config_fields import ConfigReader, require_positive
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

_WINDOWED = "sliding_attention"
_FULL = "full_attention"


@dataclass(frozen=True)
class Llama:
    """A decoder of the Llama family.

    Attributes:
        windows: Attention window of each layer in positions; empty if every layer has full attention.
        rope: Rotary embedding of the heads; without scaling by default.
        head_width: Dimensions of a head; d_model / n_heads by default.

    Raises:
        ValueError: The sizes do not describe a decoder.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    max_length: int
    norm_epsilon: float = 1e-5
    tied_head: bool = True
    head_width: int = 0
    rope: Rope | None = None
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    query_key_norm: bool = False
    windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_positive(
            vocab_size=self.vocab_size,
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_ff=self.d_ff,
            max_length=self.max_length,
        )
        if self.head_width == 0:
            if self.d_model % self.n_heads:
                raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
            object.__setattr__(self, "head_width", self.d_model // self.n_heads)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.rope is None:
            object.__setattr__(self, "rope", Rope(self.head_width))

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any]) -> Self:
        """Read a configuration of model_type llama, mistral, ministral, qwen2 or qwen3.

        Args:
            values: All keys, as `birdie_zmq.models.config` returns them.

        Raises:
            ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
        """
        config = ConfigReader(values)
        kind = config.text("model_type")
        n_heads, n_layers = config.integer("num_attention_heads"), config.integer("num_hidden_layers")
        require_positive(num_attention_heads=n_heads, num_hidden_layers=n_layers)
        head_width = config.integer("head_dim", config.integer("hidden_size") // n_heads)
        attention_bias = config.flag("attention_bias", False)
        return cls(
            vocab_size=config.integer("vocab_size"),
            d_model=config.integer("hidden_size"),
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=config.integer("num_key_value_heads"),
            d_ff=config.integer("intermediate_size"),
            max_length=config.integer("max_position_embeddings"),
            norm_epsilon=config.number("rms_norm_eps"),
            tied_head=config.flag("tie_word_embeddings", False),
            head_width=head_width,
            rope=read_rope(config, head_width),
            activation=layers.check_activation(config.text("hidden_act")),
            qkv_bias=attention_bias or kind == "qwen2",
            output_bias=attention_bias and kind in ("llama", "qwen3"),
            feed_forward_bias=kind == "llama" and config.flag("mlp_bias", False),
            query_key_norm=kind == "qwen3",
            windows=_layer_windows(config, kind, n_layers),
        )

    def to_hugging_face(self) -> dict[str, Any]:
        """Return the complete ``config.json`` of a plain Llama; `from_hugging_face` reads it back.

        Raises:
            ValueError: This decoder has a feature that a plain Llama lacks.
        """
        assert self.rope is not None
        plain = (self.rope.kind, self.qkv_bias, self.output_bias, self.feed_forward_bias, self.query_key_norm)
        if plain != ("default", False, False, False, False) or self.windows:
            raise ValueError("only a plain Llama can be written as a config.json")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": self.activation,
            "attention_bias": False,
            "mlp_bias": False,
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "intermediate_size": self.d_ff,
            "max_position_embeddings": self.max_length,
            "head_dim": self.head_width,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope.theta},
            "rms_norm_eps": self.norm_epsilon,
            "tie_word_embeddings": self.tied_head,
        }

    @property
    def position_limit(self) -> int | None:
        """The number of positions that the rotary embedding supports; None for any number."""
        assert self.rope is not None
        return self.rope.position_limit

    def weight_map(self) -> WeightMap:
        """Return the tensors of a Hugging Face checkpoint."""
        d, f = self.d_model, self.d_ff
        layer = "model.layers.{}."
        biased = ["query", "key", "value"] * self.qkv_bias + ["output"] * self.output_bias
        biased += ["gate", "up", "down"] * self.feed_forward_bias
        layers = gated_layer_specs(layer, d, (self.n_heads, self.n_kv_heads), self.head_width, f, biased) | {
            "attention_norm": TensorSpec(layer + "input_layernorm.weight", (d,)),
            "feed_forward_norm": TensorSpec(layer + "post_attention_layernorm.weight", (d,)),
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
        assert self.rope is not None
        tables = self.rope.tables(metadata.positions)
        windows = jnp.asarray(np.array(self.windows, np.int32)) if self.windows else None

        def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
            return layers.rms_norm(x, weight, self.norm_epsilon)

        def layer(
            x: jax.Array, scanned: tuple[jax.Array, dict[str, jax.Array], jax.Array | None]
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            number, w, window = scanned
            y = norm(x, w["attention_norm"])
            query, key, value = layers.query_key_value(y, w, self.n_heads, self.n_kv_heads)
            if self.query_key_norm:
                query, key = norm(query, w["query_norm"]), norm(key, w["key_norm"])
            query, key = rotate(query, tables), rotate(key, tables)
            y = attention(query, key, value, metadata, number, AttentionOptions(self.head_width**-0.5, window))
            x = x + layers.linear(y, w, "output")
            y = norm(x, w["feed_forward_norm"])
            return x + layers.gated_feed_forward(y, w, self.activation), layers.heads_first(key, value)

        numbers = jnp.arange(self.n_layers, dtype=jnp.int32)
        x, (keys, values) = jax.lax.scan(layer, params.outer["embedding"][tokens], (numbers, params.layers, windows))
        return BackboneOutput(norm(x, params.outer["final_norm"]), keys, values)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Compute float32 logits [..., v] of hidden states [..., d]."""
        return layers.unembed(hidden, params.outer)

    def init_params(self, key: jax.Array, dtype: DTypeLike = "float32") -> Params:
        """Initialise random weights.

        Matrices are normal with the standard deviation of a variance-preserving map, 1 / sqrt(in). Matrices that write
        into the residual stream are smaller by 1 / sqrt(2 * layers), as in GPT-2 (Radford et al., 2019). Norms start at
        one, biases at zero.

        Args:
            key: A JAX random key; the same key gives the same weights.
            dtype: Floating dtype of every array.
        """
        weight_map = self.weight_map()
        outer: dict[str, jax.Array] = {}
        layers: dict[str, jax.Array] = {}
        matrices = sum(len(spec.shape) == 2 for spec in (*weight_map.outer.values(), *weight_map.layers.values()))
        keys = iter(jax.random.split(key, matrices))
        for params, specs, stack in ((outer, weight_map.outer, ()), (layers, weight_map.layers, (self.n_layers,))):
            for name, spec in specs.items():
                shape = (*stack, *spec.loaded_shape)
                if len(spec.shape) == 1:
                    params[name] = jnp.full(shape, 0.0 if name.endswith("_bias") else 1.0, dtype)
                    continue
                deviation = (self.d_model if name == "embedding" else shape[-2]) ** -0.5
                if name in ("output", "down"):
                    deviation *= (2 * self.n_layers) ** -0.5
                params[name] = (jax.random.normal(next(keys), shape) * deviation).astype(dtype)
        return Params(outer, layers)


def _layer_windows(config: ConfigReader, kind: str, n_layers: int) -> tuple[int, ...]:
    """Return the attention window of each layer: Mistral limits all layers, Llama none, the others those of a type."""
    window = config.optional_integer("sliding_window")
    if kind == "llama":
        return ()
    if kind == "mistral":
        return () if window is None else (window,) * n_layers
    return windows_from_layer_types(config.texts("layer_types", n_layers), window)


def windows_from_layer_types(types: tuple[str, ...], window: int | None) -> tuple[int, ...]:
    """Return the attention window of each layer from Hugging Face's ``layer_types``.

    Raises:
        ValueError: A type is neither sliding_attention nor full_attention, or a window is needed and None.
    """
    unknown = sorted(set(types) - {_WINDOWED, _FULL})
    if unknown:
        raise ValueError(f"layer_types has the unknown type {unknown[0]!r}; supported: {_WINDOWED}, {_FULL}")
    if _WINDOWED not in types:
        return ()
    if window is None:
        raise ValueError(f"layer_types has {_WINDOWED}, but there is no sliding_window")
    return tuple(window if kind == _WINDOWED else NO_WINDOW for kind in types)
