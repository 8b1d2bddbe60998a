"""An encoder and a decoder: a page for ``--model_args model_tag=translator,api=…``.

The encoder reads the context in both directions, the decoder says the continuation. `score` is given both in one row,
and takes them apart by `loss_mask`. Its weights are random: it shows what a page gives, and knows nothing.
"""

import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import BOS, VOCABULARY, Bytes
from masked_transformer import initial, read, summed

MOST_TOKENS = 1024


def apart(input_ids, label_ids, loss_mask):
    """A row's context and continuation, each from the left on.

    Returns:
        Where the context is, bool[b, t], in `input_ids`; and for the continuation what the decoder reads int32[b, t],
        which begins with BOS, what it is to say int32[b, t], and where that counts int32[b, t].
    """
    at = jnp.arange(input_ids.shape[1])
    first = loss_mask.argmax(axis=1)[:, None]
    says = jnp.take_along_axis(label_ids, jnp.minimum(first + at, at[-1]), axis=1)
    counts = (at < loss_mask.sum(axis=1, keepdims=True)).astype(jnp.int32)
    reads = jnp.concatenate([jnp.full_like(says[:, :1], BOS), says[:, :-1]], axis=1)
    return at <= first, reads, says, counts


# --- What birdie-zmq needs --------------------------------------------------------------------------------------------


def score(params, input_ids, label_ids, loss_mask):
    """The log-likelihood float[b] of each row's continuation, and whether it is the most likely one, bool[b]."""
    batch, length = input_ids.shape
    is_context, reads, says, counts = apart(input_ids, label_ids, loss_mask)
    sees_context = jnp.broadcast_to(is_context[:, None], (batch, length, length))
    memory = read(params["encoder"], input_ids, sees_context)
    causal = jnp.broadcast_to(jnp.tri(length, dtype=bool), (batch, length, length))
    hidden = read(params["decoder"], reads, causal, memory, sees_context)
    return summed(hidden @ params["decoder"]["head"], says, counts)


def load_model(model_tag, **keywords):
    """The model; the tag and the keywords of --model_args choose nothing here."""
    params = {
        "encoder": initial(VOCABULARY, MOST_TOKENS, seed=0),
        "decoder": initial(VOCABULARY, MOST_TOKENS, seed=1, crosses=True),
    }
    return Model(params=params, score=score, vocab_size=VOCABULARY, max_length=MOST_TOKENS)


def load_tokenizer(model_tag, **keywords):
    """The tokenizer that goes with it."""
    return Bytes()
