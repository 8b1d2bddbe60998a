"""Check whether answers depend on how they are computed: ``python -m benchmarks.agreement --model DIR``.

Real requests are scored as the engine plans them, and again in other ways: each request alone and outside the engine,
with its whole text; with other numbers of rows; in another order. Texts are generated with other numbers of rows and in
another order, both greedy and sampled, and by the same model when it provides logits only. The output is the largest
difference in nats, and the number of texts that differ.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from benchmarks.answers import answers_of
from benchmarks.generation import greedy_params, record_generations
from benchmarks.scoring import INCLUDE_PATH, record_requests, table
from birdie_zmq import Model
from birdie_zmq.client.batching import assign_random_keys
from birdie_zmq.engine.evaluator import Evaluator
from birdie_zmq.engine.jax.backend import JaxBackend
from birdie_zmq.engine.model_api import resolve
from birdie_zmq.engine.request_encoding import encode_pairs
from birdie_zmq.engine.tokenizer import TokenizerAdapter
from birdie_zmq.models import load_model, load_tokenizer
from birdie_zmq.types import GenerateWork, GenerationParams, LogLikelihoodWork, SamplingParams, StepLimits

TASKS = ("arc_easy_real", "mmlu_real:5", "lambada_real")
LENGTH_STEP = 64
"""Texts outside the engine are padded to a multiple of this number of tokens, to compile fewer shapes."""

SAMPLING = SamplingParams(temperature=0.8, top_p=0.95, top_k=50)

Pairs = Sequence[tuple[str, str]]


class InProcessModel:
    """The model in this process. Each call starts without cached prefixes; compiled executables are reused.

    Args:
        model: A Hugging Face directory.
    """

    def __init__(self, model: str) -> None:
        self.model: Model = load_model(model, dtype="float32")
        assert self.model.max_length is not None
        self._max_length = self.model.max_length
        self._tokenizer = TokenizerAdapter(load_tokenizer(model, dtype="float32"))
        self._backend = JaxBackend(resolve(self.model), self._max_length)
        logits_only = Model(logits=self.model.logits, params=self.model.params, vocab_size=self.model.vocab_size)
        self._logits_only_backend = JaxBackend(resolve(logits_only), self._max_length)

    def score(self, pairs: Pairs, limits: StepLimits) -> npt.NDArray[np.float64]:
        """Return log-likelihoods float64[n] in nats."""
        self._backend._prefix_cache.clear()
        evaluator = Evaluator(self._tokenizer, self._backend, self._max_length)
        answers = answers_of(evaluator, LogLikelihoodWork(pairs=list(pairs)), limits)
        return np.array([loglikelihood for loglikelihood, _ in answers])

    def score_one_by_one(self, pairs: Pairs) -> npt.NDArray[np.float64]:
        """Return log-likelihoods float64[n] in nats, each request alone and from the logits of its whole text."""
        score_tokens = jax.jit(partial(_logprobs, self.model))
        scores = []
        for item in encode_pairs(self._tokenizer, list(pairs), self._max_length):
            assert item is not None
            tokens = np.zeros((1, -(-len(item.row) // LENGTH_STEP) * LENGTH_STEP), np.int32)
            tokens[0, : len(item.row)] = item.row
            targets = np.zeros_like(tokens)
            targets[0, item.positions.start : item.positions.stop] = item.targets
            logprobs = np.asarray(score_tokens(self.model.params, tokens, targets), np.float64)
            scores.append(logprobs[0, item.positions.start : item.positions.stop].sum())
        return np.array(scores)

    def generate(
        self,
        prompts: Sequence[tuple[str, GenerationParams]],
        limits: StepLimits,
        *,
        logits_only: bool = False,
    ) -> list[str]:
        """Return the generated texts."""
        self._backend._prefix_cache.clear()
        backend = self._logits_only_backend if logits_only else self._backend
        keyed_prompts = assign_random_keys(prompts, seed=1)
        keys = [prompt.key for prompt in keyed_prompts if prompt.key is not None]
        texts = [prompt.text for prompt in keyed_prompts]
        work = GenerateWork(prompts=texts, settings=keyed_prompts[0].settings, keys=keys)
        return answers_of(Evaluator(self._tokenizer, backend, self._max_length), work, limits)


def _logprobs(model: Model, params: Any, tokens: jax.Array, targets: jax.Array) -> jax.Array:
    assert model.logits is not None
    logprobs = jax.nn.log_softmax(model.logits(params, tokens).astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]


def compare_scores(ours: InProcessModel, pairs: Pairs) -> dict[str, str]:
    """Return the largest difference in nats from the engine's own plan, by what is changed."""
    planned = ours.score(pairs, StepLimits())

    def difference(other: npt.NDArray[np.float64]) -> str:
        return f"{np.abs(other - planned).max():.1e}"

    shuffled = np.random.default_rng(0).permutation(len(pairs))
    in_another_order = np.empty_like(planned)
    in_another_order[shuffled] = ours.score([pairs[i] for i in shuffled], StepLimits())
    half = len(pairs) // 2
    in_two = np.concatenate([ours.score(batch, StepLimits()) for batch in (pairs[:half], pairs[half:]) if batch])
    return {
        "requests": f"{len(pairs):,}",
        "each alone, outside the engine": difference(ours.score_one_by_one(pairs)),
        "one row per step": difference(ours.score(pairs, StepLimits(rows=1))),
        "four rows per step": difference(ours.score(pairs, StepLimits(rows=4))),
        "in another order": difference(in_another_order),
        "in two batches": difference(in_two),
    }


