"""A masked language model with its own scoring; run it with ``--model_args model_tag=masked,api=…``.

It predicts one masked token from all others. A continuation's score is the pseudo-log-likelihood (Salazar et al., 2020,
arXiv:1910.14659): the sum over its tokens of the log-probability of each with only that token masked. The weights are
random.
"""

import jax
import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes
from masked_transformer import forward, init_params, sum_scores

MAX_LENGTH = 256
MASK = VOCABULARY


# --- What birdie-zmq calls --------------------------------------------------------------------------------------------


def score(params, input_ids, label_ids, loss_mask):
    """Return the pseudo-log-likelihood float[b] of each row's continuation, and whether every token is predicted, bool[b]."""
    # The model also attends to the last token, which `input_ids` lacks.
    tokens = jnp.concatenate([input_ids[:, :1], label_ids], axis=1)
    scored = jnp.pad(loss_mask, ((0, 0), (1, 0)))
    at = jnp.arange(tokens.shape[1])
    last = jnp.max(jnp.where(scored == 1, at, 0), axis=1)
    mask = jnp.broadcast_to((at <= last[:, None])[:, None], (*tokens.shape, len(at)))

    def logits_at(position):
        masked = jnp.where(at == position, MASK, tokens)
        return forward(params, masked, mask)[:, position] @ params["head"]

    logits = jax.lax.map(logits_at, at)  # one pass per position; a real model would compute only the scored ones
    return sum_scores(jnp.moveaxis(logits, 0, 1), tokens, scored)


def load_model(model_tag, **keywords):
    """Return the model; it has no arguments and ignores the tag."""
    params = init_params(VOCABULARY + 1, MAX_LENGTH + 1, seed=0)
    return Model(params=params, score=score, vocab_size=VOCABULARY, max_length=MAX_LENGTH)


def load_tokenizer(model_tag, **keywords):
    """Return its tokenizer."""
    return Bytes()
