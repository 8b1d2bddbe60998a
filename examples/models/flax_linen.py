"""A Flax Linen model from an Orbax checkpoint; run it with ``--model_args model_tag=DIRECTORY,api=…``.

A causal transformer with rotary positions, which takes positions as an input. This writes a checkpoint of random
weights::

    python examples/models/flax_linen.py /tmp/linen
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes

LAYERS, WIDTH, HEADS = 2, 64, 4

# --- The model, as it is trained --------------------------------------------------------------------------------------


def rotate(x, positions):
    """Apply rotary positions (Su et al., 2021, arXiv:2104.09864) to x [b, t, heads, width] at int32[b, t]."""
    first, second = jnp.split(x, 2, axis=-1)
    frequencies = 10_000.0 ** (-jnp.arange(first.shape[-1]) / first.shape[-1])
    angles = positions[:, :, None, None] * frequencies
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, positions, deterministic):
        normed = nn.RMSNorm()(x)
        queries, keys, values = (nn.DenseGeneral((HEADS, WIDTH // HEADS), name=name)(normed) for name in "qkv")
        mask = nn.make_causal_mask(positions)
        attended = nn.dot_product_attention(rotate(queries, positions), rotate(keys, positions), values, mask=mask)
        attended = nn.DenseGeneral(WIDTH, axis=(-2, -1), name="o")(attended)
        x = x + nn.Dropout(0.1)(attended, deterministic=deterministic)
        mlp = nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.RMSNorm()(x))))
        return x + nn.Dropout(0.1)(mlp, deterministic=deterministic)


class Transformer(nn.Module):
    def setup(self):
        self.embedding = nn.Embed(VOCABULARY, WIDTH)
        self.blocks = [Block() for _ in range(LAYERS)]
        self.norm = nn.RMSNorm()
        self.head = nn.Dense(VOCABULARY, use_bias=False)

    def hidden(self, tokens, positions, deterministic):
        """Return hidden states [b, t, d] of tokens and positions int32[b, t]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, positions, deterministic)
        return self.norm(x)

    def unembed(self, x):
        """Return logits [..., v] of hidden states [..., d]."""
        return self.head(x)

    def __call__(self, tokens, positions, deterministic):
        return self.unembed(self.hidden(tokens, positions, deterministic))


def initial(seed=0):
    """Return random weights, as at the start of training."""
    tokens = jnp.zeros((1, 8), jnp.int32)
    return Transformer().init(jax.random.key(seed), tokens, jnp.arange(8)[None], deterministic=True)


def save(directory, params):
    """Write an Orbax checkpoint, as at the end of training."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(directory).resolve(), params)


# --- What birdie-zmq calls --------------------------------------------------------------------------------------------


def load_model(model_tag, **keywords):
    """Return the model; the tag is the directory of its checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(Path(model_tag).resolve(), jax.eval_shape(initial))

    def hidden(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)  # padding comes last
        return Transformer().apply(params, tokens, positions, deterministic=True, method="hidden")

    def unembed(params, x):
        return Transformer().apply(params, x, method="unembed")

    return Model(params=params, hidden=hidden, unembed=unembed, max_length=1024)


def load_tokenizer(model_tag, **keywords):
    """Return its tokenizer."""
    return Bytes()


if __name__ == "__main__":
    save(sys.argv[1], initial())
