"""A model file for tests: a small model in JAX, PyTorch or NumPy, whose tokenizer takes 2 ms to encode a text.

It declares that it ignores two request arguments.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

REQUEST_ARGUMENTS = ("seed", "prefix_token_id")
VOCABULARY = 258
ENCODE_S = 0.002


class SlowBytes:
    """A tokenizer with one token per byte of UTF-8, and two special tokens."""

    bos_token_id = 256
    eos_token_id = 257
    model_max_length = 128

    def encode(self, text: str) -> list[int]:
        time.sleep(ENCODE_S)
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("latin-1")


def weights() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "embedding": random.normal(size=(VOCABULARY, 32)).astype(np.float32),
        "head": random.normal(size=(32, VOCABULARY)).astype(np.float32),
    }


def logits(params: Any, tokens: Any) -> Any:
    return params["embedding"][tokens] @ params["head"]


def load_model(model_tag: str, **kwargs: Any) -> Any:
    params: Any = weights()
    match os.environ.get("BIRDIE_ZMQ_ENGINE", "jax"):
        case "jax":
            import jax.numpy as jnp

            params = {name: jnp.asarray(value) for name, value in params.items()}
        case "torch":
            import torch

            params = {name: torch.from_numpy(value) for name, value in params.items()}
    return logits, params


def load_tokenizer(model_tag: str, **kwargs: Any) -> SlowBytes:
    return SlowBytes()
