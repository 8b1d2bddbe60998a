"""Gemma 4 (text): the dense models.

Differences from Gemma 3: norms multiply by their weight, values are normalised too, scores are not scaled, and the
output of each layer is multiplied by a number. Full-attention layers have heads of another width, and may use the
keys, before their norm, as values. The small models have per-layer embeddings, and their last layers use the keys and
values of earlier layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.attention import AttentionMetadata
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward, LayerEntries, LayerStep
from birdie_zmq.models.families.common import FULL, HEAD, LAYER, Sizes, read_layer_types, read_windows
from birdie_zmq.models.families.per_layer import (
    add_layer_embedding,
    embed_for_layers,
    per_layer_outer_specs,
    per_layer_specs,
    read_shared_layers,
    unused_tensors,
)
from birdie_zmq.models.layers import Norm, Weights, check_activation
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import Params, TensorSpec, norm_specs

PLACEHOLDERS = ("image_token_id", "video_token_id", "audio_token_id")
"""Keys of the tokens that stand for images, videos and sounds."""


@dataclass(frozen=True)
class Gemma4(Architecture):
    """A decoder whose layers may have embeddings of their own.

    Attributes:
        placeholders: The tokens that stand for images and sounds; a text has the embedding of another token for them.
        placeholder_embedding: That token.
    """

    placeholders: tuple[int, ...] = ()
    placeholder_embedding: int = 0

    def embed(
        self, params: Params, tokens: jax.Array, metadata: AttentionMetadata
    ) -> tuple[jax.Array, jax.Array | None]:
        """Embed tokens as `Architecture` does, and for the layers."""
        for placeholder in self.placeholders:
            tokens = jnp.where(tokens == placeholder, self.placeholder_embedding, tokens)
        x, _ = super().embed(params, tokens, metadata)
        if "layer_embedding" not in params.outer:
            return x, None
        return x, embed_for_layers(params.outer, self.norm, tokens, x)


@dataclass(frozen=True)
class Gemma4Layer(DecoderLayer):
    """A layer that adds an embedding of its own, if it has one, and multiplies its output by ``scale`` [1]."""

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, LayerEntries]:
        """Apply the layer as `DecoderLayer` does."""
        x, own = super().__call__(x, weights, step)
        if step.layer_input is not None:
            y = add_layer_embedding(x, weights, self.feed_forward.activation, step.layer_input)
            x = x + self.norm(y, weights, "layer_input_norm")
        return x * weights["scale"][None, None], own


def gemma4(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type gemma4_text.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    config = ConfigReader(values)
    config.require("enable_moe_block", (False,))
    config.require("use_bidirectional_attention", (None, "vision"))  # "vision" is for images only
    sizes, norm = Sizes.read(config), Norm("rms_float32", config.number("rms_norm_eps"))
    types, windows = read_layer_types(config, sizes.n_layers), read_windows(config, sizes.n_layers)
    shared = read_shared_layers(config, types)
    feed_forward = FeedForward(check_activation(config.text("hidden_activation")))
    biased = {"query", "key", "value", "output"} if config.flag("attention_bias", False) else set()
    keys_are_values, doubled = config.flag("attention_k_eq_v", False), config.flag("use_double_wide_mlp", False)
    width = config.integer("hidden_size_per_layer_input")

    @functools.cache
    def layer(own: Sizes, kind: str, window: int | None, keys_of: int | None) -> DecoderLayer:
        specs = own.gated_specs(biased) | own.norm_specs(
            attention_norm="input_layernorm",
            after_attention_norm="post_attention_layernorm",
            feed_forward_norm="pre_feedforward_layernorm",
            after_feed_forward_norm="post_feedforward_layernorm",
        )
        specs |= {"scale": TensorSpec(LAYER + "layer_scalar", (1,))} | (per_layer_specs(own, width) if width else {})
        specs |= norm_specs(LAYER + "self_attn.q_norm", own.head_width, key="query_norm")
        specs |= norm_specs(LAYER + "self_attn.k_norm", own.head_width, key="key_norm")
        if keys_of is not None:
            absent = {"key", "key_bias", "key_norm", "value", "value_bias"}
        else:
            absent = {"value", "value_bias"} if keys_are_values and kind == FULL else set()
        attention = Attention(
            own.n_heads,
            own.n_kv_heads,
            own.head_width,
            scale=1.0,
            rope=read_rope(config, own.head_width, section=kind),
            window=window,
            norm=norm,
            value_norm=norm,
            keys_of=keys_of,
        )
        kept = {key: spec for key, spec in specs.items() if key not in absent}
        return Gemma4Layer(attention, feed_forward, norm, kept)

    layers = []
    for own, kind, window, keys_of in zip(_layer_sizes(sizes, values), types, windows, shared, strict=True):
        inner = own.d_ff * 2 if doubled and keys_of is not None else own.d_ff
        layers.append(layer(dataclasses.replace(own, d_ff=inner), kind, window, keys_of))
    tied, whole = config.flag("tie_word_embeddings", True), config.record("multimodal")
    placeholders = tuple(whole.integer(key) for key in PLACEHOLDERS if key in whole)
    return Gemma4(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(layers),
        outer=sizes.outer_specs(tied=tied) | (per_layer_outer_specs(config, sizes, width) if width else {}),
        norm=norm,
        redundant=Architecture.redundant + unused_tensors(shared),
        tied_head=HEAD if tied else None,
        embedding_scale=sizes.d_model**0.5,
        logit_cap=config.optional_number("final_logit_softcapping"),
        placeholders=placeholders,
        placeholder_embedding=config.integer("pad_token_id") if placeholders else 0,
    )


def _layer_sizes(sizes: Sizes, values: Mapping[str, Any]) -> list[Sizes]:
    """Return the sizes of each layer: those of the model, and what ``per_layer_config`` changes.

    Raises:
        ValueError: It changes something else than the heads.
    """
    changes = {int(number): dict(of_layer) for number, of_layer in (values.get("per_layer_config") or {}).items()}
    unknown = {key for of_layer in changes.values() for key in of_layer} - {"head_dim", "num_key_value_heads"}
    if unknown:
        raise ValueError(f"per_layer_config has the unsupported key {min(unknown)}")
    found = []
    for number in range(sizes.n_layers):
        config = ConfigReader(changes.get(number, {}))
        head_width = config.integer("head_dim", sizes.head_width)
        kv_heads = config.integer("num_key_value_heads", sizes.n_kv_heads)
        found.append(dataclasses.replace(sizes, head_width=head_width, n_kv_heads=kv_heads))
    return found
