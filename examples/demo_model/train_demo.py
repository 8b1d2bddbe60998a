"""Create the demo model and the data of its tasks: text, tokenizer, weights, held-out documents.

    python -m examples.demo_model.train_demo [--out birdie_zmq/models/demo] [--tasks examples/tasks/data]

This takes about 8 minutes on two CPU cores and 1 GB of memory. It requires optax in addition to the project's own
requirements, and jinja2 (which lm_eval installs). Text, tokenizer and documents are the same in every run. On one
machine so are the weights, up to the order in which threads add floats.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from examples.demo_model.demo_tasks import TaskData, sample_tasks
from examples.demo_model.demo_text import ASSISTANT, BOS, CHAT_TEMPLATE, EOS, PAD, SYSTEM, USER, Writer
from examples.demo_model.demo_world import sample_world

ROOT = Path(__file__).resolve().parent.parent.parent

from birdie_zmq.models.decoder import logits  # noqa: E402
from birdie_zmq.models.families.llama import plain_llama  # noqa: E402
from birdie_zmq.models.weight_map import Params  # noqa: E402
from birdie_zmq.models.weights import save_checkpoint  # noqa: E402

CONFIG = plain_llama(
    vocab_size=1024,
    d_model=128,
    n_layers=4,
    n_heads=4,
    n_kv_heads=2,
    d_ff=352,
    max_length=512,
    tied_head=True,
)
WORLD_SEED, TASKS_SEED, TEXT_SEED, WEIGHTS_SEED = 7, 1, 2, 3
DOCUMENTS = 60_000

# Rows, length and number of steps: short windows learn the facts cheaply, long ones then teach all positions.
PHASES = ((16, 128, 2800), (4, 512, 250))
PEAK_LEARNING_RATE = 3e-3
WARM_UP_STEPS = 100


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """Train byte-level BPE, which encodes any text without loss.

    Each digit is a token of its own, which helps with sums. The special tokens have the default ids of Hugging Face's
    LlamaConfig: 0 for padding, 1 for BOS and 2 for EOS.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=[PAD, BOS, EOS, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() != CONFIG.vocab_size:
        raise ValueError(f"the text gave {tokenizer.get_vocab_size()} tokens, not {CONFIG.vocab_size}")
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: list[str]) -> NDArray[np.int32]:
    """Return all documents in one row, each between <|bos|> and <|eos|> (a chat already has them)."""
    delimited = [text if text.startswith(BOS) else BOS + text + EOS for text in documents]
    ids = (encoding.ids for encoding in tokenizer.encode_batch(delimited))
    return np.fromiter(itertools.chain.from_iterable(ids), np.int32)


def windows(stream: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    """Yield the batches of all phases, int32 [rows, length + 1], from random positions in the stream.

    Windows start inside documents, so the model also learns text without <|bos|> before it, as prompts may be.
    """
    rng = np.random.default_rng(TEXT_SEED)
    for rows, length, steps in PHASES:
        for _ in range(steps):
            starts = rng.integers(0, len(stream) - length, rows)
            yield stream[starts[:, None] + np.arange(length + 1)[None]]


def loss(params: Params, window: jax.Array) -> jax.Array:
    """Return the mean cross-entropy in nats of the tokens after the first, window int32 [rows, length + 1]."""
    scores = logits(CONFIG, params, window[:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, window[:, 1:]))


def train(stream: NDArray[np.int32]) -> Params:
    """Train from random weights over all phases with AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101)."""
    steps = sum(phase_steps for *_, phase_steps in PHASES)
    schedule = optax.warmup_cosine_decay_schedule(0.0, PEAK_LEARNING_RATE, WARM_UP_STEPS, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    @jax.jit
    def update(params: Params, state: optax.OptState, window: jax.Array) -> tuple[Params, optax.OptState, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, window)
        changes, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, changes), state, value

    params = CONFIG.init_params(jax.random.key(WEIGHTS_SEED))
    state = optimizer.init(params)
    started = time.monotonic()
    for step, window in enumerate(windows(stream), start=1):
        params, state, value = update(params, state, jnp.asarray(window))
        if step % 100 == 0 or step == steps:
            print(f"step {step}/{steps} loss {value:.4f} {time.monotonic() - started:.0f} s", flush=True)
    return params


def write_model(directory: Path, params: Params, tokenizer: Tokenizer) -> None:
    """Write weights and tokenizer as a Hugging Face directory."""
    save_checkpoint(directory, CONFIG, params, "float16")
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    description = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": CONFIG.max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(description, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def write_tasks(directory: Path, tasks: TaskData) -> None:
    """Write one JSON Lines file for each split of a task."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, documents in tasks.files.items():
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "birdie_zmq" / "models" / "demo")
    parser.add_argument("--tasks", type=Path, default=ROOT / "examples" / "tasks" / "data")
    options = parser.parse_args()

    world = sample_world(WORLD_SEED)
    tasks = sample_tasks(world, TASKS_SEED)
    writer = Writer(world, tasks.questions, random.Random(TEXT_SEED))
    documents = list(itertools.islice(writer.documents(), DOCUMENTS))
    tokenizer = train_tokenizer(documents[:5000])
    stream = token_stream(tokenizer, documents)
    print(f"{len(documents)} documents, {len(stream)} tokens", flush=True)
    params = train(stream)
    write_model(options.out, params, tokenizer)
    write_tasks(options.tasks, tasks)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
