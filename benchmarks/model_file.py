"""The model file of the benchmarks: a random decoder of about 100 million parameters with a byte tokenizer."""

from __future__ import annotations

from typing import Any

import jax

from birdie_zmq import Model
from birdie_zmq.models import decoder
from birdie_zmq.models.families.llama import plain_llama

CONFIG = plain_llama(vocab_size=32_000, d_model=640, n_layers=14, n_heads=10, n_kv_heads=10, d_ff=2_048, max_length=256)


class ByteTokenizer:
    """A tokenizer with one token per byte of UTF-8, and a BOS token."""

    bos_token_id = 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        """Return the text of byte tokens; other tokens are skipped."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def logits(params: Any, tokens: Any) -> Any:
    """Return logits of the random decoder."""
    return decoder.logits(CONFIG, params, tokens)


def load_model(model_tag: str, **keywords: Any) -> Model:
    """Return the random decoder for any tag."""
    del model_tag, keywords
    return Model(logits=logits, params=CONFIG.init_params(jax.random.key(0)), max_length=CONFIG.max_length)


def load_tokenizer(model_tag: str, **keywords: Any) -> ByteTokenizer:
    """Return the byte tokenizer for any tag."""
    del model_tag, keywords
    return ByteTokenizer()