def compare_texts(
    ours: InProcessModel, prompts: Sequence[tuple[str, GenerationParams]], *, with_logits_only: int
) -> dict[str, str]:
    """Return how many texts differ from those with the engine's own number of rows, by what is changed."""
    planned = ours.generate(prompts, StepLimits())

    def differ(other: Sequence[str], than: Sequence[str] = planned) -> str:
        return str(sum(one != text for one, text in zip(other, than, strict=True)))

    return {
        "prompts": f"{len(prompts):,}",
        **{f"{n} rows": differ(ours.generate(prompts, StepLimits(rows=n))) for n in (1, 4, 16)},
        "in another order": differ(ours.generate(prompts[::-1], StepLimits())[::-1]),
        f"logits only, {with_logits_only} prompts": differ(
            ours.generate(prompts[:with_logits_only], StepLimits(), logits_only=True), planned[:with_logits_only]
        ),
    }


def main() -> None:
    """Compute all answers and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face directory")
    parser.add_argument("--include-path", type=Path, default=INCLUDE_PATH, help="a folder with lm_eval tasks")
    parser.add_argument("--limit", type=int, default=10, help="documents of each scored task")
    parser.add_argument("--prompts", type=int, default=8, help="documents of gsm8k_real to generate answers for")
    parser.add_argument(
        "--rereads", type=int, default=3, help="number of these prompts to generate with logits only, which is slow"
    )
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    ours = InProcessModel(options.model)
    print(f"$ {shlex.join(['python', '-m', 'benchmarks.agreement', *sys.argv[1:]])}")
    print(
        f"{jax.devices()[0].device_kind}; float32; Python {platform.python_version()}, jax {jax.__version__}",
        flush=True,
    )
    differences = {}
    for task, requests in record_requests(TASKS, options.include_path, options.limit).items():
        differences[task] = compare_scores(
            ours, [(context, continuation) for context, continuation in requests["loglikelihood"]]
        )
    print(f"\nlargest difference, nats\n{table(differences)}", flush=True)
    requests_to_generate = record_generations("gsm8k_real", options.include_path, options.prompts).generations
    greedy = [(prompt, greedy_params(gen_kwargs)) for prompt, gen_kwargs in requests_to_generate]
    sampled = [
        (prompt, GenerationParams(until=params.until, max_gen_toks=32, sampling=SAMPLING)) for prompt, params in greedy
    ]
    texts = {"gsm8k_real, greedy": compare_texts(ours, greedy, with_logits_only=options.rereads)}
    texts["gsm8k_real, sampled"] = compare_texts(ours, sampled, with_logits_only=options.rereads)
    print(f"\ntexts that differ\n{table(texts)}")


if __name__ == "__main__":
    main()
