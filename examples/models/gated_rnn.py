"""A recurrent model with a state for shared prefixes; run it with ``--model_args model_tag=rnn,api=…``.

A gated linear RNN (a forget gate for each channel, as in Qin et al., 2023, arXiv:2311.04823) with random weights.
Because it provides `init_state` and `extend`, the engine processes the few-shot examples of a task once for all
questions, and a question once for all of its answers: it copies the state.
"""

import jax
import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes

WIDTH = 64


def init_state(params, batch, capacity):
    """Return one vector per row, whatever its capacity."""
    return jnp.zeros((batch, WIDTH))


def extend(params, tokens, lengths, state):
    """Compute h = f * h + (1 - f) * x at each real token; padding does not change the state."""

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
    """Return logits [q, v] of hidden states [q, d]."""
    return hidden @ params["head"]


def load_model(model_tag, **keywords):
    """Return the model; it has no arguments and ignores the tag."""
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
    """Return its tokenizer."""
    return Bytes()
