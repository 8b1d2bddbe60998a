"""Saves models with KerasHub's own code, in an environment of KerasHub: ``python -m trainers.save_keras FOLDER``."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

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
    hidden = backbone({"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)})
    write(folder, backbone.token_embedding(hidden, reverse=True))
    backbone.save_to_preset(str(folder / "checkpoint"))


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
    "llama 3 tied": functools.partial(save, _llama3),
    "gemma 1": functools.partial(save, _gemma1),
    "gemma 2": functools.partial(save, _gemma2),
    "gemma 3": functools.partial(save, _gemma3),
}

if __name__ == "__main__":
    run_all(MODELS, Path(sys.argv[1]))
