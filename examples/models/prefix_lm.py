"""A prefix language model, bidirectional over the context; run it with ``--model_args model_tag=prefix,api=…``.

Positions of the context attend to all of it; those of the continuation attend to the context and to the positions
before them (Raffel et al., 2020, arXiv:1910.10683, figure 4). A longer context changes every position, so such a model
provides `score` instead of `logits`: scored as a causal model it would give other answers. The weights are random.
"""

import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes
from masked_transformer import forward, init_params, sum_scores

MAX_LENGTH = 1024


def attention_mask(loss_mask):
    """Return bool[b, t, t]: each position attends to the context and to the positions before it."""
    at = jnp.arange(loss_mask.shape[1])
    # The first position with a label is the last one of the context: it predicts the first token of the continuation.
    context_length = loss_mask.argmax(axis=1) + 1
    return (at[None, :] <= at[:, None]) | (at[None, None, :] < context_length[:, None, None])


# --- What birdie-zmq calls --------------------------------------------------------------------------------------------


def score(params, input_ids, label_ids, loss_mask):
    """Return the log-likelihood float[b] of each row's continuation, and whether it is the greedy one, bool[b]."""
    hidden = forward(params, input_ids, attention_mask(loss_mask))
    return sum_scores(hidden @ params["head"], label_ids, loss_mask)


def load_model(model_tag, **keywords):
    """Return the model; it has no arguments and ignores the tag."""
    params = init_params(VOCABULARY, MAX_LENGTH, seed=0)
    return Model(params=params, score=score, vocab_size=VOCABULARY, max_length=MAX_LENGTH)


def load_tokenizer(model_tag, **keywords):
    """Return its tokenizer."""
    return Bytes()
