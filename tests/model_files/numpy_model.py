"""A model file for tests of `numpy_engine`: a small recurrent model over bytes, in NumPy.

The tag selects the form in which `load_model` returns it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from birdie_zmq import Model

VOCABULARY = 258
BOS, EOS = 256, 257
MAX_LENGTH = 64


class Bytes:
    """A tokenizer with one token per byte of UTF-8, and two special tokens."""

    bos_token_id = BOS
    eos_token_id = EOS
    model_max_length = MAX_LENGTH

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("latin-1")


def weights(seed: int = 0, width: int = 24) -> dict[str, npt.NDArray[np.float32]]:
    """Return random weights such that the next token depends on all tokens before it."""
    random = np.random.default_rng(seed)
    return {
        "embedding": random.normal(size=(VOCABULARY, width)).astype(np.float32),
        "mixing": random.normal(scale=width**-0.5, size=(width, width)).astype(np.float32),
        "head": random.normal(size=(width, VOCABULARY)).astype(np.float32),
    }


def hidden(params: Any, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Return the states [b, t, width] after tokens int32[b, t]."""
    inputs = params["embedding"][tokens]
    state = np.zeros_like(inputs[:, 0])
    states = []
    for position in range(tokens.shape[1]):
        state = np.tanh(inputs[:, position] + state @ params["mixing"])
        states.append(state)
    return np.stack(states, axis=1)


def unembed(params: Any, states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    result: npt.NDArray[np.float32] = states @ params["head"]
    return result


def logits(params: Any, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    return unembed(params, hidden(params, tokens))


def load_model(model_tag: str, seed: int = 0, **kwargs: Any) -> Any:
    params = weights(seed)
    match model_tag:
        case "pair":
            return logits, params
        case "callable":
            return lambda tokens: logits(params, tokens)
        case "parts":
            return Model(params=params, hidden=hidden, unembed=unembed)
        case "engine":  # raises an error whose text is the engine's name
            raise LookupError(os.environ["BIRDIE_ZMQ_ENGINE"])
        case "hungry":
            return hungry, params
    raise ValueError(f"these tests have no model {model_tag!r}")


def hungry(params: Any, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Compute logits, with memory for only a few rows."""
    if tokens.size > 256:
        raise MemoryError("too many tokens")
    return logits(params, tokens)


def load_tokenizer(model_tag: str, **kwargs: Any) -> Bytes:
    return Bytes()
