"""A small transformer whose attention is told by a mask who sees whom: what the pages beside it share."""

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, WIDTH, HEADS = 2, 64, 4


def initial(vocabulary, most_tokens, seed, crosses=False):
    """Random weights; with `crosses`, its layers also look at the states of another transformer."""
    random = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(random.normal(scale=1 / 8, size=shape), jnp.float32)

    def layer():
        names = ["attention", "crossing"] if crosses else ["attention"]
        projections = {name: array(4, WIDTH, WIDTH) for name in names}
        return {**projections, "up": array(WIDTH, 4 * WIDTH), "down": array(4 * WIDTH, WIDTH)}

    return {
        "embedding": array(vocabulary, WIDTH),
        "positions": array(most_tokens, WIDTH),
        "layers": [layer() for _ in range(LAYERS)],
        "head": array(WIDTH, vocabulary),
    }


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def attend(weights, x, seen, mask):
    """What x [b, t, d] takes from `seen` [b, s, d] where mask bool[b, t, s] lets it."""
    query, key, value, output = weights

    def heads(y):
        return y.reshape(*y.shape[:2], HEADS, WIDTH // HEADS)

    taken = jax.nn.dot_product_attention(heads(x @ query), heads(seen @ key), heads(seen @ value), mask=mask[:, None])
    return taken.reshape(x.shape) @ output


def read(params, tokens, mask, memory=None, memory_mask=None):
    """Hidden states [b, t, d] of tokens int32[b, t], whose position i sees position j where ``mask[b, i, j]``."""
    x = params["embedding"][tokens] + params["positions"][: tokens.shape[1]]
    for layer in params["layers"]:
        x = x + attend(layer["attention"], norm(x), norm(x), mask)
        if memory is not None:
            x = x + attend(layer["crossing"], norm(x), memory, memory_mask)
        x = x + jax.nn.gelu(norm(x) @ layer["up"]) @ layer["down"]
    return norm(x)


def summed(logits, label_ids, loss_mask):
    """Of logits [b, t, v] at the positions where loss_mask int[b, t] is 1: the labels' log-probability, and if all lead."""
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    of_labels = jnp.take_along_axis(scores, label_ids[..., None], axis=-1)[..., 0]
    leads = (scores.argmax(-1) == label_ids) | (loss_mask == 0)
    return (of_labels * loss_mask).sum(-1), leads.all(-1)
