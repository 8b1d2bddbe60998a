"""What the path through broker and worker costs, and what batching changes: ``python -m benchmarks.path_cost``.

One process scores the same requests in turn through `BirdieZMQ` (its own broker and worker) and through the evaluator
called in process, after a warm-up of both, and prints the ratio of the medians. Then the scores of planned, bucketed
steps are held against one request at a time, computed by the decoder's own function without padding.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.api.instance import Instance

from benchmarks.listener import Listener
from benchmarks.model_file import CONFIG, Bytes, load_model, logits
from birdie_zmq.client.batching import loglikelihood_jobs
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.settings import ClientSettings
from birdie_zmq.types import Answers, LogLikelihoodWork, Scores, StepLimits
from harness_model import BirdieZMQ

MODEL_ARGS = ("river", "stone", "lantern", "meadow", "copper", "winter", "harbour", "thistle")
SETTINGS = ClientSettings()


def requests(questions: int) -> list[tuple[str, str]]:
    """Multiple choice of four answers, contexts of 40 to 200 bytes."""
    generator = np.random.default_rng(0)
    pairs = []
    for number in range(questions):
        words = generator.choice(MODEL_ARGS, size=int(generator.integers(6, 30)))
        context = f"Question {number}: {' '.join(words)}?\nAnswer:"
        pairs += [(context, f" {word}") for word in generator.choice(MODEL_ARGS, size=4, replace=False)]
    return pairs


class Collect(Listener):
    """Keeps what the evaluator says."""

    def __init__(self, count: int) -> None:
        self.scores = np.full(count, np.nan)
        self.items: list[int] = []

    def answered(self, indices: Sequence[int], answers: Answers) -> None:
        """Put scores where they belong."""
        assert isinstance(answers, Scores)
        self.scores[[self.items[i] for i in indices]] = answers.loglikelihoods


def in_process(evaluator: Evaluator, pairs: list[tuple[str, str]]) -> np.ndarray:
    """The scores float64[n] by the evaluator in this process, in the same batches as the client sends."""
    collect = Collect(len(pairs))
    for job in loglikelihood_jobs(pairs, SETTINGS):
        assert isinstance(job.work, LogLikelihoodWork)
        collect.items = job.items
        evaluator.loglikelihood(job.work, StepLimits(), collect)
    return collect.scores


def one_at_a_time(pairs: list[tuple[str, str]]) -> np.ndarray:
    """The scores float64[n] of each request by itself, unpadded and outside the engine."""
    params = load_model("direct").params
    forward = jax.jit(logits)
    scores = []
    for context, continuation in pairs:
        ids = Bytes().encode(context + continuation)
        count = len(Bytes().encode(continuation))
        log_probabilities = jax.nn.log_softmax(forward(params, jnp.array([ids[:-1]])).astype(jnp.float32))[0]
        at = np.asarray(log_probabilities)[np.arange(len(ids) - 1 - count, len(ids) - 1), ids[-count:]]
        scores.append(at.sum(dtype=np.float64))
    return np.array(scores)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The cost of the path through broker and worker.")
    parser.add_argument("--questions", type=int, default=12, help="of four answers each")
    parser.add_argument("--pairs", type=int, default=5, help="how often both are timed in turn")
    parser.add_argument("--alone", type=int, default=24, help="how many requests are scored one at a time")
    options = parser.parse_args()
    pairs = requests(options.questions)
    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    model = resolve(load_model("benchmark"))
    backend = JaxBackend(model, CONFIG.max_length)
    evaluator = Evaluator(TokenizerAdapter(Bytes()), backend, CONFIG.max_length)
    page = Path(__file__).with_name("page.py")
    with BirdieZMQ(model_tag="benchmark", api=str(page)) as lm:
        served = np.array([score for score, _ in lm.loglikelihood(instances, disable_tqdm=True)])
        direct = in_process(evaluator, pairs)
        through, without = [], []
        for _ in range(options.pairs):
            began = time.perf_counter()
            lm.loglikelihood(instances, disable_tqdm=True)
            through.append(time.perf_counter() - began)
            began = time.perf_counter()
            in_process(evaluator, pairs)
            without.append(time.perf_counter() - began)
        steps = lm.get_model_info()["model_steps"]
    ratios = [a / b for a, b in zip(through, without, strict=True)]
    print(f"parameters: {backend.num_parameters:,}; requests: {len(pairs)}; devices: {', '.join(backend.devices)}")
    print(
        f"through broker and worker: median {statistics.median(through):.2f} s; in process: median "
        f"{statistics.median(without):.2f} s; ratio of medians {statistics.median(through) / statistics.median(without):.3f} "
        f"(pairs {', '.join(f'{ratio:.3f}' for ratio in ratios)})"
    )
    print(f"served against in process: largest difference {np.abs(served - direct).max():.2e} nats")
    step = max(1, len(pairs) // options.alone)
    difference = np.abs(served[::step] - one_at_a_time(pairs[::step])).max()
    print(f"batched and bucketed against one at a time: largest difference {difference:.2e} nats")
    print(
        f"shapes sent to the model: {len(steps['shapes'])} of at most {steps['shape_bound']}: {steps['shapes']}; "
        f"padding {steps['padding_share']:.1%} of {steps['tokens_computed']:,} tokens"
    )


if __name__ == "__main__":
    main()
