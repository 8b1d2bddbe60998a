"""Built-in models with random weights, which a worker loads as its user module; a tag is a size and a seed: ``14b-1``."""

from __future__ import annotations

from typing import Any

import jax

from benchmarks.accelerators.architectures import ARCHITECTURES
from benchmarks.model_file import ByteTokenizer
from birdie_zmq import Model
from birdie_zmq.models.architecture import Architecture
from birdie_zmq.models.attention import default_target
from birdie_zmq.models.decoder import build_model
from birdie_zmq.models.families.llama import plain_llama


def _tiny() -> Architecture:
    return plain_llama(vocab_size=512, d_model=128, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=256, max_length=4096)


SIZES = ARCHITECTURES | {"tiny": _tiny}


def random_model(size: str, dtype: str, seed: int = 0) -> Model:
    """Return a model of a size, on JAX's default device."""
    architecture = SIZES[size]()
    return build_model(architecture, architecture.init_params(jax.random.key(seed), dtype), default_target())


def load_model(model_tag: str, **keywords: Any) -> Model:
    """Return the model of a tag in bfloat16."""
    del keywords
    size, _, seed = model_tag.partition("-")
    return random_model(size, "bfloat16", int(seed))


def load_tokenizer(model_tag: str, **keywords: Any) -> ByteTokenizer:
    """Return the byte tokenizer for any tag."""
    del model_tag, keywords
    return ByteTokenizer()
