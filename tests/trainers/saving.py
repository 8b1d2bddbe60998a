"""What the programs of the trainers' own environments share: random weights, and the logits of the trainer."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 256
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
}
"""The sizes of all models, by Hugging Face's names."""

GEMMA = {
    **SIZES,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
GEMMA2 = {
    **GEMMA,
    "model_type": "gemma2",
    "sliding_window": 8,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3 = {
    **GEMMA,
    "model_type": "gemma3_text",
    "sliding_window": 8,
    "query_pre_attn_scalar": 8,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
random = np.random.default_rng(0)
TOKENS = random.integers(1, VOCABULARY, (2, 40)).astype(np.int32)


def randomised(values: Any, *, is_norm: bool) -> NDArray[np.float32]:
    """Return random float32 values of the shape of an array, so that no norm or bias is what it was initialised to.

    Args:
        values: The array. A norm that is initialised to ones stays near one.
        is_norm: Whether it is a norm or a bias.
    """
    found = np.asarray(values, np.float32)
    spread = 0.2 if is_norm else 0.15
    start = 1.0 if is_norm and np.allclose(found, 1.0) else 0.0
    return np.asarray(random.normal(size=found.shape) * spread + start, np.float32)


def write(folder: Path, logits: Any, config: Mapping[str, Any] | None = None) -> None:
    """Write the trainer's logits [b, t, v] of `TOKENS`, and the Hugging Face configuration of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "logits.npy", np.asarray(logits, np.float32))
    if config is not None:
        (folder / "config").mkdir(exist_ok=True)
        (folder / "config" / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")


def run_all(models: Mapping[str, Callable[[Path], None]], out: Path) -> None:
    """Save each model in a folder of its name; a failure is written there."""
    for name, save in models.items():
        try:
            save(out / name)
        except Exception:  # noqa: BLE001 - reported by the test, with the other models
            (out / name).mkdir(parents=True, exist_ok=True)
            (out / name / "failure.txt").write_text(traceback.format_exc(), encoding="utf-8")
