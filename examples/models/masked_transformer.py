"""A small transformer with an explicit attention mask, shared by the examples with a `score` of their own."""

import jax
import jax.numpy as jnp
import numpy as np

LAYERS, WIDTH, HEADS = 2, 64, 4


def init_params(vocabulary, max_length, seed, cross_attention=False):
    """Return random weights, with `cross_attention` to the hidden states of another transformer if requested."""
    random = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(random.normal(scale=1 / 8, size=shape), jnp.float32)

    def layer():
        names = ["attention", "cross_attention"] if cross_attention else ["attention"]
        projections = {name: array(4, WIDTH, WIDTH) for name in names}
        return {**projections, "up": array(WIDTH, 4 * WIDTH), "down": array(4 * WIDTH, WIDTH)}

    return {
        "embedding": array(vocabulary, WIDTH),
        "positions": array(max_length, WIDTH),
        "layers": [layer() for _ in range(LAYERS)],
        "head": array(WIDTH, vocabulary),
    }


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def attend(weights, x, source, mask):
    """Attend from x [b, t, d] to `source` [b, s, d] where mask bool[b, t, s] is true."""
    query, key, value, output = weights

    def heads(y):
        return y.reshape(*y.shape[:2], HEADS, WIDTH // HEADS)

    mixed = jax.nn.dot_product_attention(
        heads(x @ query), heads(source @ key), heads(source @ value), mask=mask[:, None]
    )
    return mixed.reshape(x.shape) @ output


def forward(params, tokens, mask, memory=None, memory_mask=None):
    """Return hidden states [b, t, d] of tokens int32[b, t]; position i attends to position j where ``mask[b, i, j]``."""
    x = params["embedding"][tokens] + params["positions"][: tokens.shape[1]]
    for layer in params["layers"]:
        x = x + attend(layer["attention"], norm(x), norm(x), mask)
        if memory is not None:
            x = x + attend(layer["cross_attention"], norm(x), memory, memory_mask)
        x = x + jax.nn.gelu(norm(x) @ layer["up"]) @ layer["down"]
    return norm(x)


def sum_scores(logits, label_ids, loss_mask):
    """Sum the log-probabilities of labels under logits [b, t, v] where loss_mask int[b, t] is 1.

    Returns:
        The sum float[b], and whether all of these labels are the most likely ones, bool[b].
    """
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    label_scores = jnp.take_along_axis(scores, label_ids[..., None], axis=-1)[..., 0]
    is_greedy = (scores.argmax(-1) == label_ids) | (loss_mask == 0)
    return (label_scores * loss_mask).sum(-1), is_greedy.all(-1)
