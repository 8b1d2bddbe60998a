"""Saves models with KerasHub's own code, in an environment of KerasHub: ``python -m trainers.save_keras FOLDER``."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import keras
import keras_hub
import numpy as np

from .saving import TOKENS, VOCABULARY, randomised, run_all, write

_COMMON = {
    "vocabulary_size": VOCABULARY,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 64,
}
_NORMS = {"use_post_ffw_norm": True, "use_post_attention_norm": True}
_WINDOW = {"sliding_window_size": 8, "use_sliding_window_attention": True}


def save(make: Callable[[], Any], folder: Path) -> None:
    """Save a backbone as a preset, and write the logits."""
    backbone = make()
    for weight in backbone.weights:
        weight.assign(randomised(weight, is_norm=len(weight.shape) == 1))
    write(folder, logits_of(backbone))
    backbone.save_to_preset(str(folder / "checkpoint"))


def logits_of(backbone: Any) -> Any:
    """Return the logits of the tokens."""
    hidden = backbone({"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)})
    return backbone.token_embedding(hidden, reverse=True)


def save_rounded(make: Callable[..., Any], folder: Path) -> None:
    """Save a backbone in bfloat16 as a preset, and write the logits of its weights in float32."""
    backbone, stored = make(), make(dtype="bfloat16")
    for weight, rounded in zip(backbone.weights, stored.weights, strict=True):
        rounded.assign(randomised(weight, is_norm=len(weight.shape) == 1))
        weight.assign(keras.ops.cast(rounded, "float32"))
    write(folder, logits_of(backbone))
    stored.save_to_preset(str(folder / "checkpoint"))


def save_trained(make: Callable[[], Any], folder: Path) -> None:
    """Train a language model, save an epoch as Keras's own callback does, and write the logits."""
    backbone = make()
    model = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, jit_compile=True)
    inputs = {"token_ids": TOKENS[:, :-1], "padding_mask": np.ones_like(TOKENS[:, :-1])}
    epochs = keras.callbacks.ModelCheckpoint(str(folder / "epoch_{epoch:02d}.weights.h5"), save_weights_only=True)
    model.fit(inputs, TOKENS[:, 1:], epochs=3, callbacks=[epochs], verbose=0)
    write(folder, logits_of(backbone))
    config = json.dumps(keras.saving.serialize_keras_object(backbone))
    (folder / "config.json").write_text(config, encoding="utf-8")
    (folder / "epoch_03.weights.h5").rename(folder / "checkpoint.weights.h5")


def _llama(**more: Any) -> Any:
    return keras_hub.models.LlamaBackbone(num_layers=3, layer_norm_epsilon=1e-5, **more, **_COMMON)


def _llama3() -> Any:
    return keras_hub.models.Llama3Backbone(
        num_layers=3, rope_max_wavelength=500_000, layer_norm_epsilon=1e-5, tie_word_embeddings=True, **_COMMON
    )


def _gemma1() -> Any:
    sizes = {**_COMMON, "intermediate_dim": 128, "num_key_value_heads": 1}
    return keras_hub.models.GemmaBackbone(num_layers=2, head_dim=8, **sizes)


def _gemma2() -> Any:
    sizes = {**_COMMON, "intermediate_dim": 128, **_NORMS, **_WINDOW}
    caps = {"final_logit_soft_cap": 30.0, "attention_logit_soft_cap": 50.0}
    return keras_hub.models.GemmaBackbone(num_layers=2, head_dim=8, **caps, **sizes)


def _gemma3() -> Any:
    more = {"image_size": 16, "vision_encoder": None, "global_rope_scaling_factor": 8.0, "use_query_key_norm": True}
    return keras_hub.models.Gemma3Backbone(num_layers=7, head_dim=8, **more, **_NORMS, **_WINDOW, **_COMMON)


MODELS = {
    "llama": functools.partial(save, _llama),
    "llama in bfloat16": functools.partial(save_rounded, _llama),
    "llama trained": functools.partial(save_trained, _llama),
    "llama 3 tied": functools.partial(save, _llama3),
    "gemma 1": functools.partial(save, _gemma1),
    "gemma 2": functools.partial(save, _gemma2),
    "gemma 3": functools.partial(save, _gemma3),
}

if __name__ == "__main__":
    run_all(MODELS, Path(sys.argv[1]))
