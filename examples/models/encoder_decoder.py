"""An encoder-decoder model; run it with ``--model_args model_tag=translator,api=…``.

The encoder attends to the context in both directions, and the decoder predicts the continuation. `score` receives both
in one row and splits them by `loss_mask`. The weights are random.
"""

import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import BOS, VOCABULARY, Bytes
from masked_transformer import forward, init_params, sum_scores

MAX_LENGTH = 1024


def split_rows(input_ids, label_ids, loss_mask):
    """Split each row into context and continuation, each aligned to the left.

    Returns:
        The mask of the context in `input_ids`, bool[b, t]; and for the continuation the inputs of the decoder,
        int32[b, t], which begin with BOS, its labels int32[b, t], and their mask int32[b, t].
    """
    at = jnp.arange(input_ids.shape[1])
    first = loss_mask.argmax(axis=1)[:, None]
    labels = jnp.take_along_axis(label_ids, jnp.minimum(first + at, at[-1]), axis=1)
    mask = (at < loss_mask.sum(axis=1, keepdims=True)).astype(jnp.int32)
    inputs = jnp.concatenate([jnp.full_like(labels[:, :1], BOS), labels[:, :-1]], axis=1)
    return at <= first, inputs, labels, mask


# --- What birdie-zmq calls --------------------------------------------------------------------------------------------


def score(params, input_ids, label_ids, loss_mask):
    """Return the log-likelihood float[b] of each row's continuation, and whether it is the greedy one, bool[b]."""
    batch, length = input_ids.shape
    is_context, inputs, labels, mask = split_rows(input_ids, label_ids, loss_mask)
    context_mask = jnp.broadcast_to(is_context[:, None], (batch, length, length))
    memory = forward(params["encoder"], input_ids, context_mask)
    causal = jnp.broadcast_to(jnp.tri(length, dtype=bool), (batch, length, length))
    hidden = forward(params["decoder"], inputs, causal, memory, context_mask)
    return sum_scores(hidden @ params["decoder"]["head"], labels, mask)


def load_model(model_tag, **keywords):
    """Return the model; it has no arguments and ignores the tag."""
    params = {
        "encoder": init_params(VOCABULARY, MAX_LENGTH, seed=0),
        "decoder": init_params(VOCABULARY, MAX_LENGTH, seed=1, cross_attention=True),
    }
    return Model(params=params, score=score, vocab_size=VOCABULARY, max_length=MAX_LENGTH)


def load_tokenizer(model_tag, **keywords):
    """Return its tokenizer."""
    return Bytes()
