"""A model of plain functions over a dict of arrays; run it with ``--model_args model_tag=plain,api=…``.

A causal transformer with rotary positions and random weights.
"""

import jax
import jax.numpy as jnp
import numpy as np

from birdie_zmq import Model
from byte_tokenizer import VOCABULARY, Bytes

LAYERS, WIDTH, HEADS = 2, 64, 4

# --- The model, as it is trained --------------------------------------------------------------------------------------


def initial(seed):
    """Return random weights. The weights of all layers are stacked in one array, whose first axis is the layer."""
    random = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(random.normal(scale=1 / 8, size=shape), jnp.float32)

    return {
        "embedding": array(VOCABULARY, WIDTH),
        "head": array(WIDTH, VOCABULARY),
        "blocks": {
            "queries_keys_values": array(LAYERS, WIDTH, 3, HEADS, WIDTH // HEADS),
            "attended": array(LAYERS, HEADS, WIDTH // HEADS, WIDTH),
            "up": array(LAYERS, WIDTH, 4 * WIDTH),
            "down": array(LAYERS, 4 * WIDTH, WIDTH),
        },
    }


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def rotate(x, positions):
    """Apply rotary positions (Su et al., 2021, arXiv:2104.09864) to x [b, t, heads, width] at int32[t]."""
    first, second = jnp.split(x, 2, axis=-1)
    frequencies = 10_000.0 ** (-jnp.arange(first.shape[-1]) / first.shape[-1])
    angles = positions[:, None, None] * frequencies
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def block(x, weights):
    """Apply one layer to x [b, t, d]."""
    positions = jnp.arange(x.shape[1])
    queries, keys, values = jnp.moveaxis(jnp.einsum("btd,dnhw->btnhw", norm(x), weights["queries_keys_values"]), 2, 0)
    attended = jax.nn.dot_product_attention(rotate(queries, positions), rotate(keys, positions), values, is_causal=True)
    x = x + jnp.einsum("bthw,hwd->btd", attended, weights["attended"])
    return x + jax.nn.gelu(norm(x) @ weights["up"]) @ weights["down"]


def backbone(params, tokens):
    """Return hidden states [b, t, d] of tokens int32[b, t]."""
    x, _ = jax.lax.scan(lambda x, weights: (block(x, weights), None), params["embedding"][tokens], params["blocks"])
    return norm(x)


def head(params, x):
    """Return logits [..., v] of hidden states [..., d]."""
    return x @ params["head"]


# --- What birdie-zmq calls --------------------------------------------------------------------------------------------


def load_model(model_tag, **keywords):
    """Return the model; it has no arguments and ignores the tag."""
    params = initial(seed=0)
    # The minimum is: return (lambda params, tokens: head(params, backbone(params, tokens))), params
    # With a separate head, it runs only at scored positions, and logits of whole rows never exist.
    return Model(params=params, hidden=backbone, unembed=head, max_length=1024)


def load_tokenizer(model_tag, **keywords):
    """Return its tokenizer."""
    return Bytes()
