"""Evaluate a model while it is trained, in the process that trains it: ``python examples/models/training_loop.py``.

A small recurrent model learns from the demo's texts. Every 50 steps lm_eval evaluates it: `BirdieZMQ` receives the model
and its tokenizer once, and `InProcessEvaluation` passes it only the updated weights, so nothing is compiled again.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.tasks import TaskManager

from birdie_zmq import Model
from birdie_zmq.training import InProcessEvaluation
from byte_tokenizer import VOCABULARY, Bytes
from gated_rnn import extend, init_state, load_model, unembed
from harness_model import BirdieZMQ

EXAMPLES = pathlib.Path(__file__).parents[1]

ROWS, LENGTH, RATE = 16, 96, 0.01
EVALUATED = 10  # the first documents of the task


def texts():
    """Return the bytes int32[n] of the stories that are not evaluated."""
    lines = (EXAMPLES / "tasks" / "data" / "demo_rolling.jsonl").read_text().splitlines()[EVALUATED:]
    text = "\n".join(json.loads(line)["text"] for line in lines)
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def loss(params, tokens):
    """Return the mean negative log-likelihood of a token, in nats."""
    lengths = jnp.full(len(tokens), tokens.shape[1] - 1)
    hidden, _ = extend(params, tokens[:, :-1], lengths, init_state(params, len(tokens), LENGTH))
    scores = jax.nn.log_softmax(unembed(params, hidden))
    return -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1).mean()


@jax.jit
def train(params, moments, tokens):
    """Take one step of RMSprop."""
    value, gradients = jax.value_and_grad(loss)(params, tokens)
    moments = jax.tree.map(lambda m, g: 0.95 * m + 0.05 * g * g, moments, gradients)
    params = jax.tree.map(lambda p, m, g: p - RATE * g / (jnp.sqrt(m) + 1e-6), params, moments, gradients)
    return params, moments, value


def main(steps=150, every=50):
    """Train, and evaluate before, during and after."""
    params = load_model("rnn").params
    moments = jax.tree.map(jnp.zeros_like, params)
    model = Model(params=params, init_state=init_state, extend=extend, unembed=unembed, vocab_size=VOCABULARY)
    tasks = TaskManager(include_path=str(EXAMPLES / "tasks"), include_defaults=False)
    data, random = texts(), np.random.default_rng(0)
    value = np.log(VOCABULARY)

    def log(step, metrics):  # a tracker, such as wandb.log(metrics, step=step)
        print(
            f"step {step}: loss {value:.3f} nats, byte_perplexity {metrics['demo_rolling/byte_perplexity']:.2f}",
            flush=True,
        )

    arguments = {"tasks": ["demo_rolling"], "task_manager": tasks, "limit": EVALUATED, "bootstrap_iters": 0}
    with BirdieZMQ(model=model, tokenizer=Bytes(), max_length=1024) as lm:
        evaluate = InProcessEvaluation(lm, log, every=every, **arguments)
        evaluate(0, params)
        for step in range(1, steps + 1):
            starts = random.integers(0, len(data) - LENGTH, ROWS)
            params, moments, value = train(params, moments, np.stack([data[b : b + LENGTH] for b in starts]))
            evaluate(step, params)


if __name__ == "__main__":
    main()
