"""Trains a small Llama with KerasHub, in an environment of it: ``python -m trainers.train_keras FOLDER``.

Keras's own callback saves the weights of each epoch as ``FOLDER/epoch_N.weights.h5``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import keras
import keras_hub
import numpy as np

EPOCHS, PAUSE_S = 3, 3.0


class Pause(keras.callbacks.Callback):
    """Gives a watch time between two epochs."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Wait."""
        time.sleep(PAUSE_S)


def main(folder: Path) -> None:
    """Train on random tokens of the demo's vocabulary."""
    backbone = keras_hub.models.LlamaBackbone(
        num_layers=2,
        layer_norm_epsilon=1e-5,
        vocabulary_size=1024,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=64,
        intermediate_dim=128,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(keras.saving.serialize_keras_object(backbone)), encoding="utf-8")
    model = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tokens = np.random.default_rng(0).integers(1, 1024, (16, 33))
    inputs = {"token_ids": tokens[:, :-1], "padding_mask": np.ones_like(tokens[:, :-1])}
    epochs = keras.callbacks.ModelCheckpoint(str(folder / "epoch_{epoch}.weights.h5"), save_weights_only=True)
    model.fit(inputs, tokens[:, 1:], epochs=EPOCHS, callbacks=[epochs, Pause()], verbose=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
