"""Evaluate a Llama while Tunix trains it: ``python examples/trainers/tunix_training.py``, or with ``--worker FOLDER``.

Without the option the training process evaluates. With it, a worker in another process does, while training goes on: it
reads the params as Orbax saves them. ``--python`` names the Python of an environment with birdie-zmq, if this one has only
what Tunix needs.
"""

import argparse
import itertools
import json
import pathlib
import shutil
import sys

import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from demo_text import EVALUATED, OPTIONS, TASKS, TOKENIZER, VOCABULARY, log, rows
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput
from tunix.sft.utils import build_positions_from_mask, make_causal_attn_mask

from birdie_zmq import Model
from birdie_zmq.training import InProcessEvaluation, TunixHooks, WorkerEvaluation

ROWS, LENGTH, STEPS, EVERY = 8, 128, 40, 20
SIZES = ModelConfig(
    num_layers=2,
    vocab_size=VOCABULARY,
    embed_dim=64,
    hidden_dim=128,
    num_heads=4,
    head_dim=16,
    num_kv_heads=2,
    rope_theta=1_000_000,
    norm_eps=1e-6,
)
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
}
"""The same sizes as a Hugging Face configuration, which describes a checkpoint of Tunix."""


def model_input(example):
    """Return the arguments of Tunix's loss."""
    return {
        "input_tokens": example.input_tokens,
        "input_mask": example.input_mask,
        "positions": build_positions_from_mask(example.input_mask),
        "attention_mask": make_causal_attn_mask(example.input_mask),
    }


def train(model, evaluate):
    """Train, and call `evaluate` with each step and the model."""
    trainer = PeftTrainer(model, optax.adamw(3e-3), TrainingConfig(eval_every_n_steps=STEPS, max_steps=STEPS))
    trainer.with_gen_model_input_fn(model_input)
    trainer.with_training_hooks(TunixHooks(evaluate))
    batches = itertools.islice(rows(ROWS, LENGTH), STEPS)
    trainer.train([TrainingInput(input_tokens=tokens, input_mask=tokens >= 0) for tokens in batches])


def evaluate_here(model):
    """Train, and evaluate in this process."""
    from lm_eval.tasks import TaskManager

    import birdie_zmq.models
    from harness_model import BirdieZMQ

    graphdef, params = nnx.split(model)

    def logits(params, tokens):
        mask = jnp.ones(tokens.shape, bool)
        model = nnx.merge(graphdef, params)
        return model(tokens, build_positions_from_mask(mask), None, make_causal_attn_mask(mask))[0]

    tasks = TaskManager(include_path=str(TASKS), include_defaults=False)
    arguments = {"tasks": ["demo_rolling"], "task_manager": tasks, "limit": EVALUATED, "bootstrap_iters": 0}
    given = Model(params=params, logits=logits, max_length=LENGTH)
    with BirdieZMQ(model=given, tokenizer=birdie_zmq.models.load_tokenizer("demo")) as lm:
        evaluate = InProcessEvaluation(lm, log, every=EVERY, **arguments)
        train(model, lambda step, model: evaluate(step, nnx.state(model)))


def evaluate_in_a_worker(model, folder, python):
    """Train, and evaluate in other processes; checkpoints and results are in a folder."""
    with WorkerEvaluation(pathlib.Path(folder), save, log, OPTIONS, every=EVERY, python=python) as evaluate:
        train(model, evaluate)


def save(folder, model):
    """Write the params, with the configuration and the tokenizer beside them."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, nnx.state(model, nnx.Param), force=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", metavar="FOLDER")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    llama = Llama3(SIZES, rngs=nnx.Rngs(0))
    if options.worker is None:
        evaluate_here(llama)
    else:
        evaluate_in_a_worker(llama, options.worker, options.python)
