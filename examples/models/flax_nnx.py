"""A model of Flax NNX, which takes an attention mask: a page for ``lm_eval --model_args model_tag=nnx,api=…``.

A causal transformer with learned positions and random weights: it shows what a page gives, and knows nothing.
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
        """Logits [b, t, v] of tokens int32[b, t]; token i sees token j where mask bool[b, 1, t, t] says so."""
        x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


# --- What birdie-zmq needs --------------------------------------------------------------------------------------------


def load_model(model_tag, **keywords):
    """The model; the tag and the keywords of --model_args choose nothing here."""
    model = Transformer(nnx.Rngs(0))
    model.eval()  # no dropout
    graphdef, params = nnx.split(model)

    def logits(params, tokens):
        # Rows are padded on the right, where a causal mask lets no real token look.
        return nnx.merge(graphdef, params)(tokens, nnx.make_causal_mask(tokens, dtype=bool))

    return Model(params=params, logits=logits, max_length=LENGTH)


def load_tokenizer(model_tag, **keywords):
    """The tokenizer that goes with it."""
    return Bytes()
