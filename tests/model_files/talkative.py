"""A model file for tests whose errors all repeat the request: the first letter of a text selects the error."""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

VOCABULARY = 258
RAISES, NAN, ABORTS = b"#%~"


class Bytes:
    """A tokenizer with one token per byte of UTF-8."""

    bos_token_id = 256
    eos_token_id = 257
    model_max_length = 128

    def encode(self, text: str) -> Any:
        if text.startswith("!"):
            raise ValueError(f"cannot read {text}")
        if text.startswith("="):
            return text
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        raise ValueError(f"cannot write {'a' * len(ids)}")

    def apply_chat_template(self, conversation: Any, **keywords: Any) -> str:
        raise ValueError(f"cannot render {conversation}")


def load_model(model_tag: str, **kwargs: Any) -> Any:
    return logits


def logits(tokens: npt.NDArray[np.int32]) -> Any:
    rows = np.asarray(tokens)
    if (rows == ABORTS).any():
        os.abort()
    if (rows == RAISES).any():
        raise RuntimeError(f"cannot compute {bytes(int(token) % 256 for token in rows.ravel()).decode()}")
    # The most likely token is always an "a", so generation never ends by EOS.
    return jnp.full((*rows.shape, VOCABULARY), jnp.nan if (rows == NAN).any() else 0.0).at[..., ord("a")].add(1.0)


def load_tokenizer(model_tag: str, **kwargs: Any) -> Bytes:
    return Bytes()
