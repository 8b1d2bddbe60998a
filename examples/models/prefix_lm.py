"""A prefix language model, which reads the context in both directions: a page for ``--model_args model_tag=prefix,api=…``.

Positions of the context see all of it; those of the continuation see the context and what stands before them (Raffel et
al., 2020, arXiv:1910.10683, figure 4). A longer context changes every position, so such a model gives `score`, and not
`logits`: as a causal model it would give other answers. Its weights are random: it shows what a page gives.
"""

import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes
from masked_transformer import initial, read, summed

MOST_TOKENS = 1024


def visible(loss_mask):
    """bool[b, t, t], who sees whom: everybody what is before him and the context."""
    at = jnp.arange(loss_mask.shape[1])
    # The first position that counts is the last one of the context: what it predicts is the first of the continuation.
    context_length = loss_mask.argmax(axis=1) + 1
    return (at[None, :] <= at[:, None]) | (at[None, None, :] < context_length[:, None, None])


# --- What birdie-zmq needs --------------------------------------------------------------------------------------------


def score(params, input_ids, label_ids, loss_mask):
    """The log-likelihood float[b] of each row's continuation, and whether it is the most likely one, bool[b]."""
    hidden = read(params, input_ids, visible(loss_mask))
    return summed(hidden @ params["head"], label_ids, loss_mask)


def load_model(model_tag, **keywords):
    """The model; the tag and the keywords of --model_args choose nothing here."""
    params = initial(VOCABULARY, MOST_TOKENS, seed=0)
    return Model(params=params, score=score, vocab_size=VOCABULARY, max_length=MOST_TOKENS)


def load_tokenizer(model_tag, **keywords):
    """The tokenizer that goes with it."""
    return Bytes()
