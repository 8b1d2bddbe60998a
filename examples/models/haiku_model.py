"""A Haiku model that takes segment ids; run it with ``--model_args model_tag=haiku,init_seed=1,api=…``.

A causal transformer with learned positions and random weights.
"""

import haiku as hk
import jax
import jax.numpy as jnp

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes

LAYERS, WIDTH, HEADS, LENGTH = 2, 64, 4, 512

# --- The model, as it is trained --------------------------------------------------------------------------------------


def forward(tokens, segment_ids, is_training=True):
    """Return logits [b, t, v] of tokens int32[b, t]; in training rows are packed, and tokens attend to their own segment."""
    length = tokens.shape[1]
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    mask = jnp.tril(jnp.ones((length, length), bool)) & same
    initial = hk.initializers.VarianceScaling(1.0)

    def norm(x):
        return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(x)

    def dropout(x):
        return hk.dropout(hk.next_rng_key(), 0.1, x) if is_training else x

    x = hk.Embed(VOCABULARY, WIDTH)(tokens) + hk.Embed(LENGTH, WIDTH, name="positions")(jnp.arange(length))
    for _ in range(LAYERS):
        normed = norm(x)
        x = x + dropout(hk.MultiHeadAttention(HEADS, WIDTH // HEADS, w_init=initial)(normed, normed, normed, mask))
        x = x + dropout(hk.Linear(WIDTH)(jax.nn.gelu(hk.Linear(4 * WIDTH)(norm(x)))))
    return hk.Linear(VOCABULARY, with_bias=False, name="head")(norm(x))


# --- What birdie-zmq calls --------------------------------------------------------------------------------------------


def load_model(model_tag, init_seed=0, **keywords):
    """Return the model; ``init_seed=`` of --model_args selects the weights, and the tag is ignored."""
    model = hk.without_apply_rng(hk.transform(lambda *x: forward(*x, is_training=False)))

    def logits(params, tokens):
        return model.apply(params, tokens, jnp.ones_like(tokens))  # a row is one segment

    row = jnp.zeros((1, 8), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(init_seed), row, row)
    return Model(params=params, logits=logits, max_length=LENGTH)


def load_tokenizer(model_tag, **keywords):
    """Return its tokenizer."""
    return Bytes()
