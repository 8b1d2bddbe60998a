"""An Equinox model, written for one row and vmapped over the batch; run with ``--model_args model_tag=equinox,api=…``.

A causal transformer with learned positions and random weights.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes

LAYERS, WIDTH, HEADS, LENGTH = 2, 64, 4, 512

# --- The model, as it is trained --------------------------------------------------------------------------------------


class Block(eqx.Module):
    before_attention: eqx.nn.RMSNorm
    attention: eqx.nn.MultiheadAttention
    before_mlp: eqx.nn.RMSNorm
    mlp: eqx.nn.MLP
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        for_attention, for_mlp = jax.random.split(key)
        self.before_attention = eqx.nn.RMSNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=for_attention)
        self.before_mlp = eqx.nn.RMSNorm(WIDTH)
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 4 * WIDTH, depth=1, activation=jax.nn.gelu, key=for_mlp)
        self.dropout = eqx.nn.Dropout(0.1)

    def __call__(self, x, mask, key=None):
        for_attention, for_mlp = (None, None) if key is None else jax.random.split(key)
        normed = jax.vmap(self.before_attention)(x)
        x = x + self.dropout(self.attention(normed, normed, normed, mask), key=for_attention)
        return x + self.dropout(jax.vmap(self.mlp)(jax.vmap(self.before_mlp)(x)), key=for_mlp)


class Transformer(eqx.Module):
    embedding: eqx.nn.Embedding
    positions: eqx.nn.Embedding
    blocks: list[Block]
    norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, LAYERS + 3)
        self.embedding = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.positions = eqx.nn.Embedding(LENGTH, WIDTH, key=keys[1])
        self.blocks = [Block(key) for key in keys[3:]]
        self.norm = eqx.nn.RMSNorm(WIDTH)
        self.head = eqx.nn.Linear(WIDTH, VOCABULARY, use_bias=False, key=keys[2])

    def __call__(self, tokens, key=None):
        """Return logits [t, v] of one row of tokens int32[t]; the key is for dropout."""
        keys = [None] * LAYERS if key is None else jax.random.split(key, LAYERS)
        mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
        x = jax.vmap(self.embedding)(tokens) + self.positions.weight[: len(tokens)]
        for block, key in zip(self.blocks, keys, strict=True):
            x = block(x, mask, key)
        return jax.vmap(self.head)(jax.vmap(self.norm)(x))


# --- What birdie-zmq calls --------------------------------------------------------------------------------------------


def load_model(model_tag, **keywords):
    """Return the model; it has no arguments and ignores the tag."""
    model = eqx.nn.inference_mode(Transformer(jax.random.key(0)))  # no dropout
    params, static = eqx.partition(model, eqx.is_array)

    def logits(params, tokens):
        return jax.vmap(eqx.combine(params, static))(tokens)

    return Model(params=params, logits=logits, max_length=LENGTH)


def load_tokenizer(model_tag, **keywords):
    """Return its tokenizer."""
    return Bytes()
