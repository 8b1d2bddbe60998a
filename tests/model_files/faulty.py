"""A model file for tests of fault injection.

The tag selects what the model does at a text with a tilde: nothing ("steady"), abort its process ("aborts"), hang
("hangs"), or hang while it holds the GIL ("holds"). Further arguments slow it down, or end its process on request.
"""

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from birdie_zmq.models import decoder
from birdie_zmq.models.families.llama import plain_llama

VOCABULARY = 258
BOS, EOS = 256, 257
POISON = ord("~")


class Bytes:
    """A tokenizer with one token per byte of UTF-8, and two special tokens."""

    bos_token_id = BOS
    eos_token_id = EOS
    model_max_length = 128

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class Faulty:
    """A bare callable around jitted logits, with a fault.

    Args:
        kind: The fault at a text with a tilde.
        seed: Seed of the weights.
        pause_s: Minimum duration of each call.
        first_call_s: Additional duration of the first call of each shape, like a compilation.
        exit_file: If this file exists, it is deleted and the process exits with status 3.
    """

    def __init__(self, kind: str, seed: int, pause_s: float, first_call_s: float, exit_file: str | None) -> None:
        model = plain_llama(
            vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_length=128
        )
        params = model.init_params(jax.random.key(seed))
        jitted = jax.jit(lambda params, tokens: decoder.logits(model, params, tokens))
        self._logits: Callable[[Any], Any] = lambda tokens: jitted(params, tokens)
        self._kind = kind
        self._pause_s = pause_s
        self._first_call_s = first_call_s
        self._exit_file = exit_file
        self._shapes: set[tuple[int, ...]] = set()

    def __call__(self, tokens: npt.NDArray[np.int32]) -> Any:
        rows = np.asarray(tokens)
        time.sleep(self._pause_s)
        if rows.shape not in self._shapes:
            self._shapes.add(rows.shape)
            time.sleep(self._first_call_s)
        if self._exit_file is not None and Path(self._exit_file).exists():
            Path(self._exit_file).unlink()
            os._exit(3)
        if (rows == POISON).any():
            self._inject_fault()
        return self._logits(tokens)

    def _inject_fault(self) -> None:
        match self._kind:
            case "aborts":
                os.abort()
            case "hangs":
                time.sleep(1e6)
            case "holds":
                # Unlike ctypes.CDLL, this calls C without releasing the GIL.
                ctypes.PyDLL(None).sleep(1_000_000)


def load_model(
    model_tag: str,
    seed: int = 0,
    pause_s: float = 0.0,
    first_call_s: float = 0.0,
    exit_file: str | None = None,
) -> Any:
    return Faulty(model_tag, seed, pause_s, first_call_s, exit_file)


def load_tokenizer(model_tag: str, **kwargs: Any) -> Bytes:
    return Bytes()
