"""Gemma 3n (text).

Differences from Gemma 3: norms multiply by their weight, values are normalised too, and scores are not scaled. Layers
have embeddings of their own, and the last layers use the keys and values of earlier ones. The residual stream has
several copies, of which a layer transforms one and updates the others (AltUp; Baykal et al., 2023, arXiv:2301.13310).
A low-rank map of a layer's input is added to what the attention adds (LAuReL; Menghani et al., 2024,
arXiv:2411.07501). The feed-forward layers of some layers keep only the highest of their gates.

Shape letters: a copies of the residual stream, b rows, t position in a row, d width of the residual stream.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.attention import AttentionMetadata
from birdie_zmq.models.config_fields import ConfigReader
from birdie_zmq.models.decoder_layer import Attention, DecoderLayer, FeedForward, LayerEntries, LayerStep
from birdie_zmq.models.families.common import HEAD, LAYER, Sizes, read_layer_types, read_windows
from birdie_zmq.models.families.per_layer import (
    add_layer_embedding,
    embed_for_layers,
    per_layer_outer_specs,
    per_layer_specs,
    read_shared_layers,
    unused_tensors,
)
from birdie_zmq.models.layers import ACTIVATIONS, Norm, Weights, check_activation, linear
from birdie_zmq.models.rope import read_rope
from birdie_zmq.models.weight_map import Params, TensorSpec, linear_specs, norm_specs

MODALITIES = ("vision", "audio")
"""The parts of a whole model that embed tokens of the text."""


class Modality(NamedTuple):
    """A part of a whole model that embeds the tokens from `first` on; ``vision`` or ``audio``."""

    name: str
    first: int
    norm: Norm


@dataclass(frozen=True)
class Gemma3n(Architecture):
    """A decoder with several copies of the residual stream.

    The tensors outside of the layers are also ``copy_1`` and so on, which make the copies but the first, ``join_1`` and
    so on, which map them back, and for each part ``vision_embedding``, ``vision_norm`` and ``vision_projection``, with the
    name of the part.

    Attributes:
        copies: The number of copies.
        modalities: The parts that embed the last tokens of the vocabulary, in its order.
    """

    copies: int = 1
    modalities: tuple[Modality, ...] = ()

    def embed(
        self, params: Params, tokens: jax.Array, metadata: AttentionMetadata
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return the copies of the residual stream [a, b, t, d], and the embeddings [l, b, t, p] of all layers."""
        outer = params.outer
        x, _ = super().embed(params, tokens, metadata)
        for part, first, norm in self.modalities:
            own = norm(outer[f"{part}_embedding"][jnp.maximum(tokens - first, 0)], outer, f"{part}_norm")
            own = norm.normalise(linear(own, outer, f"{part}_projection")).astype(x.dtype)
            x = jnp.where((tokens >= first)[..., None], own, x)
        copies = [x, *(_rescale(linear(x, outer, f"copy_{i}"), x) for i in range(1, self.copies))]
        return jnp.stack(copies), embed_for_layers(outer, self.norm, tokens, x)

    def finish(self, params: Params, x: jax.Array) -> jax.Array:
        """Return the hidden states [b, t, d] that the head takes, from the copies after the last layer."""
        joined = [x[0], *(_rescale(linear(x[i], params.outer, f"join_{i}"), x[0]) for i in range(1, self.copies))]
        return super().finish(params, jnp.stack(joined).mean(axis=0))


@dataclass(frozen=True)
class SparseFeedForward(FeedForward):
    """A gated feed-forward layer that keeps only the highest gates of each position.

    Attributes:
        sparsity: The share of gates that are set to zero, if they are normally distributed.
    """

    sparsity: float

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> jax.Array:
        """Apply the layer, [b, t, d] -> [b, t, d]."""
        del step
        gate = linear(x, weights, "gate")
        limit = jnp.asarray(statistics.NormalDist().inv_cdf(self.sparsity), gate.dtype)
        cutoff = gate.mean(axis=-1, keepdims=True) + gate.std(axis=-1, keepdims=True) * limit
        inner = ACTIVATIONS[self.activation](jax.nn.relu(gate - cutoff)) * linear(x, weights, "up")
        return linear(inner, weights, "down")


