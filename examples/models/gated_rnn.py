"""A recurrent model whose shared beginnings are read once: a page for ``lm_eval --model_args model_tag=rnn,api=…``.

A gated linear RNN (a forget gate for each channel, as in Qin et al., 2023, arXiv:2311.04823), with random weights: it
shows what a page gives, and knows nothing. Because it gives `init_state` and `extend`, the few-shot examples of a task
are read once for all of its questions, and a question once for all of its answers: the engine copies the state.
"""

import jax
import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes

WIDTH = 64


def init_state(params, batch, capacity):
    """One vector a row, however much it has read."""
    return jnp.zeros((batch, WIDTH))


def extend(params, tokens, lengths, state):
    """h = f * h + (1 - f) * x at each real token; padding leaves the state as it is."""

    def step(state, scanned):
        x, real = scanned
        forget = jnp.where(real[:, None], jax.nn.sigmoid(x @ params["forget"]), 1.0)
        state = forget * state + (1 - forget) * jnp.tanh(x @ params["value"])
        return state, state

    real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    embedded = params["embedding"][tokens]
    state, hidden = jax.lax.scan(step, state, (embedded.swapaxes(0, 1), real.T))
    return hidden.swapaxes(0, 1), state


def unembed(params, hidden):
    """Logits [q, v] of hidden states [q, d]."""
    return hidden @ params["head"]


def load_model(model_tag, **keywords):
    """The model; the tag and the keywords of --model_args choose nothing here."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {
        "embedding": (VOCABULARY, WIDTH),
        "forget": (WIDTH, WIDTH),
        "value": (WIDTH, WIDTH),
        "head": (WIDTH, VOCABULARY),
    }
    params = {name: jax.random.normal(key, shape) / 8 for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    return Model(params=params, init_state=init_state, extend=extend, unembed=unembed, vocab_size=VOCABULARY)


def load_tokenizer(model_tag, **keywords):
    """The tokenizer that goes with it."""
    return Bytes()
