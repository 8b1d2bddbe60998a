"""A model file for tests of failures: the tag selects what fails."""

from typing import Any

import jax.numpy as jnp

BOS, EOS = 256, 257


class Bytes:
    """A tokenizer with one token per byte of UTF-8."""

    bos_token_id = BOS
    eos_token_id = EOS

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class WithoutSpecialTokens(Bytes):
    """A tokenizer without BOS and EOS."""

    bos_token_id = None  # type: ignore[assignment]
    eos_token_id = None  # type: ignore[assignment]


class WithoutDecode:
    """A tokenizer without decode."""

    bos_token_id = BOS

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def load_weights(path: str) -> Any:
    raise OSError(f"no weights at {path}")


def load_model(model_tag: str, **kwargs: Any) -> Any:
    match model_tag:
        case "raises":
            return load_weights("/nowhere")
        case "nothing":
            return None
        case "flat":
            return lambda tokens: jnp.zeros((tokens.shape[0], 258))
        case "small-vocabulary":
            return lambda tokens: jnp.zeros((*tokens.shape, 100))
        case "nan":
            return lambda tokens: jnp.full((*tokens.shape, 258), jnp.nan)
        case "explodes":
            return explode, {"weight": jnp.ones(1)}
        case _:
            return lambda tokens: jnp.zeros((*tokens.shape, 258))


def explode(params: Any, tokens: Any) -> Any:
    if tokens.shape[0] > 1:
        raise RuntimeError("the model's own function gave up")
    return jnp.zeros((*tokens.shape, 258)) * params["weight"]


def load_tokenizer(model_tag: str, **kwargs: Any) -> Any:
    match model_tag:
        case "no-decode":
            return WithoutDecode()
        case "no-special-tokens":
            return WithoutSpecialTokens()
    return Bytes()