@dataclass(frozen=True)
class Gemma3nLayer(DecoderLayer):
    """A layer of a residual stream with several copies.

    Attributes:
        active: The number of the copy that the layer transforms.
    """

    active: int = 0

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, LayerEntries]:
        """Apply the layer to the copies x [a, b, t, d]; also return what a state keeps of the step."""
        copies, half = x.shape[0], jnp.asarray(2**-0.5, x.dtype)
        mixing = linear(self._route(x[self.active], weights), weights, "prediction")
        mixing = mixing.reshape(*mixing.shape[:2], copies, copies)
        predicted = x + jnp.einsum("ibtd,btji->jbtd", x, mixing)
        before = predicted[self.active]
        attended = self.norm(before, weights, "attention_norm")
        low_rank = linear(linear(attended, weights, "laurel_left"), weights, "laurel_right")
        low_rank = attended + self.norm(low_rank, weights, "laurel_norm")
        y, own = self.mix(attended, weights, step)
        fed = (before + self.norm(y, weights, "after_attention_norm") + low_rank) * half
        z = self.feed_forward(self.norm(fed, weights, "feed_forward_norm"), weights, step)
        after = fed + self.norm(z, weights, "after_feed_forward_norm")
        shares = linear(self._route(after, weights), weights, "correction") + jnp.ones((), x.dtype)
        corrected = predicted + (after - before)[None] * jnp.moveaxis(shares, -1, 0)[..., None]
        gating = corrected[self.active]
        if "corrected_scale" in weights:
            gating = gating * weights["corrected_scale"][None, None]
        assert step.layer_input is not None
        added = add_layer_embedding(gating, weights, self.feed_forward.activation, step.layer_input)
        return corrected.at[1:].add(self.norm(added, weights, "layer_input_norm")[None]), own

    def _route(self, x: jax.Array, weights: Weights) -> jax.Array:
        """Return a number in (-1, 1) for each copy, [b, t, d] -> [b, t, a]."""
        y = self.norm(x, weights, "router_norm") * jnp.asarray(1 / x.shape[-1], x.dtype)
        return jnp.tanh(linear(y, weights, "router").astype(jnp.float32)).astype(x.dtype)


def gemma3n(values: Mapping[str, Any]) -> Architecture:
    """Read a configuration of model_type gemma3n_text.

    Args:
        values: All keys, as `birdie_zmq.models.config` returns them.

    Raises:
        ValueError: A size is of the wrong type, or the configuration requests an unsupported feature.
    """
    inner = values["intermediate_size"]
    config = ConfigReader({**values, "intermediate_size": inner[0]})
    sizes, norm = Sizes.read(config), Norm("rms_float32", config.number("rms_norm_eps"))
    types, windows = read_layer_types(config, sizes.n_layers), read_windows(config, sizes.n_layers)
    shared, width = read_shared_layers(config, types), config.integer("hidden_size_per_layer_input")
    sparsity = config.numbers("activation_sparsity_pattern", sizes.n_layers)
    activation = check_activation(config.text("hidden_activation"))
    biased = {"query", "key", "value", "output"} if config.flag("attention_bias", False) else set()
    copies, active = config.integer("altup_num_inputs"), config.integer("altup_active_idx")
    scaled, tied = config.flag("altup_correct_scale", True), config.flag("tie_word_embeddings", True)

    @functools.cache
    def layer(d_ff: int, sparsity: float, kind: str, window: int | None, keys_of: int | None) -> DecoderLayer:
        own = dataclasses.replace(sizes, d_ff=d_ff)
        specs = own.gated_specs(biased) | own.norm_specs(
            attention_norm="input_layernorm",
            after_attention_norm="post_attention_layernorm",
            feed_forward_norm="pre_feedforward_layernorm",
            after_feed_forward_norm="post_feedforward_layernorm",
        )
        specs |= norm_specs(LAYER + "self_attn.q_norm", own.head_width, key="query_norm")
        specs |= norm_specs(LAYER + "self_attn.k_norm", own.head_width, key="key_norm")
        specs |= per_layer_specs(own, width) | _mixing_specs(config, own, copies)
        absent = {"key", "key_bias", "key_norm", "value", "value_bias"} if keys_of is not None else set()
        absent |= set() if scaled else {"corrected_scale"}
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
        feed_forward = SparseFeedForward(activation, sparsity) if sparsity > 0 else FeedForward(activation)
        kept = {key: spec for key, spec in specs.items() if key not in absent}
        return Gemma3nLayer(attention, feed_forward, norm, kept, active=active)

    outer = sizes.outer_specs(tied=tied) | per_layer_outer_specs(config, sizes, width)
    for i in range(1, copies):
        outer |= linear_specs(f"model.altup_projections.{i - 1}", sizes.d_model, sizes.d_model, key=f"copy_{i}")
        outer |= linear_specs(f"model.altup_unembed_projections.{i - 1}", sizes.d_model, sizes.d_model, key=f"join_{i}")
    modalities = _read_modalities(config)
    for part in modalities:
        outer |= _modality_specs(config.record("multimodal").record(f"{part.name}_config"), part.name, sizes.d_model)
    return Gemma3n(
        vocab_size=sizes.vocab_size,
        max_length=sizes.max_length,
        layers=tuple(map(layer, inner, sparsity, types, windows, shared)),
        outer=outer,
        norm=norm,
        redundant=Architecture.redundant + unused_tensors(shared) + (() if scaled else (".correct_output_scale",)),
        tied_head=HEAD if tied else None,
        embedding_scale=sizes.d_model**0.5,
        logit_cap=config.optional_number("final_logit_softcapping"),
        copies=copies,
        modalities=modalities,
    )


