"""A model file for tests: a tiktoken encoding of bytes, as it is, and a model whose vocabulary is padded beyond it.

The tag selects the logits: ``bigram``, or ``recite``, which generates ids that the encoding does not have.
"""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import tiktoken

VOCABULARY = 300
END = 257
RECITED = [ord("o"), 290, ord("n"), 256, ord("e"), 299, END]
"""What ``recite`` generates, with two ids beyond the encoding, and one within that it does not use."""


def load_tokenizer(model_tag: str, **kwargs: Any) -> Any:
    ranks = {bytes([byte]): byte for byte in range(256)}
    return tiktoken.Encoding("bytes", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": END})


def load_model(model_tag: str, **kwargs: Any) -> Any:
    if model_tag == "recite":
        following = dict(pairwise(RECITED)) | {ord(":"): RECITED[0]}
        table = jnp.zeros(VOCABULARY, jnp.int32).at[jnp.array(list(following))].set(jnp.array(list(following.values())))
        return lambda params, tokens: jax.nn.one_hot(params[tokens], VOCABULARY), table
    table = jax.random.normal(jax.random.key(0), (VOCABULARY, VOCABULARY))
    masked = jnp.arange(VOCABULARY) == ord("#")
    return lambda params, tokens: jnp.where(masked, -jnp.inf, params[tokens]), table
