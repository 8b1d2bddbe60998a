"""A Flax NNX model that takes an attention mask; run it with ``--model_args model_tag=nnx,api=…``.

A causal transformer with learned positions and random weights.
"""

import jax.numpy as jnp
from flax import nnx

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes

LAYERS, WIDTH, HEADS, LENGTH = 2, 64, 4, 512

# --- The model, as it is trained --------------------------------------------------------------------------------------


class Block(nnx.Module):
    def __init__(self, rngs):
        self.before_attention = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, dropout_rate=0.1, decode=False, rngs=rngs)
        self.before_mlp = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.dropout(self.attention(self.before_attention(x), mask=mask))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.before_mlp(x)))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embedding = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens, mask):
        """Return logits [b, t, v] of tokens int32[b, t]; token i attends to token j where mask bool[b, 1, t, t] is true."""
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


# --- What birdie-zmq calls --------------------------------------------------------------------------------------------


def load_model(model_tag, **keywords):
    """Return the model; it has no arguments and ignores the tag."""
    model = Transformer(nnx.Rngs(0))
    model.eval()  # no dropout
    graphdef, params = nnx.split(model)

    def logits(params, tokens):
        # Rows are padded on the right, so a causal mask keeps real tokens from attending to padding.
        return nnx.merge(graphdef, params)(tokens, nnx.make_causal_mask(tokens, dtype=bool))

    return Model(params=params, logits=logits, max_length=LENGTH)


def load_tokenizer(model_tag, **keywords):
    """Return its tokenizer."""
    return Bytes()