def _mixing_specs(config: ConfigReader, sizes: Sizes, copies: int) -> dict[str, TensorSpec]:
    """Return the tensors of a layer that mix the copies of the residual stream, and its low-rank map."""
    d_model, rank = sizes.d_model, config.integer("laurel_rank")
    return {
        "corrected_scale": TensorSpec(LAYER + "altup.correct_output_scale", (d_model,)),
        **linear_specs(LAYER + "altup.prediction_coefs", copies, copies**2, key="prediction"),
        **linear_specs(LAYER + "altup.correction_coefs", copies, copies, key="correction"),
        **linear_specs(LAYER + "altup.modality_router", d_model, copies, key="router"),
        **linear_specs(LAYER + "laurel.linear_left", d_model, rank, key="laurel_left"),
        **linear_specs(LAYER + "laurel.linear_right", rank, d_model, key="laurel_right"),
        **sizes.norm_specs(router_norm="altup.router_norm", laurel_norm="laurel.post_laurel_norm"),
    }


def _read_modalities(config: ConfigReader) -> tuple[Modality, ...]:
    """Return the parts of a whole model; none for a text model alone."""
    found = []
    for name in MODALITIES:
        part = config.record("multimodal").record(f"{name}_config")
        if "vocab_offset" in part:
            found.append(Modality(name, part.integer("vocab_offset"), Norm("rms_float32", part.number("rms_norm_eps"))))
    return tuple(found)


def _modality_specs(config: ConfigReader, name: str, d_model: int) -> dict[str, TensorSpec]:
    """Return the tensors that embed the tokens of a part, given its own configuration."""
    width, prefix = config.integer("hidden_size"), f"model.embed_{name}."
    return {
        f"{name}_embedding": TensorSpec(prefix + "embedding.weight", (config.integer("vocab_size"), width)),
        **norm_specs(prefix + "hard_embedding_norm", width, key=f"{name}_norm"),
        **linear_specs(prefix + "embedding_projection", width, d_model, key=f"{name}_projection"),
    }


def _rescale(y: jax.Array, x: jax.Array) -> jax.Array:
    """Scale y [b, t, d] to the root mean square of x [b, t, d] at each position."""
    target = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True))
    return y * target / jnp.sqrt(jnp.maximum(jnp.mean(jnp.square(y), axis=-1, keepdims=True), 1e-5))
