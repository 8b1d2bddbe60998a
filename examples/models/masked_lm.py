"""A masked language model, whose loss is its own: a page for ``--model_args model_tag=masked,api=…``.

It sees the whole text but for one token, which it guesses. A continuation's score is the pseudo-log-likelihood (Salazar
et al., 2020, arXiv:1910.14659): the sum over its tokens of the log-probability of each where it alone is masked. Its
weights are random: it shows what a page gives, and knows nothing.
"""

import jax
import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes
from masked_transformer import initial, read, summed

MOST_TOKENS = 256
MASK = VOCABULARY


# --- What birdie-zmq needs --------------------------------------------------------------------------------------------


def score(params, input_ids, label_ids, loss_mask):
    """The pseudo-log-likelihood float[b] of each row's continuation, and whether each guess is right, bool[b]."""
    # The model reads the last token as well, which `input_ids` lacks.
    tokens = jnp.concatenate([input_ids[:, :1], label_ids], axis=1)
    places = jnp.pad(loss_mask, ((0, 0), (1, 0)))
    at = jnp.arange(tokens.shape[1])
    last = jnp.max(jnp.where(places == 1, at, 0), axis=1)
    sees = jnp.broadcast_to((at <= last[:, None])[:, None], (*tokens.shape, len(at)))

    def at_place(place):
        masked = jnp.where(at == place, MASK, tokens)
        return read(params, masked, sees)[:, place] @ params["head"]

    logits = jax.lax.map(at_place, at)  # one forward a place; a real page would take only those that count
    return summed(jnp.moveaxis(logits, 0, 1), tokens, places)


def load_model(model_tag, **keywords):
    """The model; the tag and the keywords of --model_args choose nothing here."""
    params = initial(VOCABULARY + 1, MOST_TOKENS + 1, seed=0)
    return Model(params=params, score=score, vocab_size=VOCABULARY, max_length=MOST_TOKENS)


def load_tokenizer(model_tag, **keywords):
    """The tokenizer that goes with it."""
    return Bytes()
