"""A model file for tests: a random decoder over bytes, whose size and seed are model_args.

The tag selects the form in which `load_model` returns it, or a failure.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp

from birdie_zmq import Model
from birdie_zmq.models import decoder
from birdie_zmq.models.families.llama import plain_llama

VOCABULARY = 258
BOS, EOS = 256, 257


class Bytes:
    """A tokenizer with one token per byte of UTF-8, and two special tokens."""

    bos_token_id = BOS
    eos_token_id = EOS
    model_max_length = 128

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class EchoTokenizer(Bytes):
    """A tokenizer that writes its own arguments before the decoded text."""

    model_max_length = 1024

    def __init__(self, keywords: dict[str, Any]) -> None:
        self._keywords = keywords

    def decode(self, ids: list[int]) -> str:
        return f"{self._keywords}" + super().decode(ids)


def load_model(model_tag: str, seed: int = 0, width: int = 32, **kwargs: Any) -> Any:
    model = plain_llama(
        vocab_size=VOCABULARY,
        d_model=width,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=2 * width,
        max_length=128,
    )
    params = model.init_params(jax.random.key(seed))

    def logits(params: Any, tokens: Any) -> Any:
        return decoder.logits(model, params, tokens)

    match model_tag.split("-")[0]:
        case "pair":
            return logits, params
        case "callable":
            jitted = jax.jit(logits)
            return lambda tokens: jitted(params, tokens)
        case "model":
            return Model(logits=logits, params=params, max_length=64)
        case "aborts":
            os.abort()
        case "echo":
            return Model(logits=recite(str(kwargs)), max_length=1024)
    raise ValueError(f"these tests have no model {model_tag!r}")


def recite(text: str) -> Any:
    """Return logits that continue the prefix token with a text and EOS, whatever the params."""
    tokens = jnp.array([*text.encode(), EOS])

    def logits(params: Any, rows: Any) -> Any:
        following = tokens[jnp.minimum(jnp.arange(rows.shape[1]), len(tokens) - 1)]
        return jnp.broadcast_to(jax.nn.one_hot(following, VOCABULARY), (*rows.shape, VOCABULARY))

    return logits


def load_tokenizer(model_tag: str, **kwargs: Any) -> Bytes:
    if model_tag == "echo":
        return EchoTokenizer(kwargs)
    return Bytes()
