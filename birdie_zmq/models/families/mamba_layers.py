"""What Mamba and Mamba 2 share: layers of a mixer alone, and a residual stream in float32."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.attention import AttentionMetadata
from birdie_zmq.models.config_fields import ConfigReader, require_positive
from birdie_zmq.models.decoder_layer import NO_ATTENTION, DecoderLayer, FeedForward, LayerEntries, LayerStep, Recurrence
from birdie_zmq.models.families.common import HEAD
from birdie_zmq.models.layers import Norm, Weights
from birdie_zmq.models.weight_map import Params, TensorSpec, embedding_spec, head_spec, norm_specs

LAYER = "backbone.layers.{}."
MIXER = LAYER + "mixer."


@dataclass(frozen=True)
class MambaLayer(DecoderLayer):
    """A mixer around a residual stream, without a feed-forward layer; the mixer has the dtype of the weights."""

    def __call__(self, x: jax.Array, weights: Weights, step: LayerStep) -> tuple[jax.Array, LayerEntries]:
        """Apply the layer to the residual stream x [b, t, d]; also return what a state keeps of the step."""
        y, own = self.mix(
            self.norm(x.astype(weights["attention_norm"].dtype), weights, "attention_norm"), weights, step
        )
        return x + y.astype(x.dtype), own


@dataclass(frozen=True)
class MambaArchitecture(Architecture):
    """A decoder of `MambaLayer`.

    Attributes:
        wide_residual: Whether the residual stream is float32 whatever the dtype of the weights.
    """

    wide_residual: bool = True

    def embed(
        self, params: Params, tokens: jax.Array, metadata: AttentionMetadata
    ) -> tuple[jax.Array, jax.Array | None]:
        """Embed tokens as `Architecture` does, in the dtype of the residual stream."""
        x, inputs = super().embed(params, tokens, metadata)
        return x.astype(jnp.float32) if self.wide_residual else x, inputs

    def finish(self, params: Params, x: jax.Array) -> jax.Array:
        """Return the hidden states [b, t, d] that the head takes, in the dtype of the weights."""
        return super().finish(params, x).astype(params.outer["embedding"].dtype)


def mamba_architecture(config: ConfigReader, mixer: Recurrence, specs: dict[str, TensorSpec]) -> Architecture:
    """Return the decoder of a configuration of Mamba or Mamba 2.

    Args:
        config: The configuration.
        mixer: The mixer of all layers.
        specs: Its tensors.

    Raises:
        ValueError: A size is of the wrong type or below 1.
    """
    vocab_size, width, count = (config.integer(key) for key in ("vocab_size", "hidden_size", "num_hidden_layers"))
    require_positive(vocab_size=vocab_size, hidden_size=width, num_hidden_layers=count)
    epsilon, tied = config.number("layer_norm_epsilon"), config.flag("tie_word_embeddings", False)
    wide = config.flag("residual_in_fp32", True)
    layer = MambaLayer(
        NO_ATTENTION,
        FeedForward("silu"),  # not applied
        Norm("rms", epsilon),
        norm_specs(LAYER + "norm", width, key="attention_norm") | specs,
        recurrence=mixer,
    )
    outer = {"embedding": embedding_spec("backbone.embeddings.weight", vocab_size, width)}
    outer |= norm_specs("backbone.norm_f", width, key="final_norm")
    return MambaArchitecture(
        vocab_size=vocab_size,
        max_length=None,
        layers=(layer,) * count,
        outer=outer if tied else outer | {"head": head_spec(HEAD, vocab_size, width)},
        norm=Norm("rms_float32" if wide else "rms", epsilon),
        base="backbone.",
        tied_head=HEAD if tied else None,
        wide_residual=wide,
    )
