"""Small random checkpoints of Hugging Face, whose weights the tests write in the formats of trainers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from birdie_zmq.models.config import complete_config
from birdie_zmq.models.decoder import build_model
from birdie_zmq.models.loader import load_checkpoint
from birdie_zmq.models.native.hints import NO_HINTS, ModelHints
from birdie_zmq.models.registry import build_architecture

Tensors = dict[str, NDArray[Any]]

TOKENS = np.random.default_rng(1).integers(0, 40, (2, 20), dtype=np.int32)
LAYER = "model.layers.{}."
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
LLAMA = {**SIZES, "model_type": "llama", "hidden_act": "silu"}
LLAMA_31 = {
    **LLAMA,
    "max_position_embeddings": 16_384,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
QWEN2 = {**SIZES, "model_type": "qwen2", "hidden_act": "silu"}
QWEN3 = {**SIZES, "model_type": "qwen3", "hidden_act": "silu", "tie_word_embeddings": True}
_GEMMA = {
    **SIZES,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
GEMMA = {**_GEMMA, "model_type": "gemma"}
GEMMA2 = {
    **_GEMMA,
    "model_type": "gemma2",
    "num_hidden_layers": 4,
    "sliding_window": 5,
    "query_pre_attn_scalar": 8,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3 = {
    **_GEMMA,
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "sliding_window": 5,
    "query_pre_attn_scalar": 8,
    "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


def random_tensors(config: dict[str, Any], seed: int = 0) -> Tensors:
    """Return random float32 tensors of a model, by Hugging Face's names."""
    rng = np.random.default_rng(seed)
    architecture = build_architecture(complete_config(config), "the test")
    tensors = {}
    for name, slot in architecture.weight_map().tensors():
        spread = 0.1 if len(slot.spec.shape) == 1 else 0.3
        values = rng.normal(size=slot.spec.shape) * spread
        is_norm = "norm" in name and not config["model_type"].startswith("gemma")
        tensors[name] = np.asarray(values + is_norm, np.float32)
    return tensors


def save_hugging_face(directory: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    """Write a Hugging Face directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def logits(directory: Path, hints: ModelHints = NO_HINTS) -> NDArray[np.float32]:
    """Load a checkpoint in float32, and return the logits [b, t, v] of `TOKENS`."""
    model = build_model(*load_checkpoint(directory, "float32", hints=hints))
    assert model.hidden is not None
    assert model.unembed is not None
    hidden = jax.jit(model.hidden)(model.params, TOKENS)
    return np.asarray(jax.jit(model.unembed)(model.params, hidden), np.float32)


def layers_of(config: dict[str, Any]) -> range:
    """Return the numbers of the layers."""
    return range(int(config["num_hidden_layers"]))


def heads(matrix: NDArray[Any], width: int) -> NDArray[Any]:
    """Return a projection [heads * width, d] as a kernel [d, heads, width]."""
    return matrix.T.reshape(matrix.shape[1], -1, width)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a flat dict with ``/`` in its keys as nested dicts."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
