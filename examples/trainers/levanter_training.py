"""Evaluate a Llama while Levanter trains it: ``python examples/trainers/levanter_training.py FOLDER --python PYTHON``.

A worker in another process evaluates, while training goes on: it reads the checkpoints as Levanter writes them. Levanter
and birdie-zmq need different versions of transformers, so the worker runs in an environment of its own, whose Python
``--python`` names.
"""

import argparse
import itertools
import json
import pathlib
import shutil

import haliax
import jax
import jax.numpy as jnp
import optax
from demo_text import OPTIONS, TOKENIZER, VOCABULARY, log, rows
from levanter import initialize
from levanter.checkpoint import save_checkpoint
from levanter.models.llama import LlamaConfig
from levanter.models.lm_model import LmExample
from levanter.tracker import NoopConfig
from levanter.trainer import Trainer, TrainerConfig

from birdie_zmq.training import LevanterHook, WorkerEvaluation

ROWS, LENGTH, STEPS, EVERY = 8, 128, 41, 20
SIZES = LlamaConfig(
    max_seq_len=LENGTH, hidden_dim=64, intermediate_dim=128, num_layers=2, num_heads=4, num_kv_heads=2, scan_layers=True
)


def batches(count):
    """Yield the given number of batches of examples."""
    batch, position = haliax.Axis("batch", ROWS), SIZES.max_Pos
    weight = LmExample.causal_loss_mask(position).astype(jnp.float32).broadcast_axis(batch)
    for tokens in itertools.islice(rows(ROWS, LENGTH), count):
        yield LmExample(tokens=haliax.named(jnp.asarray(tokens), (batch, position)), loss_weight=weight)


def train(folder, evaluate):
    """Train, and call `evaluate` with each step and the model."""
    config = TrainerConfig(
        id="example",
        num_train_steps=STEPS,
        train_batch_size=ROWS,
        tracker=NoopConfig(),
        log_dir=folder / "logs",
        log_jaxprs=False,
        log_xla_hlo=False,
        load_checkpoint=False,
        require_accelerator=False,
    )
    initialize(config)

    def loss(model, example, *, key=None):
        return model.compute_next_token_loss(example, key=key)

    vocabulary = haliax.Axis("vocab", VOCABULARY)
    with Trainer(config, optax.adamw(3e-3), loss, add_default_hooks=False) as trainer:
        trainer.add_hook(LevanterHook(evaluate), every=1)
        state = trainer.initial_state(
            jax.random.key(0), model_init=lambda: SIZES.build(vocabulary, key=jax.random.key(1))
        )
        trainer.train(state, batches(STEPS))


def save(folder, model):
    """Write a checkpoint, with the configuration and the tokenizer beside it."""
    save_checkpoint({"model": model}, 0, str(folder))
    (folder / "config.json").write_text(json.dumps(SIZES.to_hf_config(VOCABULARY).to_dict()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--python", required=True)
    options = parser.parse_args()
    with WorkerEvaluation(options.folder, save, log, OPTIONS, every=EVERY, python=options.python) as evaluation:
        train(options.folder, evaluation)
