"""Measure the overhead of broker and worker, and the effect of batching: ``python -m benchmarks.path_cost``.

One process scores the same requests in turn through `BirdieZMQ` (embedded broker and worker) and with an evaluator in
this process, after a warm-up of both, and prints the ratio of the medians. Then the scores of planned steps with
bucketed shapes are compared with those of one request at a time, which the decoder's own function computes without
padding.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.api.instance import Instance

from benchmarks.answers import answers_to_jobs
from benchmarks.model_file import CONFIG, ByteTokenizer, load_model, logits
from birdie_zmq.client.batching import loglikelihood_jobs
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.settings import ClientSettings
from harness_model import BirdieZMQ

WORDS = ("river", "stone", "lantern", "meadow", "copper", "winter", "harbour", "thistle")
SETTINGS = ClientSettings()


def requests(questions: int) -> list[tuple[str, str]]:
    """Return multiple-choice requests with four answers each and contexts of 40 to 200 bytes."""
    generator = np.random.default_rng(0)
    pairs = []
    for number in range(questions):
        words = generator.choice(WORDS, size=int(generator.integers(6, 30)))
        context = f"Question {number}: {' '.join(words)}?\nAnswer:"
        pairs += [(context, f" {word}") for word in generator.choice(WORDS, size=4, replace=False)]
    return pairs


def score_in_process(evaluator: Evaluator, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Return scores float64[n] from the evaluator in this process, in the same batches as the client sends."""
    answers = answers_to_jobs(evaluator, loglikelihood_jobs(pairs, SETTINGS), len(pairs))
    return np.array([loglikelihood for loglikelihood, _ in answers])


def score_one_by_one(pairs: list[tuple[str, str]]) -> np.ndarray:
    """Return scores float64[n], each request alone, unpadded and outside the engine."""
    params = load_model("direct").params
    forward = jax.jit(logits)
    scores = []
    for context, continuation in pairs:
        ids = ByteTokenizer().encode(context + continuation)
        count = len(ByteTokenizer().encode(continuation))
        log_probabilities = jax.nn.log_softmax(forward(params, jnp.array([ids[:-1]])).astype(jnp.float32))[0]
        at = np.asarray(log_probabilities)[np.arange(len(ids) - 1 - count, len(ids) - 1), ids[-count:]]
        scores.append(at.sum(dtype=np.float64))
    return np.array(scores)


def main() -> None:
    """Measure both ways in turn and print."""
    parser = argparse.ArgumentParser(
        description="Measure the overhead of broker and worker, and the effect of batching."
    )
    parser.add_argument("--questions", type=int, default=12, help="questions, with four answers each")
    parser.add_argument("--pairs", type=int, default=5, help="timed runs of each way, in turn; default: 5")
    parser.add_argument("--alone", type=int, default=24, help="requests that are also scored one at a time")
    options = parser.parse_args()
    pairs = requests(options.questions)
    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    model = resolve(load_model("benchmark"))
    assert CONFIG.max_length is not None
    backend = JaxBackend(model, CONFIG.max_length)
    evaluator = Evaluator(TokenizerAdapter(ByteTokenizer()), backend, CONFIG.max_length)
    model_file = Path(__file__).with_name("model_file.py")
    with BirdieZMQ(model_tag="benchmark", api=str(model_file)) as lm:
        served = np.array([score for score, _ in lm.loglikelihood(instances, disable_tqdm=True)])
        direct = score_in_process(evaluator, pairs)
        through, without = [], []
        for _ in range(options.pairs):
            began = time.perf_counter()
            lm.loglikelihood(instances, disable_tqdm=True)
            through.append(time.perf_counter() - began)
            began = time.perf_counter()
            score_in_process(evaluator, pairs)
            without.append(time.perf_counter() - began)
        steps = lm.get_model_info()["model_steps"]
    ratios = [a / b for a, b in zip(through, without, strict=True)]
    print(f"parameters: {backend.num_parameters:,}; requests: {len(pairs)}; devices: {', '.join(backend.devices)}")
    print(
        f"through broker and worker: median {statistics.median(through):.2f} s; in process: median "
        f"{statistics.median(without):.2f} s; ratio of medians {statistics.median(through) / statistics.median(without):.3f} "
        f"(pairs {', '.join(f'{ratio:.3f}' for ratio in ratios)})"
    )
    print(
        f"through broker and worker compared with in process: largest difference {np.abs(served - direct).max():.2e} nats"
    )
    step = max(1, len(pairs) // options.alone)
    difference = np.abs(served[::step] - score_one_by_one(pairs[::step])).max()
    print(f"batched and bucketed compared with one at a time: largest difference {difference:.2e} nats")
    print(
        f"step shapes: {len(steps['shapes'])} of at most {steps['shape_bound']}: {steps['shapes']}; "
        f"padding {steps['padding_share']:.1%} of {steps['tokens_computed']:,} tokens"
    )


if __name__ == "__main__":
    main()
