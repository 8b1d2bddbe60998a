"""Trains a small Llama on the demo's text and saves checkpoints: ``python -m tests.chaos.small_run FOLDER``.

Checkpoints are written as trainers do: into a directory with a temporary name, which is renamed. One is written in place
instead, and stays half-written for a while.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tokenizers import Tokenizer

import birdie_zmq.models
from birdie_zmq.models.decoder import logits
from birdie_zmq.models.families.llama import plain_llama
from birdie_zmq.models.weight_map import Params
from birdie_zmq.models.weights import save_checkpoint
from examples.demo_model.demo_tasks import sample_tasks
from examples.demo_model.demo_text import BOS, EOS, Writer
from examples.demo_model.demo_world import sample_world

DEMO = Path(birdie_zmq.models.__file__).parent / "demo"
MODEL = plain_llama(vocab_size=1024, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=176, max_length=512)
DOCUMENTS, ROWS, LENGTH, RATE = 4000, 8, 96, 3e-3
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
HALF_WRITTEN_BYTES = 10_000


def token_stream() -> NDArray[np.int32]:
    """Return the tokens of the demo's text, in one row."""
    world = sample_world(7)
    writer = Writer(world, sample_tasks(world, 1).questions, random.Random(2))
    texts = [BOS + text + EOS for text in itertools.islice(writer.documents(), DOCUMENTS) if not text.startswith(BOS)]
    encoded = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode_batch(texts)
    return np.concatenate([np.array(each.ids, np.int32) for each in encoded])


def write(folder: Path, params: Params) -> None:
    """Write a whole checkpoint into a directory."""
    save_checkpoint(folder, MODEL, params)
    for name in TOKENIZER_FILES:
        shutil.copy(DEMO / name, folder / name)


class Trainer:
    """Trains and saves.

    Args:
        folder: The folder of the checkpoints.
        half_written: The step whose checkpoint is written in place, and completed six checkpoints later.
    """

    def __init__(self, folder: Path, half_written: int) -> None:
        self._folder = folder
        self._half_written = half_written
        self._rest: tuple[Path, bytes] | None = None

    def save(self, step: int, params: Params) -> None:
        """Save a checkpoint; the file system shows it under its final name when it is complete, except one."""
        final = self._folder / f"step_{step}"
        temporary = self._folder / f"step_{step}.tmp"
        write(temporary, params)
        if step == self._half_written:
            weights = temporary / "model.safetensors"
            content = weights.read_bytes()
            weights.write_bytes(content[:HALF_WRITTEN_BYTES])
            self._rest = final / "model.safetensors", content
        os.rename(temporary, final)  # noqa: PTH104 - as trainers do
        print(f"saved step {step}", flush=True)

    def complete(self) -> None:
        """Write the rest of the half-written checkpoint."""
        if self._rest is not None:
            path, content = self._rest
            with path.open("ab") as file:
                file.write(content[HALF_WRITTEN_BYTES:])
            self._rest = None
            print(f"completed {path.parent.name}", flush=True)


def main() -> int:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--every", type=int, default=25, metavar="STEPS")
    parser.add_argument("--half-written", type=int, default=-1, metavar="STEP")
    parser.add_argument("--pause", type=float, default=0.0, metavar="SECONDS", help="after each checkpoint")
    options = parser.parse_args()
    stream, chosen = token_stream(), np.random.default_rng(0)
    optimizer = optax.adamw(RATE)

    def loss(params: Params, window: jax.Array) -> jax.Array:
        scores = logits(MODEL, params, window[:, :-1])
        mean: jax.Array = optax.softmax_cross_entropy_with_integer_labels(scores, window[:, 1:]).mean()
        return mean

    @jax.jit
    def update(params: Params, state: optax.OptState, window: jax.Array) -> tuple[Params, optax.OptState, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, window)
        changes, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, changes), state, value

    params = MODEL.init_params(jax.random.key(3))
    state = optimizer.init(params)
    trainer = Trainer(options.folder, options.half_written)
    half_written_at = None
    for step in range(1, options.checkpoints * options.every + 1):
        starts = chosen.integers(0, len(stream) - LENGTH - 1, ROWS)
        window = stream[starts[:, None] + np.arange(LENGTH + 1)]
        params, state, value = update(params, state, jnp.asarray(window))
        if step % options.every == 0:
            print(f"step {step}: loss {value:.3f} nats", flush=True)
            if half_written_at is not None and step >= half_written_at + 6 * options.every:
                trainer.complete()
            trainer.save(step, params)
            half_written_at = step if step == options.half_written else half_written_at
            time.sleep(options.pause)
    trainer.complete()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
