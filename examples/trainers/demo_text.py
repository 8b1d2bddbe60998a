"""The text and the tokenizer of both examples: stories of the demo's tasks, in random rows."""

import json
import pathlib

import numpy as np
import tokenizers

import birdie_zmq

TASKS = pathlib.Path(__file__).parents[1] / "tasks"
TOKENIZER = pathlib.Path(birdie_zmq.__file__).parent / "models" / "demo"
VOCABULARY = 1024
EVALUATED = 4  # the first documents of the task

OPTIONS = ["--tasks", "demo_rolling", "--include_path", str(TASKS), "--limit", str(EVALUATED), "--device", "cpu"]
"""Of ``birdie-zmq watch``."""


def rows(count, length):
    """Yield batches int32[count, length] of the stories that are not evaluated, without an end."""
    lines = (TASKS / "data" / "demo_rolling.jsonl").read_text().splitlines()[EVALUATED:]
    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    tokens = np.asarray(tokenizer.encode("\n".join(json.loads(line)["text"] for line in lines)).ids, np.int32)
    random = np.random.default_rng(0)
    while True:
        yield np.stack([tokens[start : start + length] for start in random.integers(0, len(tokens) - length, count)])


def log(step, metrics):
    """Stand for a tracker, such as ``wandb.log(metrics, step=step)``."""
    print(f"step {step}: byte_perplexity {metrics['demo_rolling/byte_perplexity']:.2f}", flush=True)
