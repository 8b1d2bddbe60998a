"""Evaluate a Flax NNX model while Optax trains it: ``python examples/models/nnx_training.py``, or with ``--worker``.

Without the option the training process evaluates. With it, a worker in another process does, while training goes on. That
worker loads each checkpoint with the functions at the end of this file.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax_nnx import LENGTH, Transformer
from lm_eval.tasks import TaskManager

from birdie_zmq import Model
from birdie_zmq.training import InProcessEvaluation, WorkerEvaluation
from byte_tokenizer import Bytes
from harness_model import BirdieZMQ

TASKS = pathlib.Path(__file__).parents[1] / "tasks"
ROWS, WINDOW, STEPS, EVERY = 16, 96, 100, 50
EVALUATED = 10  # the first documents of the task


def text():
    """Return the bytes int32[n] of the stories that are not evaluated."""
    lines = (TASKS / "data" / "demo_rolling.jsonl").read_text().splitlines()[EVALUATED:]
    return np.frombuffer("\n".join(json.loads(line)["text"] for line in lines).encode(), np.uint8).astype(np.int32)


def loss(model, tokens):
    """Return the mean negative log-likelihood of a token, in nats."""
    inputs = tokens[:, :-1]
    logits = model(inputs, nnx.make_causal_mask(inputs, dtype=bool))
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@nnx.jit
def train_step(model, optimizer, tokens):
    """Take one step."""
    value, gradients = nnx.value_and_grad(loss)(model, tokens)
    optimizer.update(model, gradients)
    return value


def train(evaluate):
    """Train, and call `evaluate` with each step and the state of the model."""
    model = Transformer(nnx.Rngs(0))
    model.eval()  # no dropout: the model is small
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
    data, random = text(), np.random.default_rng(0)
    for step in range(1, STEPS + 1):
        starts = random.integers(0, len(data) - WINDOW, ROWS)
        train_step(model, optimizer, jnp.asarray(np.stack([data[b : b + WINDOW] for b in starts])))
        evaluate(step, nnx.state(model))


def log(step, metrics):
    """Stand for a tracker, such as ``wandb.log(metrics, step=step)``."""
    print(f"step {step}: byte_perplexity {metrics['demo_rolling/byte_perplexity']:.2f}", flush=True)


def train_and_evaluate_here():
    """Evaluate in this process."""
    tasks = TaskManager(include_path=str(TASKS), include_defaults=False)
    with BirdieZMQ(model=load_model("untrained"), tokenizer=Bytes()) as lm:
        arguments = {"tasks": ["demo_rolling"], "task_manager": tasks, "limit": EVALUATED, "bootstrap_iters": 0}
        train(InProcessEvaluation(lm, log, every=EVERY, **arguments))


def train_and_evaluate_in_a_worker(folder):
    """Evaluate in other processes; checkpoints and results are in a folder."""
    options = ["--model_args", f"api={__file__}", "--any-format", "--device", "cpu"]
    options += ["--tasks", "demo_rolling", "--include_path", str(TASKS), "--limit", str(EVALUATED)]
    with WorkerEvaluation(pathlib.Path(folder), save, log, options, every=EVERY) as evaluate:
        train(evaluate)


# --- The checkpoints --------------------------------------------------------------------------------------------------


def save(folder, state):
    """Write the params of a state, in the order of its tree, without its random generators."""
    np.savez(folder / "state.npz", *jax.tree.leaves(nnx.filter_state(state, nnx.Param)))


# --- What birdie-zmq calls --------------------------------------------------------------------------------------------


def load_model(model_tag, **keywords):
    """Return the model with the weights of a checkpoint, or with random weights for the tag ``untrained``."""
    model = Transformer(nnx.Rngs(0))
    model.eval()
    if model_tag != "untrained":
        leaves, tree = jax.tree.flatten(nnx.state(model, nnx.Param))
        with np.load(pathlib.Path(model_tag) / "state.npz") as stored:
            nnx.update(model, jax.tree.unflatten(tree, [stored[f"arr_{i}"] for i in range(len(leaves))]))
    graphdef, params = nnx.split(model)

    def logits(params, tokens):
        return nnx.merge(graphdef, params)(tokens, nnx.make_causal_mask(tokens, dtype=bool))

    return Model(params=params, logits=logits, max_length=LENGTH)


def load_tokenizer(model_tag, **keywords):
    """Return its tokenizer."""
    return Bytes()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        train_and_evaluate_in_a_worker(sys.argv[2])
    else:
        train_and_evaluate_here()
